"""Speed of `gelu_layernorm` against torch's own operations."""

from benchmarks import operations

OPERATION = "gelu_layernorm"


def flops(case) -> float:
    return 2.0 * case.tokens * case.inner * case.outer


@operations.parameters(OPERATION)
def test_gelu_layernorm(benchmark, case, name):
    operations.run(benchmark, OPERATION, case, name, flops)
