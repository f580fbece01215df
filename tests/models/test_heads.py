"""The heads besides their losses: parameters, layouts, first tokens only, hooks, checkpointing, compiling."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import bertfast
from bertfast import ArgumentError, BertConfig, dispatch, extension
from bertfast.core import encode
from bertfast.models import fusion
from harness import near, seeds
from models.ecosystem import differing, gradients, in_float64, real_tokens

B, S = 4, 9
MASK = torch.tensor([[1] * 9, [0, 1, 1, 1, 0, 1, 0, 0, 0], [0] * 9, [1] * 2 + [0] * 7])
IDS = seeds.token_ids(B, S)
POOLED = ("BertForSequenceClassification", "BertForNextSentencePrediction", "BertForMultipleChoice")
HEADS = (
    *POOLED,
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
CLS = "cls.predictions"


def inputs(name, **more):
    """A batch with a hole, a row of padding and padding on the right, as the head of that name takes it."""
    given = {"input_ids": IDS, "attention_mask": MASK, **more}
    if name != "BertForMultipleChoice":
        return given
    return {key: value.view(2, 2, S) for key, value in given.items()}


def random_labels(name):
    if name == "BertForMaskedLM":
        return {"labels": torch.randint(0, 99, (B, S))}
    if name == "BertForTokenClassification":
        return {"labels": torch.randint(0, 2, (B, S))}
    if name == "BertForQuestionAnswering":
        return {
            "start_positions": torch.randint(0, S, (B,)),
            "end_positions": torch.randint(0, S, (B,)),
        }
    if name == "BertForPreTraining":
        following = {"next_sentence_label": torch.randint(0, 2, (B,))}
        return {"labels": torch.randint(0, 99, (B, S)), **following}
    return {"labels": torch.randint(0, 2, (2 if name == "BertForMultipleChoice" else B,))}


def tied(model):
    predictions, words = model.cls.predictions, model.get_input_embeddings()
    return (
        predictions.decoder.weight is words.weight and predictions.decoder.bias is predictions.bias
    )


# Parameters


def test_counts():
    with torch.device("meta"):
        pretraining = bertfast.BertForPreTraining(BertConfig())
        assert pretraining.num_parameters() == 110_106_428
        assert bertfast.BertForMaskedLM(BertConfig()).num_parameters() == 109_514_298
        three = BertConfig(num_labels=3)
        classifier = bertfast.BertForSequenceClassification(three)
        assert classifier.num_parameters() == 109_482_240 + 3 * 769
    assert tied(pretraining)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_against_transformers(head_pair, name):
    """Names, shapes and order of the state_dict; every output at real tokens; positions of the arguments."""
    theirs, ours = head_pair(name)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    right = (torch.arange(S) < torch.tensor([9, 4, 1, 6])[:, None]).long()
    given = inputs(name, attention_mask=right, token_type_ids=torch.randint(0, 3, (B, S)))
    asked = {"output_hidden_states": True}
    want, got = theirs(**given, **asked), ours(*given.values(), **asked)
    assert type(got).__name__ == type(want).__name__
    assert list(got) == list(want)
    exact = in_float64(theirs)(**given, **asked)
    near(name, *(real_tokens(output, right) for output in (got, exact, want)))
    plain = ours(**given, return_dict=False)
    assert isinstance(plain, tuple)
    assert plain[0].equal(got.to_tuple()[0])


def test_start_values(head):
    seeds.restart(0)
    model = bertfast.BertForPreTraining(
        BertConfig(vocab_size=500, hidden_size=64, num_attention_heads=2)
    )
    assert (model.cls.predictions.bias == 0).all()
    assert (model.bert.embeddings.word_embeddings.weight[0] == 0).all()
    for name, parameter in model.cls.named_parameters():
        if name.endswith("LayerNorm.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            deviation = (2 * parameter.numel()) ** -0.5  # of a deviation that so many numbers tell
            assert abs(parameter.std() / 0.02 - 1) < 5 * deviation
    assert head("BertForTokenClassification", classifier_dropout=0.25).dropout.p == 0.25
    assert head("BertForMultipleChoice", classifier_dropout=0.0).dropout.p == 0


# Layouts


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_packed_calls(head, name):
    model = head(name)
    if name == "BertForMultipleChoice":
        with pytest.raises(ArgumentError, match=r"^input_ids: expected a tensor \[batch, choices"):
            model(IDS)
        return
    want = model(**inputs(name, position_ids=(MASK.cumsum(1) - 1).clamp(0)))
    starts = F.pad(MASK.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
    got = model(IDS[MASK.bool()][None], cu_seq_lens_q=starts)
    assert list(got) == list(want)
    for mine, other in zip(got.to_tuple(), want.to_tuple(), strict=True):
        if other.shape[:2] == (B, S):
            mine, other = mine[0], other[MASK.bool()]
        assert mine.equal(other)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", POOLED)
def test_first_tokens_alone(head, name, train):
    """The last layer's output projection and feed-forward compute one row a sequence: same results and gradients."""
    model, given, labels = head(name).train(train), inputs(name), random_labels(name)
    rows, linear = [], encode.ops.linear_gelu

    def run(model, **asked):
        model.zero_grad()
        seeds.restart(8)
        output = model(**given, **labels, **asked)
        output.loss.backward()
        return output.logits, gradients(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "encode_layers", lambda *args: None)
        patch.setattr(encode.ops, "linear_gelu", lambda x, *a: rows.append(len(x)) or linear(x, *a))
        short, whole = run(model), run(model, output_hidden_states=True)
    tokens = int(MASK.sum())
    assert rows == [tokens, B, tokens, tokens]
    assert short[0].equal(whole[0])
    exact = run(in_float64(model), output_hidden_states=True)
    with dispatch.use_backend("reference"):
        eager = run(model, output_hidden_states=True)
    near("first tokens alone", short, exact, eager)
    near("all tokens", whole, exact, eager)
    if not train:
        with torch.inference_mode():
            short, whole = (
                model(**given, output_hidden_states=all_rows) for all_rows in (False, True)
            )
        assert short.logits.equal(whole.logits)


def shapes_seen(model, place, **given):
    """What a forward hook on a module of the model sees: the shapes of its outputs, and the model's output."""
    seen = []
    hook = model.get_submodule(place).register_forward_hook(
        lambda _, i, out: seen.append(
            (out[0] if isinstance(out, tuple) else getattr(out, "last_hidden_state", out)).shape
        )
    )
    output = model(**given)
    hook.remove()
    return seen, output


@torch.no_grad()
def test_who_looks_sees_what_transformers_shows(head_pair):
    """Also on a head's own modules; what lies beyond the hook stays fused."""
    cases = [(POOLED[0], "bert"), (POOLED[0], "bert.encoder.layer.1"), (POOLED[0], "classifier")]
    cases += [("BertForMaskedLM", "cls"), ("BertForMaskedLM", f"{CLS}.decoder")]
    cases += [("BertForTokenClassification", "classifier")]
    right = (torch.arange(S) < torch.tensor([9, 4, 1, 6])[:, None]).long()
    for name, place in cases:
        theirs, ours = head_pair(name)
        given = inputs(name, attention_mask=right, **random_labels(name))
        (want, expected), (seen, got) = (
            shapes_seen(model, place, **given) for model in (theirs, ours)
        )
        assert seen == want, place
        fused = place in ("bert", "cls", f"{CLS}.decoder") or name == "BertForTokenClassification"
        with dispatch.record() as log:
            shapes_seen(ours, place, **given)
        assert any(choice.operation in ("attention", "encoder") for choice in log) == (
            fused or place == "classifier"
        )
        outputs = (got, in_float64(theirs)(**given), expected)
        near(place, *(real_tokens({"logits": o.logits}, right) for o in outputs))


@torch.no_grad()
def test_other_activations(head_pair):
    for act in ("relu", "gelu_new"):
        theirs, ours = head_pair("BertForMaskedLM", hidden_act=act)
        want, got = theirs(IDS, labels=IDS), ours(IDS, labels=IDS, output_logits=True)
        near(act, got, in_float64(theirs)(IDS, labels=IDS), want)
        assert ours(IDS, labels=IDS).loss.equal(got.loss)


@pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))
def test_prepack(head):
    model = head("BertForPreTraining")
    given = inputs("BertForPreTraining", **random_labels("BertForPreTraining"))
    with torch.no_grad():
        want = model(**given).loss
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.prepack().prepacked
    got = model(**given)
    assert got.loss.equal(want)
    assert all(model.state_dict()[key].equal(value) for key, value in before.items())
    assert not model.unpack().prepacked
    model.prepack().train()
    assert not model.prepacked


# Sizes


def test_resize_and_learn(head):
    """After resizing a model learns, its packed weights are new, and a padding row that went takes no gradient."""
    model = head("BertForMaskedLM", pad_token_id=98)
    with torch.no_grad():
        model(IDS % 90, labels=IDS % 90)
    model.resize_token_embeddings(91)
    assert model.get_input_embeddings().padding_idx is None
    loss = model(IDS % 91, labels=IDS % 91).loss
    loss.backward()
    assert model.get_input_embeddings().weight.grad.shape == (91, 48)
    with torch.no_grad():
        assert model(IDS % 91, labels=IDS % 91).loss.equal(loss)


# Gradient checkpointing


@pytest.mark.parametrize("option", ["reentrant", "context", "one call"])
@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForSequenceClassification"])
def test_gradient_checkpointing(head, name, option, monkeypatch):
    """The same dropout the second time, so the same gradients; each layer runs twice: in one call for all, or entered
    on the packed stream, where the caller's checkpoint does more than torch's, or something stands in a layer."""
    model = head(name, num_hidden_layers=3).train()
    given, results, calls = {**inputs(name), **random_labels(name)}, [], []
    asked, expected = {"use_reentrant": option == "reentrant"}, 0 if option == "one call" else 6
    if option == "context":
        asked["context_fn"] = torch.utils.checkpoint.noop_context_fn
    if option == "reentrant":
        monkeypatch.setattr(encode, "encode_layers", lambda *args: None)
    layer_view = fusion.layer_view
    monkeypatch.setattr(fusion, "layer_view", lambda layer: calls.append(1) or layer_view(layer))
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable(asked)
        model.zero_grad()
        seeds.restart(6)
        loss = model(**given).loss
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(calls) == expected
    for got, want in zip(*results, strict=True):
        assert got.equal(want)
    model.eval()
    model(**given).loss.backward()
    model.train().gradient_checkpointing_disable()
    model(**given).loss.backward()
    assert len(calls) == expected


# torch.compile


@pytest.mark.parametrize("name", ["BertForMaskedLM", POOLED[0], "BertForQuestionAnswering"])
def test_compile(head, name):
    model = head(name)
    model.config.problem_type = "single_label_classification"
    given = {**inputs(name), **random_labels(name)}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for run in (compiled, model):
        model.zero_grad()
        output = run(**given)
        output.loss.backward()
        found.append({**output, **gradients(model)})
    assert not differing(*found)
    torch._dynamo.reset()


def test_compile_checkpointed(head):
    """Seeds are drawn before the layers, so that dropout is the same the second time."""
    model = head("BertForMaskedLM").train()
    model.gradient_checkpointing_enable()
    given = {**inputs("BertForMaskedLM"), **random_labels("BertForMaskedLM")}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for run in (compiled, model):
        model.zero_grad()
        seeds.restart(6)
        loss = run(**given).loss
        loss.backward()
        found.append({"loss": loss, **gradients(model)})
    assert not differing(*found)
    torch._dynamo.reset()
