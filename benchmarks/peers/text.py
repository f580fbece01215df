"""From texts to vectors around an engine that knows batches only: tokenize, sort by length, pad, pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LOAD = "text-512"  # the name of the load of texts
BATCH = 32  # texts, as sentence-transformers takes them


def tokenizer(model: Path) -> Any:
    """The fast tokenizer of a checkpoint, which cuts texts as sentence-transformers does."""
    from tokenizers import Tokenizer

    settings = json.loads((model / "sentence_bert_config.json").read_text(encoding="utf-8"))
    found = Tokenizer.from_file(str(model / "tokenizer.json"))
    found.no_padding()
    found.enable_truncation(settings["max_seq_length"])
    return found


def encode(
    tokenizer: Any, texts: list[str], forward: Callable[[dict[str, np.ndarray]], np.ndarray]
) -> np.ndarray:
    """Vectors float [N,H] of length 1, means over real tokens, in the order of the texts.

    Args:
        forward: from input_ids and attention_mask [B,S] to hidden states [B,S,H].
    """
    rows = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    parts = []
    for start in range(0, len(order), BATCH):
        batch = pad([rows[i] for i in order[start : start + BATCH]])
        parts.append(mean(forward(batch), batch["attention_mask"]))
    found = np.concatenate(parts)
    vectors = np.empty_like(found)
    vectors[order] = found
    return vectors


def pad(rows: list[list[int]]) -> dict[str, np.ndarray]:
    """input_ids and attention_mask, int64 [B,S], zeros at padding."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(rows)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


def mean(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Means [B,H] of hidden states [B,S,H] where the mask is 1, scaled to length 1."""
    sums = np.einsum("bsh,bs->bh", states, mask.astype(states.dtype))
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)
