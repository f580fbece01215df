"""Runs every case of every operation on a module built with sanitizers: python sanitizer_driver.py MODULE [overflow].

Started by test_sanitizers.py, with the sanitizer's runtime loaded first.
"""

import importlib.machinery
import importlib.util
import pathlib
import sys

import torch

loader = importlib.machinery.ExtensionFileLoader("bertfast._cpu", sys.argv[1])
spec = importlib.util.spec_from_file_location("bertfast._cpu", sys.argv[1], loader=loader)
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
sys.modules["bertfast._cpu"] = module  # before anything of bertfast asks for it

from bertfast import dispatch, extension  # noqa: E402
from bertfast.core.batch import pack_rows  # noqa: E402
from bertfast.core.encode import encode_layers, encode_packed  # noqa: E402
from bertfast.core.weights import example_weights  # noqa: E402
from bertfast.ops import _weights  # noqa: E402
from bertfast.ops._quantized import Columns, quantized, round_weight  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from harness import CASES, make_gradient, make_inputs, public, refusal, seeds  # noqa: E402

assert extension.cpu is module
torch.set_num_threads(2)
seeds.restart()

if sys.argv[2:] == ["overflow"]:  # the sanitizer must see one row too many
    weight, buffer = torch.randn(32, 16), torch.empty(32 * 16)
    module.pack_weight(weight.data_ptr(), buffer.data_ptr(), 33, 16, 16, 0, 1)

with dispatch.use_backend("cpu"):
    for operation, cases in CASES.items():
        learns = refusal(operation, "backward", cases[0], torch.float32, "cpu") is None
        for case in cases:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                inputs = make_inputs(operation, case, dtype)
                with torch.no_grad():
                    public(operation)(**inputs)
                floating = {
                    name: value.detach().requires_grad_()  # now what backward needs is written too
                    for name, value in inputs.items()
                    if isinstance(value, torch.Tensor) and value.is_floating_point()
                }
                out = public(operation)(**{**inputs, **floating})
                if learns:
                    torch.autograd.grad(out, list(floating.values()), make_gradient(case, out))

for n, k in ((1, 1), (33, 7), (384, 65)):
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(n, k).to(dtype)
        assert torch.equal(_weights.pack(weight).unpack(), weight)
        for rows in (1, 16, 17, 300):  # turned in registers, and block by block; prepacked
            x, bias = torch.randn(rows, k).to(dtype), torch.randn(n).to(dtype)
            with torch.no_grad(), dispatch.use_backend("cpu"):
                plain = public("linear_gelu")(x, weight, bias)
                assert plain.equal(public("linear_gelu")(x, _weights.prepack(weight), bias))
                rounded = _weights.RoundedWeight(weight.float(), dtype)
                assert plain.equal(public("linear_gelu")(x, rounded, bias))
for n, k, outliers, group in ((1, 1, 0, 4), (33, 7, 2, 4), (70, 203, 3, 64)):  # in int8
    columns = Columns(torch.arange(outliers, dtype=torch.int32), group)
    weight = quantized(round_weight(torch.randn(n, k), columns), torch.float32)
    for rows in (1, 16, 17, 300):
        x, bias = torch.randn(rows, k), torch.randn(n)
        with torch.no_grad(), dispatch.use_backend("cpu"):
            assert public("linear_gelu")(x, weight, bias).isfinite().all()
bert, _ = example_weights("cpu")
for lengths in (
    [1],
    [64, 2],
    [40] * 6,
    [60] * 40,
    [0, 30, 0, 60, 64, 55, 0],
):  # together, and in groups
    batch = pack_rows([[1] * length for length in lengths], "cpu")
    with torch.no_grad(), dispatch.record() as log:
        encode_packed(bert, batch, observe=lambda index, x: x)
        encode_packed(bert, batch, first_only=True)
    assert [choice.backend for choice in log if choice.operation == "encoder"] == ["cpu", "cpu"]
    layers = [layer._replace(attention_dropout=0.1, out_dropout=0.1) for layer in bert.layers]
    drawn = torch.arange(6).view(2, 3)
    for short, recompute in ((False, ()), (True, ()), (True, layers)):  # and their backward
        learning = bert._replace(layers=layers, checkpointed=recompute)
        x = torch.randn(batch.tokens, 96, requires_grad=True)
        batch = batch._replace(example_ids=torch.arange(len(lengths)) if short else None)
        encode_layers(learning, x, batch, short, False, drawn)[0].sum().backward()
print("clean")
