"""Speed of `linear_layernorm` against torch's own operations."""

from benchmarks import operations

OPERATION = "linear_layernorm"


def flops(case) -> float:
    return 2.0 * case.tokens * case.inner * case.outer


@operations.parameters(OPERATION)
def test_linear_layernorm(benchmark, case, name):
    operations.run(benchmark, OPERATION, case, name, flops)
