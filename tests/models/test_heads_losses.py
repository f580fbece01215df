"""Losses and gradients of the heads against transformers, num_items_in_batch, and labels that are wrong."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers
from torch.nn import functional as F

import bertfast
from bertfast import ArgumentError, dispatch
from harness import near
from models.ecosystem import gradients, in_float64, real_tokens

B, S, C = 4, 9, 3
RIGHT = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 9, [1] + [0] * 8])
DENSE = torch.ones_like(RIGHT)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MLM, NSP, BOTH = "BertForMaskedLM", "BertForNextSentencePrediction", "BertForPreTraining"
TEXTS, TOKENS = "BertForSequenceClassification", "BertForTokenClassification"
CHOICE, ANSWER = "BertForMultipleChoice", "BertForQuestionAnswering"


def batch(mask, choices=None):
    shape = (B, S) if choices is None else (B, choices, S)
    mask = mask if choices is None else mask[:, None].repeat(1, choices, 1)
    ids = torch.randint(1, 99, shape)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 3, shape),
    }


def some(classes, mask):
    """Labels [B,S] of about a third of the real tokens."""
    labelled = (torch.rand(B, S) < 0.4) & mask.bool()
    labelled[0, 0] = labelled[2, 4] = True
    return torch.where(labelled, torch.randint(0, classes, (B, S)), -100)


def case(name, mask, problem=None):
    """Fields of the config, inputs and labels."""
    one = torch.tensor([1, 0, -100, 1])
    if name == MLM:
        return {}, batch(mask), {"labels": some(99, mask)}
    if name == BOTH:
        return {}, batch(mask), {"labels": some(99, mask), "next_sentence_label": one}
    if name == NSP:
        return {}, batch(mask), {"labels": one}
    if name == TOKENS:
        return {"num_labels": C}, batch(mask), {"labels": some(C, mask)}
    if name == CHOICE:
        return {}, batch(mask, C), {"labels": torch.tensor([2, 0, 1, -100])}
    if name == ANSWER:
        ends = {
            "start_positions": torch.tensor([2, 0, 8, 90]),
            "end_positions": torch.tensor([5, 0, 8, -3]),
        }
        return {}, batch(mask), ends
    count, labels = {
        None: (C, torch.tensor([2, -100, 0, 1])),
        "regression": (1, torch.randn(B)),
        "regressions": (C, torch.randn(B, C)),
        "several": (C, torch.randint(0, 2, (B, C)).float()),
    }[problem]
    fields = {"problem_type": "regression"} if problem == "regressions" else {}
    return {"num_labels": count, **fields}, batch(mask), {"labels": labels}


CASES = [
    (MLM, None),
    (BOTH, None),
    (NSP, None),
    (TOKENS, None),
    (CHOICE, None),
    (ANSWER, None),
    *((TEXTS, problem) for problem in (None, "regression", "regressions", "several")),
]


def in_float32(labels):
    return {k: v.float() if v.is_floating_point() else v for k, v in labels.items()}


def run(model, mask, inputs, labels):
    """Loss, scores at real tokens (not of words in pretraining) and the gradient of every parameter."""
    dtype = next(model.parameters()).dtype
    labels = {k: v.to(dtype) if v.is_floating_point() else v for k, v in labels.items()}
    output = model(**inputs, **labels)
    output.loss.backward()
    found = real_tokens(output, mask)
    found = {k: v for k, v in found.items() if k == "loss" or k.endswith("logits")}
    found.pop("prediction_logits", None)
    return {**found, "gradients": gradients(model)}


def without(got, exact):
    """Takes out the gradients that transformers' has none of, which are 0."""
    for key in got.keys() - exact.keys():
        assert not got.pop(key).any(), key


@pytest.mark.parametrize(("name", "problem"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_against_transformers(head_pair, name, problem, dtype):
    """Loss, logits and the gradient of every parameter; padded, in train mode without dropout."""
    mask = DENSE if name == ANSWER else RIGHT  # transformers' answers look at padding
    fields, inputs, labels = case(name, mask, problem)
    theirs, ours = (m.train() for m in head_pair(name, dtype, **NO_DROPOUT, **fields))
    exact, eager, got = (
        run(model, mask, inputs, labels)
        for model in (in_float64(theirs), theirs.float(), ours)  # float() is no copy: the last use
    )
    assert got["loss"].dtype == dtype
    without(got["gradients"], exact["gradients"])
    if name == MLM:  # whose training makes no logits
        assert "logits" not in got
        del exact["logits"], eager["logits"]
    near(name, got, exact, eager)
    assert ours.config.problem_type == theirs.config.problem_type


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_layouts(head, name, problem):
    """A padded batch has the mean loss of its rows one by one; columns and rows of padding change nothing."""
    mask = torch.tensor([[1] * 9, [0, 0, 1, 1, 1, 0, 1, 0, 0], [1] * 9, [1] * 5 + [0] * 4])
    fields, inputs, labels = case(name, mask, problem)
    model = head(name, torch.float64, **fields)
    want, single = model(**inputs, **labels).loss, copy.deepcopy(model).float()
    wide = {k: F.pad(v, (0, 4)) for k, v in inputs.items()}
    extra = {k: torch.cat([v, torch.zeros_like(v[:1])]) for k, v in wide.items()}
    more = {}
    for key, value in labels.items():
        if value.shape == (B, S):
            value = F.pad(value, (0, 4), value=-100)
        none = value[:1] * 0 + (-100 if not key.endswith("positions") else 13)
        more[key] = torch.cat([value, none])
    if problem is None:
        assert model(**extra, **more).loss.equal(want)
    count = {k: sum_items(k, v, mask) for k, v in labels.items()}
    if name == ANSWER:
        return
    total = 0
    for row in range(B):
        one = {k: v[row : row + 1] for k, v in {**inputs, **labels}.items()}
        items = {"num_items_in_batch": count["labels"]}
        if name == BOTH:
            items["num_sequences_in_batch"] = torch.tensor(count["next_sentence_label"])
        total = total + model(**one, **items).loss
    near("loss", total, want, single(**inputs, **in_float32(labels)).loss)


def sum_items(key, value, mask):
    return value.numel() if value.is_floating_point() else int((value != -100).sum())


def test_accumulated_gradients_are_those_of_the_batch(head):
    fields, inputs, labels = case(TOKENS, RIGHT)
    model = head(TOKENS, torch.float64, **fields)
    single = copy.deepcopy(model).float()
    for whole in (single, model):
        whole(**inputs, **labels).loss.backward()
    want = gradients(model)
    model.zero_grad()
    count = (labels["labels"] != -100).sum()
    for part in (slice(0, 1), slice(1, 4)):
        one = {k: v[part] for k, v in {**inputs, **labels}.items()}
        model(**one, num_items_in_batch=count).loss.backward()
    near("gradients", gradients(model), want, gradients(single))


def test_pretraining_shares(head):
    """Without num_sequences_in_batch a part's next-sentence mean weighs as its share of the labels."""
    fields, inputs, labels = case(BOTH, DENSE)
    model = head(BOTH, torch.float64, **fields)
    count = int((labels["labels"] != -100).sum())
    whole = model(**inputs, **labels)
    asked = [
        model(**inputs, **labels, num_items_in_batch=times * count).loss * times for times in (1, 2)
    ]
    eager = copy.deepcopy(model).float()(**inputs, **labels).loss
    near("losses", asked, [whole.loss] * 2, [eager] * 2)


@torch.no_grad()
def test_answers_in_padding(head):
    """Padding takes no part in the softmax; places outside are ignored; a packed call has the same loss."""
    model = head(ANSWER, torch.float64)
    inputs = batch(RIGHT)
    start, end = torch.tensor([2, 5, 7, 3]), torch.tensor([4, 5, 8, 0])  # row 3 has one token
    output = model(**inputs, start_positions=start, end_positions=end[:, None])
    losses = []
    for side, (logits, places) in enumerate(
        ((output.start_logits, start), (output.end_logits, end))
    ):
        one = [
            F.cross_entropy(logits[r : r + 1, : RIGHT[r].sum()], places[r : r + 1])
            for r in range(B)
            if places[r] < RIGHT[r].sum()
        ]
        assert len(one) == (3, 4)[side]
        losses.append(sum(one) / len(one))
    asked = {"start_positions": start, "end_positions": end}
    eager = copy.deepcopy(model).float()(**inputs, **asked).loss
    near("loss", output.loss, (losses[0] + losses[1]) / 2, eager)
    lowest = torch.finfo(torch.float64).min
    assert (output.start_logits == lowest).equal(RIGHT == 0)
    real = RIGHT.bool()
    packed = {k: v[real][None] for k, v in inputs.items() if k != "attention_mask"}
    starts = F.pad(RIGHT.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
    got = model(**packed, cu_seq_lens_q=starts, max_length_q=9, **asked)
    assert got.loss.equal(output.loss)
    assert got.start_logits[0].equal(output.start_logits[real])


@torch.no_grad()
def test_masked_lm_makes_logits_where_they_are_wanted(head):
    """With labels: in eval mode, or when asked."""
    model = head(MLM, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    _, inputs, labels = case(MLM, RIGHT)
    with dispatch.record() as log:
        output = model.train()(**inputs, **labels)
    theirs = transformers.BertForMaskedLM(model.config)
    theirs.load_state_dict(model.state_dict())
    losses = [made(**inputs, **labels).loss for made in (in_float64(theirs), theirs)]
    near("loss", output.loss, *losses)
    assert list(output) == ["loss"]
    assert [c.operation for c in log][-2:] == ["gelu_layernorm", "masked_cross_entropy"]
    for asked in (model(**inputs, **labels, output_logits=True), model.eval()(**inputs, **labels)):
        assert list(asked) == ["loss", "logits"]
        near("loss", asked.loss, *losses)
        assert asked.logits.equal(model(**inputs).logits)
        assert (asked.logits[RIGHT == 0] == 0).all()
    assert list(model(**inputs, output_logits=False, output_hidden_states=True)) == [
        "hidden_states"
    ]
    both = head(BOTH).train()
    _, inputs, labels = case(BOTH, RIGHT)
    assert list(both(**inputs, **labels)) == ["loss", "seq_relationship_logits"]
    assert next(iter(both(**inputs, labels=labels["labels"]))) == "prediction_logits"
    assert list(both(**inputs, output_logits=False)) == ["seq_relationship_logits"]


@torch.no_grad()
@pytest.mark.parametrize("name", [MLM, BOTH])
def test_logits_of_labelled_tokens(head, name):
    """Those that all tokens' logits have at labels, and the loss as without them."""
    model = head(name, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    _, inputs, labels = case(name, RIGHT)
    key = "logits" if name == MLM else "prediction_logits"
    output = model(**inputs, **labels, output_logits="labelled")
    every = model(**inputs, **labels, output_logits=True)
    assert output[key].equal(every[key][(labels["labels"] != -100) & RIGHT.bool()])
    assert output.loss.equal(model(**inputs, **labels).loss)
    for wrong in ({**labels, "output_logits": "some"}, {"output_logits": "labelled"}):
        with pytest.raises(ArgumentError, match="output_logits: expected True or False"):
            model(**inputs, **wrong)


def test_labels_at_padding_do_not_count(head):
    for name in (MLM, TOKENS):
        fields, inputs, labels = case(name, RIGHT)
        model = head(name, **fields)
        wrong = torch.where(RIGHT == 0, 1, labels["labels"])
        assert model(**inputs, labels=wrong).loss.equal(model(**inputs, **labels).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(head_pair, dtype):
    for name, problem in ((MLM, None), (TOKENS, None), (ANSWER, None), (TEXTS, "several")):
        mask = DENSE if name == ANSWER else RIGHT  # transformers' answers look at padding
        fields, inputs, labels = case(name, mask, problem)
        theirs, ours = head_pair(name, dtype, **fields)
        exact, eager, got = (
            run(model, mask, inputs, labels) for model in (in_float64(theirs), theirs, ours)
        )
        assert got["loss"].dtype == torch.float32
        without(got["gradients"], exact["gradients"])
        near(name, {**got, "loss": got["loss"].to(dtype)}, exact, eager)


# Bad input

PLACES = torch.zeros(B, dtype=torch.int64)
BAD = [
    (MLM, "labels", torch.full((B, S), 99), r"labels in \[0, 99\) or -100, got 99 at \[0, 0\]"),
    (MLM, "labels", torch.zeros(B, S), r"int64 or int32 tensor \[4, 9\], got float32 \[4, 9\]"),
    (MLM, "labels", torch.zeros(S, B, dtype=torch.int64), r"tensor \[4, 9\], got int64 \[9, 4\]"),
    (MLM, "labels", [[1]], "got list"),
    (MLM, "labels", torch.zeros(B, S, dtype=torch.int64, device="meta"), "on cpu"),
    (BOTH, "next_sentence_label", torch.full((B,), 2), r"\[0, 2\) or -100, got 2"),
    (NSP, "labels", torch.full((B,), -1), "got -1"),
    (NSP, "labels", torch.zeros(B - 1, dtype=torch.int64), r"tensor \[4\], got int64 \[3\]"),
    (TEXTS, "labels", torch.full((B,), C), r"\[0, 3\)"),
    (TEXTS, "labels", torch.zeros(B), r"\[4, 3\] for problem_type 'multi_label_classification'"),
    (TEXTS, "labels", torch.full((B, C), 2.0), "from 0 to 1, got values from 2 to 2"),
    (TOKENS, "labels", torch.full((B, S), C), r"\[0, 3\)"),
    (ANSWER, "start_positions", PLACES.double(), r"tensor \[4\], got float64"),
    (ANSWER, "end_positions", PLACES[:2], r"got int64 \[2\]"),
    (MLM, "num_items_in_batch", -1, "a count, or a tensor with one, got -1"),
    (MLM, "num_items_in_batch", torch.ones(2), r"got float32 \[2\]"),
]


@pytest.mark.parametrize(("name", "argument", "value", "message"), BAD)
def test_wrong_labels(head, name, argument, value, message):
    model = head(name, **({"num_labels": C} if name in (TEXTS, TOKENS) else {}))
    given = {"labels": torch.zeros(B, S, dtype=torch.int64)} if name in (MLM, BOTH) else {}
    if name == BOTH:
        given["next_sentence_label"] = PLACES
    if name == ANSWER:
        given = {"start_positions": PLACES, "end_positions": PLACES}
    with pytest.raises(ArgumentError, match=f"^{argument}: expected .*{message}"):
        model(**batch(RIGHT), **{**given, argument: value})


def test_wrong_labels_for_a_problem(head):
    model = head(TEXTS, num_labels=1, problem_type="regression")
    with pytest.raises(ArgumentError, match=r"^labels: expected a tensor \[4, 1\].*'regression'"):
        model(**batch(RIGHT), labels=torch.zeros(B, 2))
    column = model(**batch(DENSE), labels=torch.ones(B, 1)).loss
    assert column.ndim == 0
    model = head(TEXTS, num_labels=C)
    model(**batch(RIGHT), labels=PLACES)
    assert model.config.problem_type == "single_label_classification"
    with pytest.raises(
        ArgumentError, match="^labels: expected an int64"
    ):  # the first labels decide
        model(**batch(RIGHT), labels=torch.zeros(B, C))


def test_wrong_choices(head):
    model = head(CHOICE)
    inputs = batch(RIGHT, C)
    for name, value, message in (
        ("input_ids", inputs["input_ids"][0], r"\[batch, choices, length\], got int64 \[3, 9\]"),
        ("input_ids", inputs["input_ids"][:, :0], "got int64"),
        ("attention_mask", RIGHT, r"\[4, 3, 9\], got int64 \[4, 9\]"),
        ("labels", torch.tensor([3, 0, 0, 0]), r"\[0, 3\)"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}: expected .*{message}"):
            model(**{**inputs, name: value})


def test_every_label_ignored(head_pair):
    """The mean over no label is nan, as in transformers; check_finite names it."""
    for name in (MLM, NSP, TOKENS):
        shape = (B,) if name == NSP else (B, S)
        labels = torch.full(shape, -100)
        theirs, ours = head_pair(name)
        inputs = batch(DENSE)
        assert theirs(**inputs, labels=labels).loss.isnan()
        assert ours(**inputs, labels=labels).loss.isnan()
        assert ours(**inputs, labels=labels, num_items_in_batch=3).loss == 0
        with pytest.raises(ArgumentError, match=r"^loss: .* got nan\. .*-100"):
            ours(**inputs, labels=labels, check_finite=True)


def test_check_finite_names_what_is_wrong(head):
    for name, weight in (
        (TEXTS, "classifier.weight"),
        (TEXTS, "bert.pooler.dense.bias"),
        (ANSWER, "qa_outputs.bias"),
        (MLM, "cls.predictions.transform.LayerNorm.weight"),
        (BOTH, "cls.seq_relationship.weight"),
    ):
        fields, inputs, labels = case(name, RIGHT)
        model = head(name, **fields)
        model(**inputs, **labels, check_finite=True)
        with torch.no_grad():
            model.get_parameter(weight)[0] = math.nan
        model(**inputs, **labels)
        with pytest.raises(ArgumentError, match=f"^{weight}: expected finite weights"):
            model(**inputs, **labels, check_finite=True)
    model = head(TEXTS, num_labels=1)
    with pytest.raises(ArgumentError, match=r"^loss: expected a finite number, got nan"):
        model(**batch(RIGHT), labels=torch.full((B,), math.nan), check_finite=True)
    big = head(TEXTS, torch.float16)
    torch.nn.init.constant_(big.classifier.weight, 6e4)
    with pytest.raises(ArgumentError, match=r"^logits: .* bfloat16"):
        big(**batch(RIGHT), check_finite=True)


def test_double_backward_is_refused(head):
    model = head(MLM)
    _, inputs, labels = case(MLM, RIGHT)
    weight = model.cls.predictions.transform.dense.weight
    loss = model(**inputs, **labels).loss
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(bertfast.UnsupportedError, match="double backward"):
        grad.sum().backward()
    loss = model(**inputs, **labels).loss
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
