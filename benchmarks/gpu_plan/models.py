"""The models that the steps time, ours and transformers' with the same weights, and their batches."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor

from .. import calls, models, predictions
from ..peers import transformers_bert
from .device import Device

DTYPE = torch.bfloat16


def ours(device: Device) -> torch.nn.Module:
    """A bertfast BertModel without its pooler, for the caller alone."""
    return copy.deepcopy(_built(device)[0]).to(device.tensors, DTYPE)


def theirs(device: Device) -> torch.nn.Module:
    """The same of transformers with sdpa."""
    return copy.deepcopy(_built(device)[1]).to(device.tensors, DTYPE)


@functools.cache
def _built(device: Device) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Both on the CPU, where their seconds are spent once."""
    mine, fields = models.model_of(_fields(device), pooler=False), _fields(device)
    return mine, transformers_bert.build(fields, mine.state_dict(), "sdpa", pooler=False)


def _fields(device: Device) -> dict:
    return {**models.config("base"), **device.sizes.fields}


def batch_at(device: Device, load: str) -> dict[str, Tensor]:
    """input_ids and, where the lengths differ, attention_mask."""
    batch = models.batch_of(device.sizes.loads[load])
    return {name: value.to(device.tensors) for name, value in batch.items()}


def mask_at(device: Device, load: str) -> Tensor:
    """[B,S,1]: 1 at real tokens."""
    batch = batch_at(device, load)
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"]))[..., None]


def direction_at(device: Device, load: str) -> Tensor:
    """A gradient of the last hidden states, 0 at padding."""
    mask = mask_at(device, load)
    shape = (*mask.shape[:2], device.sizes.hidden)
    generator = torch.Generator().manual_seed(20)
    return (torch.randn(shape, generator=generator).to(mask.device) * mask).to(DTYPE)


def models_at(device: Device, load: str) -> dict[str, calls.Call]:
    """name -> one forward, of both."""
    batch = batch_at(device, load)
    built = {"bertfast": ours(device), "sdpa": theirs(device)}
    return {name: calls.step_of(model, batch, None) for name, model in built.items()}


def predicted_us(device: Device, load: str, backward: bool) -> float | None:
    """Of BERT-base as shipped; None where the card's roofline is not known, it is a stand-in's size, or not counted."""
    if device.roof is None or device.stand_in or load not in predictions.counted():
        return None
    parts = predictions.model(load, backward)
    return round(sum(predictions.seconds(part, device.roof) for part in parts) * 1e6, 1)
