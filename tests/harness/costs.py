"""What an operation must compute and move: floating-point operations, and the bytes of its fused design.

The bytes are those that each launch of the design reads and writes at least, every byte of a tensor once a launch: the
formula that gates hold the kernels to, and the roofline that benchmarks predict from. Small workspaces (partial column
sums, online statistics of chunks) are not in it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

INDEX = 8  # bytes of an id or label
STATISTIC = 4  # bytes of a mean, rstd or lse
SHORT = 128  # longest sequence whose attention backward is one launch


class Cost(NamedTuple):
    """flops: a multiply-add counts 2. bytes: read and written, all launches together."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def cost(operation: str, direction: str, inputs: dict, save: bool = False) -> Cost:
    """The cost of the public function's arguments; `save`: the forward keeps what backward needs."""
    return globals()[f"_{operation}"](direction == "backward", save, **inputs)


def _size(*tensors: Tensor | None) -> int:
    """Bytes of the tensors, every element once."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _rows(indices: Tensor, table: Tensor) -> int:
    """Bytes of the distinct rows that are looked up."""
    return indices.unique().numel() * table.shape[1] * table.element_size()


def _linear(backward: bool, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Cost:
    """x, weights, biases -> y; backward: dy, x, weights -> dx, dweights, dbiases."""
    columns = sum(weight.shape[0] for weight in weights)
    y = x.shape[0] * columns * x.element_size()
    flops = 2 * x.shape[0] * columns * x.shape[1]
    once = _size(x, *weights, *biases)
    return Cost(2 * flops, y + 2 * once - _size(*biases)) if backward else Cost(flops, y + once)


def _embedding(backward, save, **args):
    ids = [args["position_ids"], args["token_type_ids"]]
    read = _rows(ids[0], args["position"]) + _rows(ids[1], args["segment"])
    tables = [args["position"], args["segment"]]
    if args["word"] is None:
        read += _size(args["inputs_embeds"])
        tables.append(args["inputs_embeds"])
    else:
        read += _rows(args["input_ids"], args["word"])
        ids, tables = [*ids, args["input_ids"]], [*tables, args["word"]]
    read += _size(*ids, args["ln_weight"], args["ln_bias"])
    tokens, hidden = ids[0].numel(), args["position"].shape[1]
    out = tokens * hidden * args["position"].element_size()
    statistics = 2 * STATISTIC * tokens
    if not backward:
        return Cost(10 * tokens * hidden, read + out + save * statistics)
    return Cost(20 * tokens * hidden, read + statistics + 2 * out + _size(*tables))


def _qkv_projection(backward, save, x, wq, wk, wv, bq, bk, bv, num_heads):
    return _linear(backward, x, [wq, wk, wv], [bq, bk, bv])


def _attention(
    backward, save, qkv, cu_seqlens, max_seqlen, scale=None, p=0.0, seed=None, example_ids=None
):
    lengths = cu_seqlens.diff().double()
    pairs = float(lengths.square().sum()) * qkv.shape[2] * qkv.shape[3]
    once, out = _size(qkv), _size(qkv) // 3
    statistics = STATISTIC * qkv.shape[0] * qkv.shape[2]
    if not backward:
        return Cost(4 * pairs, once + out + save * statistics)
    if max_seqlen <= SHORT:
        return Cost(10 * pairs, once + 2 * out + statistics + once)
    return Cost(14 * pairs, 2 * (once + statistics) + 3 * out + 2 * statistics + once)


def _linear_gelu(backward, save, x, weight, bias):
    product = _linear(backward, x, [weight], [bias])
    pre = x.shape[0] * weight.shape[0] * x.element_size()
    return product + Cost(0, pre if backward or save else 0)


def _layernorm(backward: bool, save: bool, x: Tensor, ln_weight: Tensor, saved: int) -> Cost:
    """Of a product of x: read, normalised, written; backward: dout and what was saved, of `saved` bytes an element, to
    the product's gradient.
    """
    rows, width = x.shape[0], ln_weight.shape[0]
    once, statistics = _size(ln_weight), 2 * STATISTIC * rows
    product, out = rows * width * x.element_size(), rows * once
    if backward:
        read = out + rows * width * saved + statistics
        return Cost(12 * rows * width, read + product + 2 * once)
    return Cost(8 * rows * width, product + out + save * statistics + 2 * once)


def _linear_layernorm(
    backward, save, x, weight, bias, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, example_ids
):  # fmt: skip
    tensor, element = _size(residual), residual.element_size()
    total = _linear(backward, x, [weight], [bias])
    total += _layernorm(backward, save, x, ln_weight, element)
    if backward:  # with dropout, or another dtype, the residual's gradient is not the product's
        return total + Cost(0, tensor if p or element != x.element_size() else 0)
    return total + Cost(0, tensor + (tensor if save else 0))  # the residual; the sum before LN


def _gelu_layernorm(backward, save, x, weight, bias, ln_weight, ln_bias, eps):
    product = _linear(backward, x, [weight], [bias])
    return product + _layernorm(backward, save, x, ln_weight, x.element_size())


def _masked_cross_entropy(backward, save, x, weight, bias, labels, ignore_index, num_items):
    labelled = int((labels != ignore_index).sum())
    flops = 2 * labelled * weight.numel()
    rows = labelled * x.shape[1] * x.element_size()
    read = rows + _size(weight, bias, labels) + STATISTIC * labels.numel()
    if not backward:
        return Cost(flops, read)
    return Cost(4 * flops, read + _size(x, weight, bias))
