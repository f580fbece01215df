"""All layers in one call of the backend cuda: what it launches, and why its operations are called one by one elsewhere.

tests/ops/test_encoder_cuda.py compares the bits.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from bertfast import BertConfig, BertModel, dispatch
from bertfast.core import encode
from bertfast.core.weights import prepack_layers
from bertfast.dispatch import decisions
from bertfast.dispatch.calls import key_of
from bertfast.models import engine
from bertfast.ops import encoder
from gpu_code import cuda_driver, nvcc
from harness.layers import (
    call_of,
    gradients_of,
    layers_of,
    one_by_one,
    stream,
    together,
    trained,
)

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())


@pytest.fixture(autouse=True)
def _watched(monkeypatch):
    """What executes kernels is a dispatch mode, under which the layers run one by one."""
    monkeypatch.setattr(encoder, "through_library", lambda: False)


def test_launches_only_the_operations_kernels():
    """In a forward five operations a layer; nothing of torch's between, but for memory."""
    weights, (x, batch) = layers_of(torch.bfloat16), stream((20, 5), torch.bfloat16)
    weights = trained(weights, (0, 1, 2), (0.0, 0.0, 0.0))
    batch, seen = batch._replace(example_ids=None), []
    with cuda_driver.emulated(execute=False) as device, dispatch.use_backend("cuda"):
        for run in (together, one_by_one):
            before = len(device.launches)
            run(weights, x, batch)
            seen.append([launch.name for launch in device.launches[before:]])
        assert not device.memory.launching()
        before = len(device.launches)
        gradients_of(together(weights, x, batch)[0], weights, x)
        backward = [launch.name for launch in device.launches[before:]]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 3 * 7
    assert sum("add_rows" in name for name in backward) == 2 * 3 - 1  # x wants none
    assert not any("multiply_by_slope" in name for name in backward)  # a product's epilogue does


def test_launches_of_a_model(monkeypatch):
    """In training one launch draws all seeds, and what follows the embeddings is the layers alone."""
    monkeypatch.setattr(engine, "_reason_of_moment", lambda: None)
    config = BertConfig(
        hidden_size=64, num_attention_heads=2, intermediate_size=128, num_hidden_layers=2
    )
    model = BertModel(config, add_pooling_layer=False).train()
    with (
        cuda_driver.emulated(execute=False) as device,
        dispatch.use_backend("cuda"),
        dispatch.record() as log,
    ):
        model(torch.ones(2, 9, dtype=torch.int64))
    assert [c.backend for c in log if c.operation == "encoder"] == ["cuda"]
    assert [n for n in device.memory.launching() if n.startswith("random")] == ["random_.from"]
    assert len(device.launches) == 1 + 2 * 7


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "chosen", ["qkv_projection", "attention", "linear_layernorm", "linear_gelu"]
)
def test_one_by_one_where_a_table_chose_another_backend(chosen, direction, monkeypatch):
    weights, (x, batch) = layers_of(torch.bfloat16, 2), stream((9, 4), torch.bfloat16)
    weights = trained(weights, (0, 1), (0.1, 0.1, 0.1))
    given = {"first_only": True, "seeds": torch.arange(6).view(2, 3)}
    calls, choose = [], dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda call: calls.append(call) or choose(call))
    reason = f"eager is chosen for {chosen}, {direction}"
    try:
        with cuda_driver.emulated(execute=False):
            with dispatch.use_backend("cuda"):
                out = one_by_one(weights, x, batch, **given)[-1]
                out.backward(torch.ones_like(out))
            keys = [key_of(c) for c in calls if (c.operation, c.direction) == (chosen, direction)]
            lines = {key.text(): LINE for key in keys}
            assert lines
            for name in lines:  # one kind of the operation's calls is enough
                decisions.take_from_run({name: LINE})
                with dispatch.record() as log:
                    assert encode.encode_layers(weights, x, batch, **given) is None
                assert [(c.backend, c.reasons) for c in log] == [("by layers", {"cuda": reason})]
            decisions.take_from_run({})
            assert encode.encode_layers(weights, x, batch, **given) is not None
    finally:
        decisions.take_from_run(None)


LINE = {"backend": "eager", "microseconds": {"eager": 1.0}, "rejected": {}}
BEYOND = {  # hidden, inner, width, heads -> the reason
    (8193, 2, 2, 1): "features 8193; the cuda backend computes 1 to 8192",
    (4, 2, 129, 1): "head_size 129; the cuda backend computes 1 to 128",
    (1, 2, 65536, 65536): "heads 65536; the cuda backend computes 1 to 65535",
}


@torch.no_grad()
@pytest.mark.parametrize("sizes", BEYOND, ids=str)
def test_sizes_that_no_kernel_takes(sizes):
    hidden, inner, width, heads = sizes
    products = [(width, hidden)] * 3 + [(hidden, width), (inner, hidden), (hidden, inner)]
    shapes = [*products, *(shape[:1] for shape in products), *[(hidden,)] * 4]
    x, starts = torch.zeros(1, hidden), torch.tensor([0, 1], dtype=torch.int32)
    with cuda_driver.emulated(execute=False), dispatch.record() as log:
        tensors = [torch.zeros(shape) for shape in shapes]
        assert encoder.encoder(x, tensors, [1e-12] * 2, starts, 1, num_heads=heads) is None
    assert log[0].reasons == {"cuda": BEYOND[sizes]}


def test_weights_that_only_the_cpu_reads():
    weights = layers_of(count=1)
    prepack_layers(weights.layers)
    with cuda_driver.emulated(execute=False), dispatch.record() as log:
        x, *rest = call_of(weights, *stream((5, 4)))
        assert encoder.encoder(x, *rest, num_heads=2) is None
    assert log[0].reasons == {
        "cuda": "some weights are prepacked or quantized, which is the cpu backend's"
    }


@pytest.fixture
def processes():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("unit", ["model", "layers"])
def test_beside_fsdp(processes, unit):
    """Weights that are gathered for a forward and let go behind it are no others' by their addresses: none is recorded.

    Nothing is launched here, as what watches memory would meet storages that FSDP frees.
    """
    config = BertConfig(
        hidden_size=64, num_attention_heads=2, intermediate_size=128, num_hidden_layers=2
    )
    ids, counts = torch.arange(1, 15).view(2, 7), []
    with cuda_driver.launching_nothing(), dispatch.use_backend("cuda"):
        for sharded in (False, True):
            model = BertModel(config, graphs="training").train()
            for part in (*(model.encoder.layer if unit == "layers" else ()), model) * sharded:
                fully_shard(part, mesh=init_device_mesh("cpu", (1,)))
            with dispatch.record() as log:
                for _ in range(3):
                    model(ids).pooler_output.square().sum().backward()
                    with torch.no_grad():
                        model(ids)
            counts.append(sum((c.direction, c.backend) == ("graph", "cuda") for c in log))
    assert counts == [4, 0]
