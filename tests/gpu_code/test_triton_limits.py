"""What a Triton kernel cannot take is refused by `supports`, so that the automatic choice falls through."""

from __future__ import annotations

import pytest
import torch

from bertfast import dispatch
from bertfast.ops._contract import CONTRACTS
from gpu_code.backends import running

pytest.importorskip("triton", reason="triton is not installed")

CASES = [  # operation, shapes of its arguments for a size, the most it may be
    ("attention", lambda size: {"qkv": (2, 3, 2, size)}, 128),
    ("attention", lambda heads: {"qkv": (2, 3, heads, 8)}, 65535),
    ("embedding", lambda features: {"position": (8, features)}, 4096),
    ("linear_layernorm", lambda features: {"x": (2, 8), "ln_weight": (features,)}, 4096),
    ("gelu_layernorm", lambda features: {"x": (2, 8), "ln_weight": (features,)}, 4096),
    ("masked_cross_entropy", lambda k: {"x": (2, k), "weight": (8, k)}, 65535 * 256),
]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("operation", "shapes", "most"), CASES)
def test_at_the_limit_and_beyond(operation, shapes, most, direction):
    call_type = getattr(CONTRACTS[operation], direction)

    def reason(size: int) -> str | None:
        given = {name: torch.zeros(1).expand(shape) for name, shape in shapes(size).items()}
        call = call_type(**{name: given.get(name) for name in call_type._fields})
        return dispatch._BACKENDS[operation]["triton"].supports(call)

    with running("triton", execute=False):
        assert reason(most) is None
        assert str(most) in reason(most + 1)
