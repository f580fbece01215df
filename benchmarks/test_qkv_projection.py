"""Speed of `qkv_projection` against torch's own operations."""

from benchmarks import operations

OPERATION = "qkv_projection"


def flops(case) -> float:
    return 6.0 * case.tokens * case.inner * case.outer


@operations.parameters(OPERATION)
def test_qkv_projection(benchmark, case, name):
    operations.run(benchmark, OPERATION, case, name, flops)
