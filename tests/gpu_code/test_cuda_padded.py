"""A padded batch whose mask only the GPU reads, on the emulated card: its rows are those of the packed batch."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import BertConfig
from transformers.models.bert import modeling_bert

import bertfast
from bertfast import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    dispatch,
)
from bertfast.core import encode
from bertfast.dispatch import decisions
from bertfast.models import engine
from bertfast.ops import _graphs
from gpu_code import cublaslt, cuda_driver, nvcc, recording
from gpu_code.recording import MODEL, poison
from harness import near, seeds

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())


@pytest.fixture
def device(request, monkeypatch):
    with torch.no_grad(), recording.card(request, monkeypatch) as card:
        yield card


def _model(kind=BertModel, dtype=torch.bfloat16, **options):
    seeds.restart(3)
    return kind(BertConfig(**{**MODEL, **options})).to(dtype).eval()


RAGGED = (7, 3, 0, 1, 5)


def _batch(lengths=RAGGED, length=7, left=False):
    """Ids, mask and segments; ids of padding are outside of the table."""
    ids = torch.randint(1, 50, (len(lengths), length), generator=seeds.generator(len(lengths)))
    columns, counts = torch.arange(length), torch.tensor(lengths)[:, None]
    mask = columns >= length - counts if left else columns < counts
    return {
        "input_ids": ids.where(mask, 10**6),
        "attention_mask": mask.long(),
        "token_type_ids": (columns * 2 > counts).long().expand(ids.shape) * mask,
    }


def _packed(monkeypatch, run):
    """What comes out where the batch is packed first, as on a CPU."""
    with monkeypatch.context() as patch, bertfast.graphs(False):
        patch.setattr(engine, "encode_padded", lambda *_: None)
        return run()


def _unasked(monkeypatch):
    """Nothing may ask how many tokens are real."""

    def refuse(*_):
        raise AssertionError("the mask was read")

    monkeypatch.setattr(engine, "make_batch", refuse)


def _same(found, expected):
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_outputs(device, monkeypatch, dtype, left):
    """Bits of the packed batch, as every product here has one way to cut its sums; zeros at padding and for a row
    without tokens. What lies beyond the real rows is NaN.
    """
    model, batch = _model(dtype=dtype), _batch(left=left)
    with dispatch.batch_invariant():
        expected = _packed(monkeypatch, lambda: model(**batch))
        _unasked(monkeypatch)
        for graphs in (False, True, True, True):
            with bertfast.graphs(graphs):
                _same(model(**batch), expected)
            poison(device)
    assert not expected.last_hidden_state[batch["attention_mask"] == 0].any()
    assert not expected.pooler_output[RAGGED.index(0)].any()


def _replayed(model, batch):
    with dispatch.record() as log:
        output = model(**batch)
    return output, any(choice.direction == "graph" and choice.backend for choice in log)


@pytest.mark.parametrize(
    "device", [{"order": order} for order in ("forward", "reversed", "shuffled")], indirect=True
)
def test_one_graph_for_every_mask(device, monkeypatch):
    """Recorded of tokens that are all real; other masks, other numbers of tokens, none at all, no arguments but ids."""
    model = _model()
    with dispatch.batch_invariant():
        model.capture([(3, 7)])
        recorded = list(_graphs._CAPTURED)
        poison(device)
        for lengths in ((7, 7, 7), (1, 0, 0), (0, 7, 3), (0, 0, 0), (2, 2, 2)):
            batch = _batch(lengths)
            launched = len(device.launches)
            found, replay = _replayed(model, batch)
            assert replay
            assert len(device.launches) - launched == 1 + 1 + 2 * 7 + 2 + 1  # pooler
            _same(found, _packed(monkeypatch, lambda batch=batch: model(**batch)))
        ids = _batch((7, 7, 7))["input_ids"]
        expected = _packed(monkeypatch, lambda: model(ids))
        for given in ({}, {"attention_mask": torch.ones(3, 7)}, {"token_type_ids": ids * 0}):
            found, replay = _replayed(model, {"input_ids": ids.int(), **given})
            assert replay
            _same(found, expected)
    assert list(_graphs._CAPTURED) == recorded


def test_places_of_tokens(device, monkeypatch):
    """position_ids for each place or for all rows, which no graph without them serves; segments for all rows."""
    model, batch = _model(), _batch((7, 2))
    batch["token_type_ids"] = torch.tensor([[0, 1, 0, 1, 1, 0, 1]])
    positions = torch.arange(20, 27)[None]
    with dispatch.batch_invariant():
        for given in (positions, positions - 10, torch.cat((positions, positions.flip(1)))):
            expected = _packed(monkeypatch, lambda given=given: model(**batch, position_ids=given))
            for _ in range(2):
                _same(model(**batch, position_ids=given), expected)
        assert _replayed(model, {**batch, "position_ids": positions})[1]
        assert not _replayed(model, batch)[1]


def test_long_rows(device, monkeypatch):
    """More columns than a block packs at once, real ones on both sides of its end; as many places before a row."""
    options = {"num_hidden_layers": 1, "max_position_embeddings": 1100}
    model = _model(**options)
    mask = torch.zeros(3, 1100, dtype=torch.int64)
    mask[0, 3] = mask[1, 1020:1030] = mask[2, 1023] = mask[2, 1099] = 1
    ids = torch.randint(1, 50, mask.shape, generator=seeds.generator(1))
    with dispatch.batch_invariant():
        expected = _packed(monkeypatch, lambda: model(ids, mask))
        _unasked(monkeypatch)
        _same(model(ids, mask), expected)


@pytest.mark.parametrize(
    "kind",
    [
        BertForSequenceClassification,
        BertForNextSentencePrediction,
        BertForMultipleChoice,
        BertForTokenClassification,
        BertForQuestionAnswering,
    ],
)
def test_heads(device, monkeypatch, kind):
    model, batch = _model(kind), _batch((7, 3, 0, 1))
    if kind is BertForMultipleChoice:
        batch = {name: tensor.view(2, 2, 7) for name, tensor in batch.items()}
    with dispatch.batch_invariant():
        expected = _packed(monkeypatch, lambda: model(**batch))
        _unasked(monkeypatch)
        for _ in range(3):
            _same(model(**batch), expected)


def test_a_head_that_drops(device):
    """By the positions of real tokens in each text, whatever the batch, as its `bert` would."""
    model, batch = _model(BertForTokenClassification), _batch((3, 7))
    model.dropout.train()
    numbers = torch.tensor([9, 4])
    with dispatch.batch_invariant():
        seeds.restart(1)
        both = model(**batch, example_ids=numbers).logits
        seeds.restart(1)
        alone = model(**{name: t[1:] for name, t in batch.items()}, example_ids=numbers[1:]).logits
    assert torch.equal(both[1], alone[0])


def test_a_head_that_learns(device, monkeypatch):
    """On a frozen encoder, its loss outside: gradients of real tokens alone."""
    model, batch = _model(BertForTokenClassification), _batch((3, 7))
    model.bert.requires_grad_(False)
    rows = model.bert(**batch).last_hidden_state[batch["attention_mask"].bool()]
    leaves = [parameter.detach().clone() for parameter in model.classifier.parameters()]

    def gradients(dtype):
        weight, bias = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        logits = torch.nn.functional.linear(rows.to(dtype), weight, bias)
        return torch.autograd.grad(logits.square().sum(), (weight, bias))

    _unasked(monkeypatch)
    with torch.enable_grad():
        logits = model(**batch).logits
        found = torch.autograd.grad(logits.square().sum(), list(model.classifier.parameters()))
        near("gradients", found, gradients(torch.float64), gradients(torch.bfloat16))


def test_sums_cut_by_the_shape(device, monkeypatch):
    """Bits may depend on the shape here, which does not make them less near."""
    model = _model(dtype=torch.float32, intermediate_size=4096, num_hidden_layers=1)
    batch = _batch((3, 0, 5), 32)  # two tiles of rows, where packed they are one
    real = batch["attention_mask"].bool()
    found = model(**batch).last_hidden_state[real]
    assert not torch.equal(found, _packed(monkeypatch, lambda: model(**batch))[0][real])

    def theirs(dtype):
        given = {**batch, "input_ids": batch["input_ids"] * real}
        return modeling_bert.BertModel.forward(model.to(dtype), **given).last_hidden_state[real]

    with _disable_current_modes():
        near("rows", found, theirs(torch.float64), theirs(torch.float32))


def test_rows_of_odd_bytes(device, monkeypatch):
    """No multiple of 16; a single token; a single text of one column."""
    model = _model(hidden_size=36, intermediate_size=70)
    for lengths, length in ((RAGGED, 7), ((1,), 1), ((1, 0), 1)):
        batch = _batch(lengths, length)
        with dispatch.batch_invariant():
            expected = _packed(monkeypatch, lambda batch=batch: model(**batch))
            for _ in range(2):
                _same(model(**batch), expected)


def test_masks_of_any_kind(device):
    model, batch = _model(), _batch((3, 7))
    expected, mask = model(**batch), batch["attention_mask"]
    wide = torch.stack((mask, 1 - mask), 2)[:, :, 0]  # rows and columns that lie apart
    for other in (mask.bool(), mask.to(torch.uint8) * 4, mask.float() / 2, wide):
        for _ in range(2):
            _same(model(**{**batch, "attention_mask": other}), expected)
    with torch.inference_mode():
        _same(model(**batch), expected)


def test_what_is_packed(device, monkeypatch):
    """Where the number of real tokens, or what is between the layers, is wanted; where it cannot be this call."""
    asked = []
    monkeypatch.setattr(
        engine, "make_batch", lambda *args, old=engine.make_batch: asked.append(1) or old(*args)
    )
    batch, model, names = _batch((7, 3)), _model(), _model(BertForTokenClassification)
    labels = torch.zeros(2, 7, dtype=torch.int64)
    embedded = {**batch, "inputs_embeds": torch.randn(2, 7, 64, dtype=torch.bfloat16)}
    del embedded["input_ids"]
    outputs = (
        lambda: model(**batch, output_hidden_states=True),
        lambda: model(**batch, check_finite=True),
        lambda: model(**embedded),
        lambda: names(**batch, labels=labels),
        lambda: _model(BertForMaskedLM)(**batch),
    )
    for run in (lambda: model(**batch), lambda: names(**batch)):
        assert run()
    assert not asked
    for run in outputs:
        asked.clear()
        assert run()
        assert asked == [1]


@pytest.mark.parametrize("device", [{"execute": False}], indirect=True)
def test_what_another_backend_is_for(device, monkeypatch):
    model, batch = _model(), _batch((7, 3))
    tokens = encode.Tokens(batch["input_ids"], None, None, None)
    weights = model.view()
    assert encode.encode_padded(weights, tokens) is not None
    with dispatch.use_backend("eager"):
        assert encode.encode_padded(weights, tokens) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert encode.encode_padded(weights, tokens) is None
    with torch.enable_grad():
        assert encode.encode_padded(weights, tokens) is None
    assert encode.encode_padded(model.train().view(), tokens) is None
    wide = torch.zeros(8, 1025, dtype=torch.int64)
    assert encode.encode_padded(weights, tokens._replace(input_ids=wide[:0])) is None
    elsewhere = weights.embeddings._replace(position=weights.embeddings.position.float())
    assert encode.encode_padded(weights._replace(embeddings=elsewhere), tokens) is None


@pytest.mark.parametrize(
    ("operation", "name", "reason"),
    [
        ("embedding", "triton", "triton is chosen for embedding, forward"),
        ("attention", "triton", "triton is chosen for attention, forward"),
        ("qkv_projection", "cuda:cublaslt", "cuBLASLt computes products of all rows"),
    ],
)
@pytest.mark.parametrize("device", [{"execute": False}], indirect=True)
def test_a_table(device, monkeypatch, operation, name, reason):
    """That sends a part elsewhere; why the batch is packed is told."""
    tokens = encode.Tokens(_batch()["input_ids"], None, None, None)
    monkeypatch.setattr(decisions, "knows", lambda device: True)
    weights = _model().view()
    with cublaslt.present(device), dispatch.use_backend("auto"), dispatch.record() as log:
        monkeypatch.setattr(dispatch, "chosen_on_gpu", lambda call: "cuda")
        assert encode.encode_padded(weights, tokens) is not None
        monkeypatch.setattr(
            dispatch, "chosen_on_gpu", lambda call: name if call.operation == operation else "cuda"
        )
        assert encode.encode_padded(weights, tokens) is None
    assert log[-1] == dispatch.Choice("encoder", "padded", None, {"cuda": reason})


@pytest.mark.parametrize("device", [{"execute": False}], indirect=True)
def test_large_batches(device, monkeypatch):
    """Are packed, unless a graph was asked for by name; another model's does not count."""
    models = [_model(max_position_embeddings=1100) for _ in range(2)]
    tokens = encode.Tokens(torch.ones(8, 1025, dtype=torch.int64), None, None, None)
    assert encode.encode_padded(models[0].view(), tokens) is None
    models[0].capture([tokens.input_ids.shape])
    assert encode.encode_padded(models[0].view(), tokens) is not None
    assert encode.encode_padded(models[1].view(), tokens) is None


def test_inside_the_callers_own_recording(device):
    """With a mask, too: nothing asks the GPU how many tokens are real."""
    model, runtime = _model(), cuda_driver.runtime()
    handle, graph = ctypes.c_void_p(cuda_driver.STREAM), ctypes.c_void_p()
    tokens = encode.Tokens(_batch()["input_ids"], _batch()["attention_mask"].bool(), None, None)
    encode.encode_padded(model.view(), tokens)
    launched = len(device.launches)
    large = encode.Tokens(torch.ones(8, 1025, dtype=torch.int64), None, None, None)
    assert encode.encode_padded(model.view(), large) is None
    assert runtime.cudaStreamBeginCapture(handle, 0) == 0
    try:
        assert encode.encode_padded(model.view(), tokens) is not None
        assert encode.encode_padded(model.view(), large) is not None  # which could not be packed
    finally:
        assert runtime.cudaStreamEndCapture(handle, ctypes.byref(graph)) == 0
    assert len(device.launches) == launched
    assert not _graphs._CAPTURED
    assert runtime.cudaGraphDestroy(graph) == 0


def test_an_id_outside_the_table(device):
    """Its row is NaN, as `embedding` has it; the other texts' are as they were."""
    model, batch = _model(), _batch((7, 3))
    expected = model(**batch).last_hidden_state
    batch["input_ids"][0, 2] = 50
    for _ in range(2):
        found = model(**batch).last_hidden_state
        assert found[0].isnan().all()
        assert torch.equal(found[1], expected[1])
