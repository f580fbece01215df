"""torch.compile, torch.export, jit.trace and ONNX: transformers' numbers, in few graphs, without breaks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from harness import near, seeds
from models.ecosystem import (
    HEADS,
    in_float64,
    pair,
    ragged,
    same_gradients,
    same_output,
    unlabelled,
)

SHAPES = [5, 3, 7, 1, 4, 9, 2, 6, 8, 11]  # rows; each batch has another longest text
LONG = pytest.mark.ecosystem_long


def some(*short: str) -> list:
    """The model and all heads; those not named here run in the long suite."""
    names = ["BertModel", *HEADS]
    return [name if name in short else pytest.param(name, marks=LONG) for name in names]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def ours_in(request):
    """Asserts that bertfast's operations are, or are not, in graphs; and notes the way for the table."""

    def check(graphs, expected: bool):
        names = [str(node.target) for graph in graphs for node in graph.graph.nodes]
        assert any("bertfast" in name for name in names) == expected, names
        request.node.user_properties.append(("way", "fused" if expected else "transformers"))

    return check


@pytest.mark.tool("torch.compile", "fullgraph=True: outputs and gradients of all heads")
@pytest.mark.parametrize("name", some("BertForPreTraining", "BertForSequenceClassification"))
def test_fullgraph(name, ours_in):
    theirs, ours = pair(name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    batch = ragged(name)
    exact, got = in_float64(theirs), compiled(**batch)
    if name != "BertForQuestionAnswering":  # whose loss counts no scores at padding
        same_output(got, theirs, batch, exact)
    for output in (got, theirs(**batch), exact(**batch)):
        if name == "BertModel":
            output.loss = output[1].sin().sum()
        total = output.loss if name != "BertForQuestionAnswering" else None
        real = batch["attention_mask"] != 0
        total = output.start_logits[real].square().mean() if total is None else total
        total.backward()
    same_gradients(ours, theirs, exact, least=20)
    ours_in(counter.graphs, True)
    assert counter.frame_count == 1


@pytest.mark.tool("torch.compile", "plain, over ten ragged shapes: few graphs, no break")
@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("BertModel", False),
        ("BertForMaskedLM", True),
        pytest.param("BertModel", True, marks=LONG),
        pytest.param("BertForMaskedLM", False, marks=LONG),
        pytest.param("BertForSequenceClassification", True, marks=LONG),
    ],
)
def test_ragged_shapes(name, train, ours_in):
    theirs, ours = pair(name)
    exact = in_float64(theirs)
    counter = CompileCounterWithBackend("eager" if not train else "aot_eager")
    compiled = torch.compile(ours.train(train), backend=counter)
    for seed, rows in enumerate(SHAPES):
        batch = ragged(name, rows, seed)
        with torch.set_grad_enabled(train):
            got = compiled(**batch)
            if train and name == "BertForMaskedLM":
                near("loss", got.loss, exact(**batch).loss, theirs(**batch).loss)
            else:
                same_output(got, theirs, batch, exact)
    assert counter.frame_count <= 6
    assert not counters["graph_break"], dict(counters["graph_break"])
    ours_in(counter.graphs, True)


@pytest.mark.tool("torch.compile", "LoRA over ragged shapes: few graphs, no break")
def test_lora(ours_in):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: test)")
    name, models = "BertForSequenceClassification", []
    for model in pair(name):
        seeds.restart(3)
        fields = {"r": 2, "target_modules": ["query", "dense"], "init_lora_weights": False}
        models.append(peft.get_peft_model(model, peft.LoraConfig(**fields)))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(models[1], backend=counter)
    for seed, rows in enumerate(SHAPES[:3]):
        batch = ragged(name, rows, seed)
        same_output(compiled(**batch), models[0], batch)
    assert counter.frame_count <= 6
    assert not counters["graph_break"], dict(counters["graph_break"])
    ours_in(counter.graphs, True)


@pytest.mark.tool("torch.compile", "a hooked model")
def test_compiled_transformers(ours_in):
    theirs, ours = pair("BertModel")
    for model in (theirs, ours):
        model.encoder.layer[0].output.register_forward_hook(lambda module, given, out: out * 2)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(ours, backend=counter)
    batch = ragged()
    same_output(compiled(**batch), theirs, batch)
    ours_in(counter.graphs, False)


@pytest.mark.tool("torch.compile", "model.compile() in place, gradient checkpointing inside")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_in_place(checkpointing, ours_in):
    name = "BertForSequenceClassification"
    theirs, ours = pair(name)
    counter = CompileCounterWithBackend("aot_eager")
    for model in (theirs, ours):
        model.train()
        if checkpointing:
            enable = "activation_checkpointing_enable"
            getattr(model, enable, model.gradient_checkpointing_enable)({"use_reentrant": False})
    ours.compile(backend=counter)
    exact, batch = in_float64(theirs), ragged(name)
    for model in (ours, theirs, exact):
        model(**batch).loss.backward()
    same_gradients(ours, theirs, exact, least=20)
    ours_in(counter.graphs, True)


@pytest.mark.ecosystem_long
@pytest.mark.tool("torch.compile", "inductor, in train mode")
def test_inductor(ours_in):
    from torch._inductor.compile_fx import compile_fx

    name = "BertForTokenClassification"
    theirs, ours = pair(name)
    graphs = []

    def inductor(graph, inputs):
        graphs.append(graph)
        return compile_fx(graph, inputs)

    compiled = torch.compile(ours.train(), fullgraph=True, dynamic=True, backend=inductor)
    for seed in (0, 1):
        batch, exact = ragged(name, 4, seed), in_float64(theirs)
        ours.zero_grad()
        theirs.zero_grad()
        got = compiled(**batch)
        for output in (got, theirs(**batch), exact(**batch)):
            output.loss.backward()
        same_output(got, theirs, batch, exact)
        same_gradients(ours, theirs, exact, least=20)
    ours_in(graphs, True)


@pytest.mark.tool("torch.export", "a program of dynamic shapes gives transformers' numbers")
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_export(name, ours_in):
    theirs, ours = pair(name)
    batch, other = (unlabelled(ragged(name, rows, rows)) for rows in (5, 3))
    free = torch.export.Dim.DYNAMIC
    shapes = {key: {0: free, 1: free} for key in batch}
    program = torch.export.export(ours, (), dict(batch), dynamic_shapes=shapes, strict=False)
    for inputs in (batch, other):
        same_output(program.module()(**inputs), theirs, inputs)
    ours_in([program.graph_module], False)


@pytest.mark.tool("torch.jit.trace", "a traced model gives transformers' numbers")
def test_trace(way):
    theirs, ours = pair("BertForSequenceClassification", return_dict=False)
    batch, other = (unlabelled(ragged("BertForSequenceClassification", n, n)) for n in (5, 5))
    order = ("input_ids", "attention_mask", "token_type_ids")
    given = [batch[key] for key in order]
    with way("transformers"):
        traced = torch.jit.trace(ours, given, strict=False)
    for inputs in (batch, other):
        got = traced(*(inputs[key] for key in order))[0]
        near("logits", got, in_float64(theirs)(**inputs)[0], theirs(**inputs)[0])


@pytest.mark.tool("torch.onnx", "the exported file gives transformers' numbers in onnxruntime")
@pytest.mark.parametrize("dynamo", [False, True], ids=["trace", "dynamo"])
def test_onnx(dynamo, way, tmp_path, request):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    theirs, ours = pair("BertForSequenceClassification", return_dict=False)
    batch = unlabelled(ragged("BertForSequenceClassification"))
    names, path = ["input_ids", "attention_mask", "token_type_ids"], tmp_path / "model.onnx"
    given = tuple(batch[key] for key in names)
    options = {"input_names": names, "output_names": ["logits"], "dynamo": dynamo}
    if dynamo:
        torch.onnx.export(ours, given, path, **options)
        request.node.user_properties.append(("way", "transformers"))
    else:
        with way("transformers"):
            torch.onnx.export(ours, given, path, **options)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {key: batch[key].numpy() for key in names}
    got = torch.from_numpy(session.run(["logits"], inputs)[0])
    near("logits", got, in_float64(theirs)(**batch)[0], theirs(**batch)[0])


@pytest.mark.tool("torch.fx", "FakeTensorMode")
def test_fake(way):
    from torch._subclasses.fake_tensor import FakeTensorMode

    _, ours = pair("BertModel")
    batch = ragged()
    with FakeTensorMode(allow_non_fake_inputs=True), way("transformers"):
        output = ours(**batch)
    assert output.last_hidden_state.shape == (*batch["input_ids"].shape, 48)
    assert type(output.last_hidden_state).__name__ == "FakeTensor"


@pytest.mark.tool("torch.compile", "a copy of a compiled model")
def test_copy_of_compiled(way):
    theirs, ours = pair("BertModel")
    compiled = torch.compile(ours, backend="eager")
    batch = ragged()
    compiled(**batch)
    other = copy.deepcopy(ours)
    with way("fused"):
        got = other(**batch)
    same_output(got, theirs, batch)
