"""Launcher of the Triton backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import dispatch
from ...extension import contiguous
from .. import _triton
from .._philox import keep_scale, threshold
from .._triton import Config, Table
from ._triton_backward import _attention_bwd_keys_kernel, _attention_bwd_queries_kernel
from ._triton_forward import _attention_fwd_kernel

LARGEST_HEAD = 128
SHORT = 128  # tokens of the longest sequence, up to which the forward takes its "short" entries


def _config(m: int, n: int, num_warps: int, num_stages: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps, num_stages)


def _with_tf32(entries: dict[str, Config], *left_out: str) -> dict[str, Config]:
    """With entries for the other precision of float32, which takes more registers: it rounds its operands."""
    exact = {key: config for key, config in entries.items() if key.startswith("ieee")}
    others = {k.replace("ieee", "tf32"): c._replace(max_registers=255) for k, c in exact.items()}
    return {**entries, **{key: others[key] for key in others if key not in left_out}}


# By head size, and by precision for float32. As large as no architecture spills a register, with dropout or without, by
# ids or not: sm_90 and sm_100 keep operands of a product out of registers; sm_120 multiplies like sm_80.
_FORWARD_80 = {
    "32-short": _config(64, 64, 4, 3),
    "32-long": _config(128, 64, 4, 3),
    "64-short": _config(64, 64, 4, 2),
    "64-long": _config(128, 64, 8, 2),
    "128-short": _config(128, 32, 8, 2),
    "128-long": _config(128, 32, 8, 2),
    "ieee-32": _config(32, 32, 4, 2),
    "ieee-64": _config(32, 32, 4, 2),
    "ieee-128": _config(16, 32, 4, 2),
}
_FORWARD_90 = {
    **_FORWARD_80,
    "32-long": _config(128, 64, 8, 3),
    "64-long": _config(128, 64, 8, 3),
    "128-short": _config(128, 64, 8, 2),
    "128-long": _config(128, 64, 8, 2),
}
_FORWARD_100 = {
    **_FORWARD_90,
    "32-short": _FORWARD_90["32-short"]._replace(max_registers=255),
    "32-long": _FORWARD_80["32-long"],
    "64-long": _FORWARD_90["64-long"]._replace(max_registers=255),
}
_FORWARD_120 = {
    **_FORWARD_80,
    "32-short": _config(64, 64, 4, 3)._replace(max_registers=168),
    "128-short": _config(32, 32, 4, 2)._replace(max_registers=255),
    "128-long": _config(32, 32, 4, 2)._replace(max_registers=255),
}
_QUERIES_80 = {
    "32": _config(64, 64, 4, 2),
    "64": _config(64, 32, 4, 2),
    "128": _config(64, 64, 8, 2),
    "ieee-32": _config(16, 32, 4, 2),
    "ieee-64": _config(32, 32, 4, 2),
    "ieee-128": _config(16, 32, 8, 2),
}
_KEYS_80 = {
    "32": _config(32, 64, 4, 2),
    "64": _config(32, 64, 4, 2),
    "128": _config(32, 64, 8, 2),
    "ieee-32": _config(16, 32, 4, 2),
    "ieee-64": _config(16, 32, 4, 2),
    "ieee-128": _config(16, 32, 8, 2),
}
# One launch where BLOCK_N holds the longest sequence, two where it does not or no entry is there.
_WHOLE_80 = {
    "32": _config(64, 128, 8, 1),
    "64": _config(32, 128, 8, 1),
    "ieee-32": _config(16, 128, 8, 1),
    "ieee-64": _config(16, 64, 8, 1),
}
_WHOLE_86 = {**_WHOLE_80, "32": _config(32, 128, 8, 1), "64": _config(16, 128, 8, 1)}
_WHOLE_90 = {
    **_WHOLE_80,
    "32": _config(64, 128, 8, 2),
    "64": _config(32, 128, 8, 2),
    "128": _config(16, 128, 8, 2),
}

FORWARD = Table(
    "attention_fwd",
    {
        80: _with_tf32(_FORWARD_80),
        90: _with_tf32(_FORWARD_90),
        100: _with_tf32(_FORWARD_100),
        120: _with_tf32(_FORWARD_120),
    },
)
BACKWARD_QUERIES = Table(
    "attention_bwd_queries",
    {
        80: _with_tf32(_QUERIES_80),
        90: _with_tf32({**_QUERIES_80, "64": _config(64, 64, 4, 2)}),
        120: _with_tf32(_QUERIES_80),
    },
)
BACKWARD_KEYS = Table(
    "attention_bwd_keys",
    {80: _with_tf32(_KEYS_80), 120: _with_tf32({**_KEYS_80, "64": _config(16, 64, 4, 2)})},
)
BACKWARD_WHOLE = Table(
    "attention_bwd_whole",
    {
        80: _with_tf32(_WHOLE_80),
        86: _with_tf32(_WHOLE_86, "tf32-64"),
        90: _with_tf32(_WHOLE_90),
        120: _with_tf32(_WHOLE_86, "tf32-64"),
    },
)


def supports(call) -> str | None:
    reason, (_, _, heads, size) = _triton.refuses(call.lead, product=True), call.qkv.shape
    if reason is None and size > LARGEST_HEAD:
        return f"head size {size}; the triton backend computes up to {LARGEST_HEAD}"
    if reason is None and heads > _triton.MOST_BLOCKS:
        return f"{heads} heads; the triton backend computes up to {_triton.MOST_BLOCKS}"
    return reason


def forward(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, p: float, seed: Tensor | None,
    example_ids: Tensor | None, save: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.attention`; the second result is None unless `save`."""
    qkv = _with_dense_heads(qkv)
    tokens, _, heads, size = qkv.shape
    out = qkv.new_empty(tokens, heads * size)
    lse = qkv.new_empty(heads, tokens, dtype=torch.float32) if save else None
    if tokens == 0:
        return out, lse
    _launch(qkv, cu_seqlens, max_seqlen, scale, p, seed, example_ids, out, lse)
    return out, lse


def clear_spare(qkv: Tensor, cu_seqlens: Tensor, out: Tensor, lse: Tensor | None) -> None:
    """Makes the rows behind the last sequence 0: a forward without a sequence, whose spare rows begin there."""
    _launch(qkv, cu_seqlens[-1:], qkv.shape[0], 1.0, 0.0, None, None, out, lse)


def _launch(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, p: float, seed: Tensor | None,
    example_ids: Tensor | None, out: Tensor, lse: Tensor | None,
) -> None:  # fmt: skip
    key = _key(qkv)
    if "-" not in key:
        short = max_seqlen <= SHORT and not dispatch.is_batch_invariant()
        key += "-short" if short else "-long"
    config = FORWARD.pick(key)
    _attention_fwd_kernel[_grid(qkv, cu_seqlens, config.blocks["BLOCK_M"])](
        *qkv.unbind(1), cu_seqlens.contiguous(), out, lse, *_dropout(p, seed, example_ids), qkv.shape[0],
        cu_seqlens.numel() - 1, qkv.stride(0), qkv.stride(2), scale * math.log2(math.e), threshold(p), keep_scale(p),
        **_shape(qkv), **config.options(),
    )  # fmt: skip


def backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, p: float,
    seed: Tensor | None, example_ids: Tensor | None,
) -> Tensor:  # fmt: skip
    """See `bertfast.ops.attention`: the gradient of qkv."""
    qkv = _with_dense_heads(qkv)
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if qkv.shape[0] == 0:
        return dqkv
    dout = dout if dout.stride(1) == 1 else dout.contiguous()
    out, lse = out.contiguous(), lse.contiguous()
    whole = _whole_config(qkv, max_seqlen)
    delta = torch.empty_like(lse) if whole is None else None

    def launch(kernel, config, block, out):
        kernel[_grid(qkv, cu_seqlens, config.blocks[block])](
            *qkv.unbind(1), cu_seqlens.contiguous(), dout, out, lse, *_dropout(p, seed, example_ids), delta, dqkv,
            qkv.shape[0], cu_seqlens.numel() - 1, qkv.stride(0), qkv.stride(2), dout.stride(0), scale, threshold(p),
            keep_scale(p), **_shape(qkv), **config.options(),
        )  # fmt: skip

    if whole is not None:
        launch(_attention_bwd_keys_kernel, whole, "BLOCK_N", out)
    else:
        launch(_attention_bwd_queries_kernel, BACKWARD_QUERIES.pick(_key(qkv)), "BLOCK_M", out)
        launch(_attention_bwd_keys_kernel, BACKWARD_KEYS.pick(_key(qkv)), "BLOCK_N", None)
    return dqkv


def _dropout(p: float, seed: Tensor | None, example_ids: Tensor | None):
    """(seed, ids) as the kernels take them."""
    return (seed, *contiguous(example_ids)) if p > 0 else (None, None)


def _with_dense_heads(qkv: Tensor) -> Tensor:
    return qkv if qkv.stride(3) == 1 else qkv.contiguous()


def _key(qkv: Tensor) -> str:
    """By head size, and by precision for float32; but in the interpreter, which likes large tiles."""
    size = next(size for size in (32, 64, 128) if qkv.shape[3] <= size)
    if qkv.dtype != torch.float32 or _triton.interpreted():
        return str(size)
    return f"{_triton.precision(qkv)}-{size}"


def _whole_config(qkv: Tensor, max_seqlen: int) -> Config | None:
    """Of a kernel whose blocks hold the longest sequence, where there is one."""
    key = _key(qkv)
    entry = BACKWARD_WHOLE.configs(_triton.arch()).get(key)
    if entry is None or max_seqlen > entry.blocks["BLOCK_N"] or dispatch.is_batch_invariant():
        return None
    return BACKWARD_WHOLE.pick(key)


def _shape(qkv: Tensor) -> dict:
    """The constexpr arguments that follow from qkv."""
    size = qkv.shape[3]
    block = max(16, _triton.power_of_two(size))  # the least that a product takes
    return {"SIZE": size, "BLOCK_D": block, "PRECISION": _triton.precision(qkv)}


def _grid(qkv: Tensor, cu_seqlens: Tensor, block: int) -> tuple[int, int]:
    """Programs: at least as many blocks of rows as the sequences and the rows of none can have, by heads."""
    return qkv.shape[0] // block + cu_seqlens.numel(), qkv.shape[2]
