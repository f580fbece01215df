"""What the ecosystem's tests share: small models of transformers and ours with the same weights, ragged data, and
comparisons on real tokens, by the accuracy check: what transformers' class gives in float64 is exact, what it gives in
the dtype under test is eager torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import bertfast
from harness import near, seeds

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
# Every term counts, and attention's logits have a deviation of about 4. With 0.3 it is 15, and softmax so sharp that
# a single rounding decides the error of a whole run: it is ours or transformers' by luck, and four times as large.
SPREAD = 0.15
HEADS = (
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
)
LABELS = ("labels", "next_sentence_label", "start_positions", "end_positions")


def small_config(name: str = "BertModel", **fields: Any) -> transformers.BertConfig:
    labels = 2 if name == "BertForQuestionAnswering" else 3
    return transformers.BertConfig(**{**TINY, "num_labels": labels, **fields})


def theirs_of(name: str = "BertModel", **fields: Any) -> nn.Module:
    """A small model of transformers whose every term counts, without dropout, in eval mode."""
    model = getattr(transformers, name)(small_config(name, **fields))
    generator = seeds.generator(11)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            norm = key.endswith("LayerNorm.weight")
            parameter.normal_(1.0 if norm else 0.0, SPREAD, generator=generator)
    return model.eval()


def pair(name: str = "BertModel", **fields: Any) -> tuple[nn.Module, nn.Module]:
    """(transformers' model, ours) with the same weights; fields of the config as keywords."""
    theirs = theirs_of(name, **fields)
    ours = getattr(bertfast, name)(small_config(name, **fields))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval()


def examples(name: str, count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of 3 to 20 tokens as lists, with the labels that a head of that name takes."""
    generator = seeds.generator(seed)

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


def in_float64(value: Any) -> Any:
    """A copy of a model, or of tensors in mappings, whose floating-point numbers are float64."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Mapping):
        return {key: in_float64(part) for key, part in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def differing(got: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """The names of a run's tensors whose bits differ."""
    assert got.keys() == want.keys()
    mine, other = (
        {k: [v] if isinstance(v, Tensor) else v for k, v in output.items()}
        for output in (got, want)
    )
    return [key for key in other if not all(map(torch.equal, mine[key], other[key]))]


def real_tokens(output: Mapping[str, Any], mask: Tensor) -> dict[str, Any]:
    """Every output, of what has a value a token those of real tokens."""

    def real(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return [real(part) for part in value]
        return value[mask != 0] if value.shape[:2] == mask.shape else value

    return {key: real(value) for key, value in output.items()}


def same_output(
    got: Mapping[str, Any],
    theirs: nn.Module,
    batch: Mapping[str, Tensor],
    exact: nn.Module | None = None,
    **options: Any,
) -> None:
    """Every output of transformers' model for that batch is there and near; `exact`: in float64, else a copy."""
    exact = in_float64(theirs) if exact is None else exact
    right = exact(**in_float64(batch), **options)
    if next(theirs.parameters()).dtype == torch.float64:
        theirs = copy.deepcopy(theirs).float()
    want = theirs(**batch, **options)
    assert type(got) is type(want)
    assert list(got) == list(want)
    near("output", *(real_tokens(o, batch["attention_mask"]) for o in (got, right, want)))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_gradients(ours: nn.Module, theirs: nn.Module, exact: nn.Module, least: int = 1) -> None:
    """The same parameters have a gradient, `least` or more, and the gradients are near."""
    got, want = gradients(ours), gradients(theirs)
    assert got.keys() == want.keys()
    assert len(want) >= least
    near("gradients", got, gradients(exact), want)


def same_weights(ours: nn.Module, theirs: nn.Module, exact: nn.Module | None = None) -> None:
    """Weights that both learnt are near, where `exact` learnt them in float64; else they are equal."""
    got, want = ours.state_dict(), theirs.state_dict()
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert exact is not None or torch.equal(got[name], value), name
    if exact is not None:
        near("weights", got, exact.state_dict(), want)


def backward(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    """The output for the batch, after its loss was differentiated where there is one."""
    output = model(**batch)
    if output.get("loss") is not None and output.loss.requires_grad:
        output.loss.backward()
    return output


def same_calls(
    theirs: nn.Module,
    ours: nn.Module,
    way,
    expected: str,
    name: str = "BertForSequenceClassification",
    exact: nn.Module | None = None,
) -> None:
    """Of one batch: the outputs; and gradients, where there is a loss and parameters learn."""
    batch, exact = ragged(name), in_float64(theirs) if exact is None else exact
    with way(expected):
        got = backward(ours, batch)
    want, right = backward(theirs, batch), backward(exact, in_float64(batch))
    assert type(got) is type(want)
    assert list(got) == list(want)
    near("output", *(real_tokens(o, batch["attention_mask"]) for o in (got, right, want)))
    if gradients(theirs):
        same_gradients(ours, theirs, exact)


def same_answers(got: Any, want: Any, exact: Any) -> None:
    """The same lists, dicts and strings; numbers are near those of a pipeline in float64."""
    assert shape_of(got) == shape_of(want)
    found = (torch.tensor(list(numbers(value)), dtype=torch.float64) for value in (got, exact))
    near("answers", *(value.float() for value in found), torch.tensor(list(numbers(want))))


def shape_of(value: Any) -> Any:
    """An answer, its numbers left out."""
    if isinstance(value, dict):
        return {key: shape_of(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [shape_of(part) for part in value]
    return type(value) if isinstance(value, float | np.floating) else value


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, float | np.floating):
        yield float(value)


def exact_pipeline(answer: transformers.Pipeline) -> transformers.Pipeline:
    """A copy of a pipeline whose model computes in float64."""
    made = copy.copy(answer)
    made.model = in_float64(answer.model)
    return made


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
