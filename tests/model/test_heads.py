"""The heads besides their losses: parameters, layouts, first tokens only, ties, resizing, checkpointing, compiling."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

import bertfast
from bertfast import ArgumentError, BertConfig, ConfigError, extension

B, S = 4, 9
MASK = torch.tensor([[1] * 9, [0, 1, 1, 1, 0, 1, 0, 0, 0], [0] * 9, [1] * 2 + [0] * 7])
IDS = torch.randint(1, 99, (B, S))
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
        pretraining = bertfast.BertForPreTraining(BertConfig.base())
        assert pretraining.num_parameters() == 110_106_428
        assert bertfast.BertForMaskedLM(BertConfig.base()).num_parameters() == 109_514_298
        three = BertConfig.base(num_labels=3)
        classifier = bertfast.BertForSequenceClassification(three)
        assert classifier.num_parameters() == 109_482_240 + 3 * 769
    assert tied(pretraining)
    untied = BertConfig.base(tie_word_embeddings=False)
    with torch.device("meta"):
        assert bertfast.BertForMaskedLM(untied).num_parameters() == 109_514_298 + 30522 * 768


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
    asked = {"output_hidden_states": True, "output_attentions": True}
    want, got = theirs(**given, **asked), ours(*given.values(), **asked)
    assert type(got).__name__ == type(want).__name__
    assert list(got) == list(want)
    real = right.bool()
    for a, b in zip(got.to_tuple(), want.to_tuple(), strict=True):
        for mine, other in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
            assert mine.shape == other.shape
            if mine.shape[:2] == (B, S):
                mine, other = mine[real], other[real]
            if mine.shape[-2:] == (S, S):  # attention: padding asks as well there
                mine, other = (x.transpose(1, 2)[real] for x in (mine, other))
            assert (mine - other).abs().max() < 2e-5 * max(1, other.abs().max())
    plain = ours(**given, return_dict=False)
    assert isinstance(plain, tuple)
    torch.testing.assert_close(plain[0], got.to_tuple()[0])


def test_start_values(head):
    torch.manual_seed(0)
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
            assert abs(parameter.std() / 0.02 - 1) < 0.2
    assert head("BertForTokenClassification", classifier_dropout=0.25).dropout.p == 0.25
    assert head("BertForMultipleChoice", classifier_dropout=0.0).dropout.p == 0
    with pytest.raises(ConfigError, match="num_labels: expected 2"):
        head("BertForQuestionAnswering", num_labels=3)


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
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", POOLED)
def test_first_tokens_alone(head, name, train):
    """The last layer's output projection and feed-forward compute one row a sequence: same results and gradients."""
    model, given, labels = head(name).train(train), inputs(name), random_labels(name)
    rows, results = [], []
    linear = bertfast.model.ops.linear_gelu
    for asked in ({}, {"output_hidden_states": True}):
        model.zero_grad()
        torch.manual_seed(8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                bertfast.model.ops,
                "linear_gelu",
                lambda x, *a: rows.append(len(x)) or linear(x, *a),
            )
            output = model(**given, **labels, **asked)
        output.loss.backward()
        grads = [p.grad for p in model.parameters()]
        results.append((output.logits, *[torch.zeros(()) if g is None else g for g in grads]))
    tokens = int(MASK.sum())
    assert rows == [tokens, B, tokens, tokens]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(
            got, want, rtol=1e-5, atol=1e-5 * max(1.0, float(want.detach().abs().max()))
        )
    if not train:
        with torch.inference_mode():
            short, whole = (
                model(**given, output_hidden_states=all_rows) for all_rows in (False, True)
            )
        torch.testing.assert_close(short.logits, whole.logits, rtol=1e-6, atol=1e-6)


def shapes_seen(model, place, **given):
    """What a forward hook on a module of the model sees: the shapes of its outputs, and the model's output."""
    seen = []
    hook = model.get_submodule(place).register_forward_hook(
        lambda _, i, out: seen.append(getattr(out, "last_hidden_state", out).shape)
    )
    output = model(**given)
    hook.remove()
    return seen, output


@torch.no_grad()
def test_who_looks_gets_everything(head):
    """A hook sees all that it would see in transformers (inside `bert`: the stream); results stay."""
    name, tokens = POOLED[0], int(MASK.sum())
    model, given = head(name), inputs(name)
    want = model(**given).logits
    for place, shape in (
        ("bert", (B, S, 48)),
        ("bert.encoder.layer.1", (tokens, 48)),
        ("bert.encoder.layer.1.output.dense", (tokens, 48)),
        ("bert.pooler.dense", (B, 48)),
        ("classifier", (B, 2)),
    ):
        seen, output = shapes_seen(model, place, **given)
        assert seen == [shape], place
        torch.testing.assert_close(output.logits, want)
    model.bert.register_forward_hook(lambda _, i, out: setattr(out, "pooler_output", -out[1]))
    assert (model(**given, return_dict=False)[0] - want).abs().max() > 0.1
    model = head("BertForMaskedLM")
    labels = torch.where(torch.rand(B, S) < 0.5, IDS, -100)
    want = model(**given, labels=labels).loss
    count = int((labels[MASK.bool()] != -100).sum())
    for place, shape in (("cls", (tokens, 99)), (f"{CLS}.decoder", (count, 99))):
        seen, output = shapes_seen(model, place, **given, labels=labels)
        assert seen == [shape], place
        torch.testing.assert_close(output.loss, want)
        assert output.logits is None


@torch.no_grad()
def test_other_activations(head_pair):
    for act in ("relu", "gelu_new"):
        theirs, ours = head_pair("BertForMaskedLM", hidden_act=act)
        want, got = theirs(IDS, labels=IDS), ours(IDS, labels=IDS, output_logits=True)
        torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(IDS, labels=IDS).loss, want.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))
def test_freeze(head):
    model = head("BertForPreTraining")
    given = inputs("BertForPreTraining", **random_labels("BertForPreTraining"))
    with torch.no_grad():
        want = model(**given).loss
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.freeze().frozen
    got = model(**given)
    assert got.loss.equal(want)
    assert all(model.state_dict()[key].equal(value) for key, value in before.items())
    assert not model.unfreeze().frozen
    model.freeze().train()
    assert not model.frozen


def test_frozen_words_are_not_packed_twice(head):
    """In eval mode without grad the transform and the decoder are packed once, and again when they change."""
    model = head("BertForMaskedLM")
    given = inputs("BertForMaskedLM", **random_labels("BertForMaskedLM"))
    with torch.no_grad():
        first = model(**given).loss
        assert model(**given).loss.equal(first)
        model.bert.embeddings.word_embeddings.weight.data.mul_(0.5)
        changed = model(**given).loss
        model.bert._packed.clear()
        assert model(**given).loss.equal(changed)
    assert not changed.equal(first)


# Ties and sizes


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_ties_hold(head, name, tmp_path):
    model = head(name)
    assert tied(model)
    for moved in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model).to(torch.float64),
        copy.deepcopy(model).to("meta"),
        copy.deepcopy(model).to("meta").to_empty(device="cpu"),
    ):
        assert tied(moved)
    other = head(name)
    other.load_state_dict(model.state_dict(), assign=True)
    assert tied(other)
    torch.save(model.state_dict(), tmp_path / "weights")
    other.load_state_dict(torch.load(tmp_path / "weights"), assign=True)
    assert tied(other)
    other.set_input_embeddings(torch.nn.Embedding(99, 48))
    assert tied(other)
    untied = head(name, tie_word_embeddings=False)
    assert not tied(untied)
    assert untied.cls.predictions.decoder.bias is untied.cls.predictions.bias
    other.set_output_embeddings(torch.nn.Linear(48, 99))
    assert other.cls.predictions.bias is other.get_output_embeddings().bias


@pytest.mark.parametrize("tie", [True, False])
@torch.no_grad()
def test_resize(head_pair, tie):
    """Sizes, ties, old rows and biases as transformers' own; new rows lie where its new rows lie."""
    theirs, ours = head_pair("BertForMaskedLM", tie_word_embeddings=tie)
    parameter = ours.get_input_embeddings().weight
    old, spread = parameter.clone(), 1e-3
    for asked in (
        {"new_num_tokens": 103},
        {"pad_to_multiple_of": 16},
        {"new_num_tokens": 60},
        {"new_num_tokens": 70, "mean_resizing": False},
        {},
    ):
        for model in (theirs, ours):
            words, decoder = model.resize_token_embeddings(**asked), model.cls.predictions.decoder
            assert words is model.get_input_embeddings()
            assert decoder.bias is model.cls.predictions.bias
            assert (decoder.weight is words.weight) == tie
        want, got = theirs.state_dict(), ours.state_dict()
        assert [v.shape for v in got.values()] == [v.shape for v in want.values()]
        assert ours.config.vocab_size == theirs.config.vocab_size == words.num_embeddings
        assert decoder.out_features == words.num_embeddings
        spread = 0.3 if "mean_resizing" in asked else spread
        for name in (f"{CLS}.bias", f"{CLS}.decoder.weight"):
            assert (got[name] - want[name]).abs().max() <= spread, name
        assert ours(IDS % 60).logits.shape == (B, S, words.num_embeddings)
        assert words.weight is parameter
        assert words.weight[:60].equal(old[:60])
    new = parameter[60:]
    assert 0.01 < new.std() < 0.03  # initializer_range
    ours.resize_token_embeddings(1)
    ours.config.pad_token_id = 0
    for name, value in (("new_num_tokens", 0), ("pad_to_multiple_of", 2.5)):
        with pytest.raises(ArgumentError, match=f"^{name}: expected None or a positive integer"):
            ours.resize_token_embeddings(**{name: value})


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
        torch.testing.assert_close(model(IDS % 91, labels=IDS % 91).loss, loss)
    encoder = model.bert
    assert encoder.resize_token_embeddings(100) is encoder.embeddings.word_embeddings


# Gradient checkpointing


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForSequenceClassification"])
def test_gradient_checkpointing(head, name):
    """The same dropout the second time, so the same gradients; each layer runs twice."""
    model = head(name, num_hidden_layers=3).train()
    given, results, calls = {**inputs(name), **random_labels(name)}, [], []
    model.bert.encoder.layer[1].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == enable
        model.zero_grad()
        torch.manual_seed(6)
        loss = model(**given).loss
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(calls) == 3
    for got, want in zip(*results, strict=True):
        assert got.equal(want)
    model.eval()
    model(**given).loss.backward()
    assert len(calls) == 4
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(ArgumentError, match="^preserve_rng_state: expected True"):
        model.gradient_checkpointing_enable({"preserve_rng_state": False})
    model.bert.gradient_checkpointing_enable({"use_reentrant": True})
    assert model.train().is_gradient_checkpointing
    torch.manual_seed(6)
    model.zero_grad()
    model(**given).loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    for got, want in zip(grads, results[0][1:], strict=True):
        assert got.equal(want)


# torch.compile


@pytest.mark.parametrize("name", ["BertForMaskedLM", POOLED[0], "BertForQuestionAnswering"])
def test_compile(head, name):
    model = head(name)
    model.config.problem_type = "single_label_classification"
    given = {**inputs(name), **random_labels(name)}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = []
    for run in (compiled, model):
        model.zero_grad()
        output = run(**given)
        output.loss.backward()
        grads.append(
            [*output.to_tuple(), *(p.grad for p in model.parameters() if p.grad is not None)]
        )
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_compile_checkpointed(head):
    """Gradient checkpointing compiles without dropout; with it, it would draw other seeds, so it is refused."""
    model = head("BertForMaskedLM").train()
    model.gradient_checkpointing_enable()
    given = {**inputs("BertForMaskedLM"), **random_labels("BertForMaskedLM")}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="dropout cannot be compiled"):
        compiled(**given)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    grads = []
    for run in (compiled, model):
        model.zero_grad()
        loss = run(**given).loss
        loss.backward()
        grads.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
