"""Speed of `embedding` against torch's own operations. Bound by memory: about 8 operations a feature are counted."""

from benchmarks import operations

OPERATION = "embedding"


def flops(case) -> float:
    return 8.0 * case.tokens * case.inner


@operations.parameters(OPERATION)
def test_embedding(benchmark, case, name):
    operations.run(benchmark, OPERATION, case, name, flops)
