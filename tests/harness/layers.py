"""All layers of a small encoder, in one call and one by one: what tests of `ops.encoder` compare."""

from __future__ import annotations

import torch

from bertfast import dispatch
from bertfast.core import encode
from bertfast.core.batch import pack_rows
from bertfast.core.encode import Tokens
from bertfast.core.weights import BertWeights, example_weights

from . import seeds


def layers_of(dtype=torch.float32, count=3, device="cpu", hidden=96) -> BertWeights:
    """An encoder whose attention has another width than its hidden states, as after pruning of heads."""
    weights, _ = example_weights(device, hidden, layers=count)
    return weights._replace(layers=[_narrowed(layer, dtype) for layer in weights.layers])


def _narrowed(layer, dtype):
    def cut(part, rows=None, columns=None):
        tensors = part.weight[:rows, :columns] if part.weight.ndim == 2 else part.weight, part.bias
        tensors = tensors[0], tensors[1][:rows]
        return part._replace(weight=tensors[0].to(dtype).contiguous(), bias=tensors[1].to(dtype))

    parts = {name: cut(getattr(layer, name), rows=64) for name in ("query", "key", "value")}
    parts["out"] = cut(layer.out, columns=64)
    parts |= {name: cut(getattr(layer, name)) for name in ("out_norm", "inner", "outer", "norm")}
    return layer._replace(**parts, num_heads=2)


def stream(lengths, dtype=torch.float32, device="cpu", hidden=96):
    """(hidden states [T,hidden], the batch)."""
    batch = pack_rows([[1] * length for length in lengths], device)
    ids = torch.arange(2 * len(lengths), 0, -1) * 0xF1234567  # of the examples
    x = torch.randn(batch.tokens, hidden, generator=seeds.generator(1)).to(device, dtype)
    return x, batch._replace(example_ids=ids.to(device)[::2])


def together(weights, x, batch, first_only=False, states=False, seeds=None):
    """By the operation `encoder`."""
    found = encode.encode_layers(weights, x, batch, first_only, states, seeds)
    assert found is not None
    return found


def one_by_one(weights, x, batch, first_only=False, seeds=None):
    """Each layer's output."""
    found = []
    for index, layer in enumerate(weights.layers):
        last = index + 1 == len(weights.layers)
        own = (None,) * 3 if seeds is None else seeds[index].split(1)
        x = encode.encode_layer(layer, x, batch, own, first_only and last)
        found.append(x)
    return found


_WHOLE = tuple(range(8))
TRAINING = {  # name -> (first_only, dropout, layers trained, x too, fields of the lowest of these layers)
    "all": (False, (0.0, 0.0, 0.0), (0, 1, 2), True, _WHOLE),
    "dropout": (False, (0.1, 0.2, 0.3), (0, 1, 2), True, _WHOLE),
    "first rows, dropout": (True, (0.1, 0.2, 0.3), (0, 1, 2), True, _WHOLE),
    "no dropout of attention": (True, (0.0, 0.2, 0.0), (0, 1, 2), True, _WHOLE),
    "layers above": (False, (0.1, 0.1, 0.1), (1, 2), False, _WHOLE),
    "the last layer": (True, (0.1, 0.1, 0.1), (2,), False, _WHOLE),
    "the first layer": (False, (0.1, 0.1, 0.1), (0,), False, _WHOLE),
    "x alone": (False, (0.1, 0.1, 0.1), (), True, _WHOLE),
    "from the key on": (False, (0.1, 0.1, 0.1), (1, 2), False, (1,)),
    "from the LN behind out": (False, (0.1, 0.1, 0.1), (1, 2), False, (4,)),
    "from inner on": (True, (0.1, 0.1, 0.1), (2,), False, (5,)),
    "the last LN": (False, (0.1, 0.1, 0.1), (2,), False, (7,)),
}


def trained(weights, layers, dropout, lowest=_WHOLE):
    """The same weights, of which those of some layers want a gradient; of the lowest of these, those of some fields."""

    def part(wanted, value):
        leaves = (t.detach().requires_grad_(wanted) for t in value[:2])
        return value._replace(weight=next(leaves), bias=next(leaves))

    views = []
    for index, layer in enumerate(weights.layers):
        wanted = () if index not in layers else lowest if index == min(layers) else _WHOLE
        parts = (part(place in wanted, value) for place, value in enumerate(layer[:8]))
        views.append(type(layer)(*parts, *layer[8:10], *dropout))
    return weights._replace(layers=views)


def gradients_of(out, weights, x):
    gradient = torch.randn(out.shape, generator=seeds.generator(3))
    out.backward(gradient.to(out))
    parts = [t for layer in weights.layers for part in layer[:8] for t in part[:2]]
    return [None if t.grad is None else t.grad.clone() for t in (x, *parts)]


def differentiate(dtype):
    """Forward and backward in one call, of first rows: whatever that launches."""
    x, batch = stream((5, 0, 2), dtype)
    weights, x = trained(layers_of(dtype, 1), (0,), (0.0, 0.0, 0.0)), x.requires_grad_()
    out, _ = together(weights, x, batch, first_only=True)
    out.backward(torch.ones_like(out))


def padded(layers=1, hidden=32, places=None, **options):
    """A padded batch in one call, without a gradient: whatever that launches."""
    weights, ids = example_weights("cpu", hidden, 1, layers)[0], torch.ones(2, 8, dtype=torch.int64)
    tokens = Tokens(ids, ids, None, None) if places is None else places
    with torch.no_grad():
        found = encode.encode_padded(weights, tokens, **options)
    assert found is not None
    return found


def both_ways(weights, x, batch, kind, recompute=False):
    """(result, gradients) in one call, and layer by layer."""
    first_only, dropout, layers, of_x, lowest = TRAINING[kind]
    seeds = torch.arange(9, device=x.device).view(3, 3) * 977 + 5 if any(dropout) else None
    found = []
    for run in (together, one_by_one):
        copy, start = trained(weights, layers, dropout, lowest), x.clone()
        start.requires_grad_(of_x)
        if run is together and recompute:
            copy = copy._replace(checkpointed=copy.layers)
        with dispatch.record() as log:
            results = run(copy, start, batch, first_only=first_only, seeds=seeds)
            out = results[0] if run is together else results[-1]
            found.append((out, gradients_of(out, copy, start)))
        if run is together:
            ran = [(c.operation, c.direction) for c in log]
            assert ran == [("encoder", "forward"), ("encoder", "backward")]
    return found


def same_bits(one, other):
    (out, grads), (expected, right) = one, other
    assert torch.equal(out, expected)
    assert [g is None for g in grads] == [g is None for g in right]
    for index, (got, want) in enumerate(zip(grads, right, strict=True)):
        assert got is None or torch.equal(got, want), f"gradient {index}"


def tensors_of(weights):
    """In the order of the operation: products, their biases, LN; of all layers one after the other."""
    parts = [[layer[i] for layer in weights.layers] for i in range(8)]
    products = [parts[i] for i in (0, 1, 2, 3, 5, 6)]
    columns = [[p[j] for p in part] for j in (0, 1) for part in products]
    columns += [[p[j] for p in part] for part in (parts[4], parts[7]) for j in (0, 1)]
    return [t for column in columns for t in column]


def call_of(weights, x, batch):
    """The first arguments of `encoder`."""
    return (
        x,
        tensors_of(weights),
        [1e-12] * 2 * len(weights.layers),
        batch.cu_seqlens,
        batch.max_seqlen,
    )
