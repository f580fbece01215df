"""What the ecosystem's tests share: small models of transformers and ours with the same weights, ragged data, and
comparisons on real tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import bertfast

TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
HEADS = (
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
)
TOLERANCE = 1e-5
LABELS = ("labels", "next_sentence_label", "start_positions", "end_positions")


def small_config(name: str = "BertModel", **fields: Any) -> transformers.BertConfig:
    labels = 2 if name == "BertForQuestionAnswering" else 3
    return transformers.BertConfig(**{**TINY, "num_labels": labels, **fields})


def theirs_of(name: str = "BertModel", **fields: Any) -> nn.Module:
    """A small model of transformers whose every term counts, without dropout, in eval mode."""
    model = getattr(transformers, name)(small_config(name, **fields))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            norm = key.endswith("LayerNorm.weight")
            parameter.normal_(1.0 if norm else 0.0, 0.3, generator=generator)
    return model.eval()


def pair(name: str = "BertModel", **fields: Any) -> tuple[nn.Module, nn.Module]:
    """(transformers' model, ours) with the same weights; fields of the config as keywords."""
    theirs = theirs_of(name, **fields)
    ours = getattr(bertfast, name)(small_config(name, **fields))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval()


def examples(name: str, count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of 3 to 20 tokens as lists, with the labels that a head of that name takes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int = 1) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    def text() -> dict[str, Any]:
        length = draw(3, 21)[0]
        ids = {"input_ids": draw(1, 99, length), "attention_mask": [1] * length}
        return {**ids, "token_type_ids": draw(0, 3, length)}

    made = []
    for _ in range(count):
        example = text()
        length = len(example["input_ids"])
        if name == "BertForMultipleChoice":
            example = {"choices": [text() for _ in range(3)], "labels": draw(0, 3)[0]}
        elif name in ("BertForMaskedLM", "BertForPreTraining"):
            words = torch.tensor(draw(1, 99, length))
            words[1::2] = -100
            example["labels"] = words.tolist()
            if name == "BertForPreTraining":
                example["next_sentence_label"] = draw(0, 2)[0]
        elif name == "BertForTokenClassification":
            example["labels"] = draw(0, 3, length)
        elif name == "BertForQuestionAnswering":
            start, end = sorted(draw(0, length, 2))
            example |= {"start_positions": start, "end_positions": end}
        elif name == "BertForNextSentencePrediction":
            example["labels"] = draw(0, 2)[0]
        elif name == "BertForSequenceClassification":
            example["labels"] = draw(0, 3)[0]
        made.append(example)
    return made


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Examples as one padded batch; labels of tokens are -100 at padding."""
    if "choices" in rows[0]:
        choices = len(rows[0]["choices"])
        flat = collate([text for row in rows for text in row["choices"]])
        batch = {key: value.unflatten(0, (-1, choices)) for key, value in flat.items()}
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}
    batch = {}
    for key in rows[0]:
        values = [torch.as_tensor(row[key]) for row in rows]
        fill = -100 if key == "labels" else 0
        batch[key] = nn.utils.rnn.pad_sequence(values, True, fill) if values[0].dim() else None
        if batch[key] is None:
            batch[key] = torch.stack(values)
    return batch


def ragged(name: str = "BertModel", count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """One batch of `examples`."""
    return collate(examples(name, count, seed))


def unlabelled(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key not in LABELS}


def close(got: Tensor, want: Tensor, tolerance: float = TOLERANCE, what: str = "") -> None:
    """The largest error is at most `tolerance` times the largest value that is wanted, or times 1."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, not {want.dtype}"
    got, want = got.detach().double(), want.detach().double()
    error = (got - want).abs().max().item() if want.numel() else 0.0
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    assert error <= tolerance * scale, f"{what}: error {error:.2e} of values up to {scale:.2e}"


def same_output(
    got: Mapping[str, Any], want: Mapping[str, Any], mask: Tensor, tolerance: float = TOLERANCE
) -> None:
    """Every output of transformers' is there and close, at real tokens where it has a value a token."""
    assert type(got) is type(want)
    assert list(got) == list(want)
    for key, value in want.items():
        parts = (
            [(got[key], value)] if isinstance(value, Tensor) else zip(got[key], value, strict=True)
        )
        for ours, theirs in parts:
            if theirs.shape[:2] == mask.shape:
                ours, theirs = ours[mask != 0], theirs[mask != 0]
            close(ours, theirs, tolerance, key)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_gradients(
    ours: nn.Module, theirs: nn.Module, tolerance: float = TOLERANCE, least: int = 1
) -> None:
    """The same parameters have a gradient, `least` or more, and the gradients are close."""
    got, want = gradients(ours), gradients(theirs)
    assert got.keys() == want.keys()
    assert len(want) >= least
    for name, value in want.items():
        close(got[name], value, tolerance, f"gradient of {name}")


def same_weights(ours: nn.Module, theirs: nn.Module, tolerance: float = TOLERANCE) -> None:
    got, want = ours.state_dict(), theirs.state_dict()
    assert got.keys() == want.keys()
    for name, value in want.items():
        close(got[name], value, tolerance, name)


def same_calls(
    theirs, ours, way, expected, name="BertForSequenceClassification", tolerance=TOLERANCE
):
    """Of one batch: the outputs; and gradients, where there is a loss and parameters learn."""
    batch = ragged(name)
    with way(expected):
        got = ours(**batch)
        if got.get("loss") is not None and got.loss.requires_grad:
            got.loss.backward()
    want = theirs(**batch)
    if want.get("loss") is not None and want.loss.requires_grad:
        want.loss.backward()
        same_gradients(ours, theirs, tolerance)
    same_output(got, want, batch["attention_mask"], tolerance)


def tiny_tokenizer(folder: Path) -> transformers.BertTokenizerFast:
    """A WordPiece tokenizer of letters, whose ids fit the small models; a word is a few tokens."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "the", "##ing"]
    words += letters + [f"##{letter}" for letter in letters]
    path = folder / "vocab.txt"
    path.write_text("\n".join(words), encoding="utf-8")
    return transformers.BertTokenizerFast(str(path), model_max_length=40)


def checkpoint(name: str, folder: Path, **fields: Any) -> Path:
    """A folder with a small model of transformers and its tokenizer."""
    theirs_of(name, **fields).save_pretrained(folder)
    tiny_tokenizer(folder).save_pretrained(folder)
    return folder
