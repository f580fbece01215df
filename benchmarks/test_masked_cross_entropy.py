"""Speed of `masked_cross_entropy` against torch's own operations. A quarter of the tokens is labelled, and counted."""

from benchmarks import operations

OPERATION = "masked_cross_entropy"


def flops(case) -> float:
    return 0.5 * case.tokens * case.inner * case.outer


@operations.parameters(OPERATION)
def test_masked_cross_entropy(benchmark, case, name):
    operations.run(benchmark, OPERATION, case, name, flops)
