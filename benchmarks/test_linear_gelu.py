"""Speed of `linear_gelu` against torch's own operations."""

from benchmarks import operations

OPERATION = "linear_gelu"


def flops(case) -> float:
    return 2.0 * case.tokens * case.inner * case.outer


@operations.parameters(OPERATION)
def test_linear_gelu(benchmark, case, name):
    operations.run(benchmark, OPERATION, case, name, flops)
