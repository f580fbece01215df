"""Speed of `attention` against torch's own operations."""

from benchmarks import operations

OPERATION = "attention"


def flops(case) -> float:
    return 4.0 * sum(length**2 for length in case.lengths) * case.outer


@operations.parameters(OPERATION)
def test_attention(benchmark, case, name):
    operations.run(benchmark, OPERATION, case, name, flops)
