"""fill_mask and its command, in English and Chinese, against transformers' pipeline."""

from __future__ import annotations

import pytest
import torch
import transformers

import bertfast
from bertfast import ArgumentError, BertConfig
from bertfast.text.tokenizer import Tokenizer
from harness import near, seeds
from models.ecosystem import in_float64

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] my dog is cute happy the cat ##s . , 明 月 几 时 有 把 酒 问 青 天"
TEXTS = ["My dog is [MASK].", "[MASK] [MASK]s, [MASK]", "明月几时[MASK]，把酒问青[MASK]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny masked LM with a vocabulary of its own, and two rows that no word has."""
    folder, words = tmp_path_factory.mktemp("masked"), WORDS.split()
    config = BertConfig(
        vocab_size=len(words) + 2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=24,
        initializer_range=0.4,
    )
    seeds.restart(3)
    bertfast.BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return bertfast.BertForMaskedLM.from_pretrained(folder), Tokenizer.from_folder(folder)


@torch.no_grad()
def test_against_logits(folder, loaded):
    """The best words and their probabilities; texts of a batch do not touch each other."""
    model, tokenizer = loaded
    theirs = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    filled = bertfast.fill_mask(model, tokenizer, TEXTS, top_k=4)
    assert [len(masks) for masks in filled] == [1, 3, 2]
    words, found = len(tokenizer), []
    for text, masks in zip(TEXTS, filled, strict=True):
        (row,), _ = tokenizer([text])
        ids = torch.tensor([row])
        exact, eager = (
            made(ids).logits[ids == 4][:, :words].softmax(-1)
            for made in (in_float64(theirs), theirs)
        )
        best = exact.topk(4)
        assert [[c.token_id for c in row] for row in masks] == best.indices.tolist()
        assert all(token == WORDS.split()[index] for row in masks for token, index, _ in row)
        got = torch.tensor([[score for *_, score in row] for row in masks])
        values = (got, best.values, eager.gather(1, best.indices))
        found.append([value.log() for value in values])  # rounding goes by the size of logits
        alone = bertfast.fill_mask(model, tokenizer, text, top_k=4)
        assert [[c.token for c in one] for one in alone] == [[c.token for c in m] for m in masks]
    near("logarithms of probabilities", *zip(*found, strict=True))
    assert bertfast.fill_mask(model, tokenizer, []) == []
    assert len(bertfast.fill_mask(model, tokenizer, TEXTS[0], top_k=words)[0]) == words


def test_against_transformers(folder, loaded):
    """Theirs also tells rows of the table that no word has; ours does not."""
    options = {"model": str(folder), "tokenizer": str(folder), "top_k": len(loaded[1]) + 2}
    theirs = transformers.pipeline("fill-mask", **options)
    for text, masks in zip(TEXTS, bertfast.fill_mask(*loaded, TEXTS, top_k=2), strict=True):
        want = theirs(text)
        for candidates, others in zip(masks, want if len(masks) > 1 else [want], strict=True):
            words = [other for other in others if other["token"] < len(loaded[1])]
            for mine, other in zip(candidates, words[:2], strict=True):
                assert (mine.token_id, mine.token) == (other["token"], other["token_str"])


def test_many_texts(loaded):
    """More than one packed call."""
    model, tokenizer = loaded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertfast.inference.fill_mask.BATCH_TOKENS", 20)
        got = bertfast.fill_mask(model, tokenizer, TEXTS * 3)
    want = bertfast.fill_mask(model, tokenizer, TEXTS)
    for mine, other in zip(got, want * 3, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert [c.token for c in a] == [c.token for c in b]


def test_bad_input(loaded, folder):
    model, tokenizer = loaded
    for texts, message in (
        (["[MASK]", "no mask"], r"^texts\[1\]: expected a text with \[MASK\], got 'no mask'"),
        (["[MASK]", 7], r"^texts\[1\]: expected a string, got int"),
        ("[MASK]" * 30, r"^texts\[0\]: expected at most 24 tokens, got 32"),
    ):
        with pytest.raises(ArgumentError, match=message):
            bertfast.fill_mask(model, tokenizer, texts)
    for count in (0, 10**6, "5", True):
        with pytest.raises(ArgumentError, match="^top_k: expected an integer from 1 to 25"):
            bertfast.fill_mask(model, tokenizer, TEXTS, count)
    with pytest.raises(ArgumentError, match="^model: expected a BertForMaskedLM, got BertModel"):
        bertfast.fill_mask(model.bert, tokenizer, TEXTS)


def test_command(folder, loaded):
    testing = pytest.importorskip("click.testing")
    from bertfast.cli import main

    run = testing.CliRunner().invoke(main, ["fill-mask", str(folder), *TEXTS[1:], "--top-k", "2"])
    assert run.exit_code == 0
    lines = run.output.splitlines()
    filled = bertfast.fill_mask(*loaded, TEXTS[1:], top_k=2)
    want = []
    for text, masks in zip(TEXTS[1:], filled, strict=True):
        want.append(text)
        for number, candidates in enumerate(masks, 1):
            want.append(f"  [MASK] {number}")
            want += [f"  {score:.3f}  {token}" for token, _, score in candidates]
    assert lines == want
    assert "fill-mask" in testing.CliRunner().invoke(main, ["--help"]).output
    run = testing.CliRunner().invoke(main, ["fill-mask", str(folder), "no mask"])
    assert run.exit_code == 2
    assert "expected a text with [MASK]" in run.output


def test_command_without_a_head(folder, tmp_path):
    testing = pytest.importorskip("click.testing")
    from bertfast.cli import main

    bertfast.BertModel.from_pretrained(folder).save_pretrained(tmp_path)
    run = testing.CliRunner().invoke(main, ["fill-mask", str(tmp_path), "[MASK]"])
    assert run.exit_code == 2
    assert "expected a checkpoint with a masked-language-model head" in run.output
