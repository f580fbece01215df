"""What the backends of a GPU race against: plain torch and fused attention, each on inputs as its users have.

Per-token operations take the packed rows, as ours do. Attention takes the padded batch, with a mask where the case is
ragged: transformers has no other. Nothing that ours does not need is computed, and nothing is copied inside a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import Case


class Peer(NamedTuple):
    """A contender: its function, the arguments by name, and which rows of them are tokens (None: all)."""

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: dict
    cells: Tensor | None = None


def peers(
    operation: str,
    case: Case,
    inputs: dict,
    skipped: dict[str, str],
    compiled: Callable = torch.compile,
) -> dict[str, Peer]:
    """The peers by name; reasons of those that are absent go to `skipped`. Inputs are as for the public function."""
    if operation != "attention":
        skipped.update(dict.fromkeys(("sdpa", *PACKED), "a peer of attention only"))
        function = _EAGER[operation]
        return {"eager": Peer(function, inputs), "compile": Peer(compiled(function), inputs)}
    cells, padded, mask = _pad(case, inputs)
    eager, sdpa = _padded_attention(len(case.lengths), mask)
    found = {"eager": eager, "compile": compiled(eager), "sdpa": sdpa}
    named = {name: Peer(function, padded, cells) for name, function in found.items()}
    for name, make in PACKED.items():
        try:
            named[name] = Peer(make(), inputs)
        except ImportError as error:
            skipped[name] = str(error)
    return named


def _varlen() -> Callable:
    """torch's own attention of packed sequences, from torch 2.10 on; its scale is ours, 1/√d."""
    from torch.nn.attention.varlen import varlen_attn

    def varlen(qkv, cu_seqlens, max_seqlen, **_):
        lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        return varlen_attn(*qkv.unbind(1), *lengths).flatten(1)

    return varlen


def _flash_attn() -> Callable:
    from flash_attn import flash_attn_varlen_qkvpacked_func

    def flash(qkv, cu_seqlens, max_seqlen, scale, **_):
        out = flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, softmax_scale=scale)
        return out.flatten(1)

    return flash


# Attention on packed sequences, as ours; absent where it cannot be imported.
PACKED = {"varlen": _varlen, "flash-attn": _flash_attn}


def _pad(case: Case, inputs: dict) -> tuple[Tensor | None, dict, Tensor | None]:
    """(rows of the padded batch that are tokens, the inputs with such a batch, its mask [B,1,1,S]); None, None where
    all rows are tokens.
    """
    longest, device = max(case.lengths), inputs["qkv"].device
    if min(case.lengths) == longest:
        return None, inputs, None
    lengths = torch.tensor(case.lengths, device=device)
    real = torch.arange(longest, device=device) < lengths[:, None]
    cells = real.flatten().nonzero().flatten()
    qkv = inputs["qkv"].new_zeros(real.numel(), *inputs["qkv"].shape[1:])
    qkv[cells] = inputs["qkv"]
    return cells, {**inputs, "qkv": qkv}, real[:, None, None]


def _padded_attention(rows: int, mask: Tensor | None) -> tuple[Callable, Callable]:
    """(the products and softmax in plain torch, torch's fused attention) on qkv [B * S, 3, h, d]."""

    def split(qkv):
        return qkv.unflatten(0, (rows, -1)).permute(2, 0, 3, 1, 4)

    def eager(qkv, scale, **_):
        query, key, value = split(qkv)
        logits = query @ key.transpose(2, 3) * scale
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        return (logits.softmax(-1) @ value).transpose(1, 2).flatten(0, 1).flatten(1)

    def sdpa(qkv, scale, **_):
        query, key, value = split(qkv)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)

    return eager, sdpa


def _embedding(
    input_ids, word, position_ids, position, token_type_ids, segment, ln_weight, ln_bias, eps,
    padding_idx, **_,
):  # fmt: skip
    z = F.embedding(input_ids, word, padding_idx) + F.embedding(token_type_ids, segment)
    z = z + F.embedding(position_ids, position)
    return F.layer_norm(z, z.shape[-1:], ln_weight, ln_bias, eps)


def _qkv_projection(x, wq, wk, wv, bq, bk, bv, num_heads):
    """Query, key and value [T,H], which stay apart."""
    return F.linear(x, wq, bq), F.linear(x, wk, bk), F.linear(x, wv, bv)


def _linear_gelu(x, weight, bias):
    return F.gelu(F.linear(x, weight, bias))


def _linear_layernorm(x, weight, bias, residual, ln_weight, ln_bias, eps, **_):
    return F.layer_norm(
        residual + F.linear(x, weight, bias), ln_weight.shape, ln_weight, ln_bias, eps
    )


def _gelu_layernorm(x, weight, bias, ln_weight, ln_bias, eps):
    z = F.gelu(F.linear(x, weight, bias))
    return F.layer_norm(z, ln_weight.shape, ln_weight, ln_bias, eps)


def _masked_cross_entropy(x, weight, bias, labels, ignore_index, **_):
    """Of the labelled rows alone, as whoever knows his loss writes it; transformers computes all rows."""
    kept = labels != ignore_index
    return F.cross_entropy(F.linear(x[kept], weight, bias), labels[kept])


_EAGER = {
    "embedding": _embedding,
    "qkv_projection": _qkv_projection,
    "linear_gelu": _linear_gelu,
    "linear_layernorm": _linear_layernorm,
    "gelu_layernorm": _gelu_layernorm,
    "masked_cross_entropy": _masked_cross_entropy,
}
