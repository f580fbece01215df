"""A text's bits depend on the text alone: not on its batch, the order in it, or the number of threads."""

from __future__ import annotations

import random

import pytest
import torch

import bertfast
from bertfast import BertConfig
from harness import seeds

TEXTS = [
    [5, 7, 11],
    [3] * 40,
    [2, 9],
    list(range(1, 90)),
    [13],
    [4, 4, 8, 15, 16, 23, 42],
    [6] * 17,
]
HEADS = (
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
)


def _model(name, **config):
    sizes = {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 200}
    labels = 2 if "Question" in name else 7
    made = BertConfig(vocab_size=101, num_hidden_layers=2, num_labels=labels, **sizes, **config)
    seeds.restart(1)
    return getattr(bertfast, name)(made).eval()


def _batch(texts):
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    return ids, (ids != 0).long()


def _results(model, texts):
    """The outputs of each text, cut to its tokens, as a list of tensors a text."""
    ids, mask = _batch(texts)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask).to_tuple()
    return [
        [
            t[row, : len(text)] if t.ndim > 1 and t.shape[1] == ids.shape[1] else t[row]
            for t in output
        ]
        for row, text in enumerate(texts)
    ]


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("name", ["BertModel", *HEADS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_alone_in_a_batch_in_any_order_with_any_threads(name, dtype):
    model = _model(name).to(dtype)
    torch.set_num_threads(1)
    alone = [_results(model, [text])[0] for text in TEXTS]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for seed in range(3):
            order = random.Random(seed).sample(range(len(TEXTS)), 3 + 2 * seed)
            for index, found in zip(order, _results(model, [TEXTS[i] for i in order]), strict=True):
                assert _equal(found, alone[index]), (threads, order, index)


def test_other_activations_too():
    model = _model("BertModel", hidden_act="relu")
    whole = _results(model, TEXTS)
    for text, found in zip(TEXTS, whole, strict=True):
        assert _equal(found, _results(model, [text])[0])


@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_gradients_of_a_text(name):
    """Of its embeddings, from a loss of its own, alone and beside others."""
    model = _model(name)
    table = model.get_input_embeddings().weight.detach()

    def gradients(texts, threads):
        torch.set_num_threads(threads)
        ids, mask = _batch(texts)
        rows = table[ids].requires_grad_()
        output = model(inputs_embeds=rows, attention_mask=mask).to_tuple()
        real = mask.bool()
        sums = [t[real].sum() if t.shape[:2] == ids.shape else t.sum() for t in output]
        (found,) = torch.autograd.grad(sum(sums), rows)
        return [found[row, : len(text)] for row, text in enumerate(texts)]

    alone = [gradients([text], 1)[0] for text in TEXTS]
    for threads in (1, 2):
        assert _equal(gradients(TEXTS, threads), alone)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_a_training_step_is_repeated_bit_for_bit(name):
    def step(threads):
        torch.set_num_threads(threads)
        model = _model(name).train()
        ids, mask = _batch(TEXTS)
        labels = ids.masked_fill(mask == 0, -100) if "Masked" in name else torch.arange(7)
        seeds.restart(3)
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    first = step(1)
    assert _equal(step(1), first)
    assert _equal(step(2), first)
