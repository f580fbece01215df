"""What a Triton kernel cannot take is refused by `supports`, so that the automatic choice falls through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bertfast import dispatch
from gpu_code.forms import running

pytest.importorskip("triton", reason="triton is not installed")


def _tensor(*shape: int) -> Tensor:
    return torch.zeros(1).expand(shape)


def _qkv(heads: int, size: int) -> tuple:
    return (_tensor(2, 3, heads, size),)


def _embedding(features: int) -> tuple:
    return _tensor(2), _tensor(8, features), None, _tensor(2), _tensor(8, features)


def _layernorm(features: int) -> tuple:
    """Every place where one of the operations' directions looks for LN's weight."""
    return (_tensor(2, features), _tensor(2, 8), *[_tensor(features)] * 5)


CASES = [
    ("attention", lambda size: _qkv(2, size), 128),
    ("attention", lambda heads: _qkv(heads, 8), 65535),
    ("embedding", _embedding, 4096),
    ("linear_layernorm", _layernorm, 4096),
    ("gelu_layernorm", _layernorm, 4096),
    ("masked_cross_entropy", lambda k: (_tensor(2, k), _tensor(8, k)), 65535 * 256),
]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("operation", "arguments", "most"), CASES)
def test_at_the_limit_and_beyond(operation, arguments, most, direction):
    def reason(size: int) -> str | None:
        given = arguments(size)
        if direction == "backward" and arguments is not _layernorm:
            given = (given[0], *given)  # the gradient comes first
        return dispatch._FORMS[operation]["triton"].supports(direction, *given)

    with running("triton", execute=False):
        assert reason(most) is None
        assert str(most) in reason(most + 1)
