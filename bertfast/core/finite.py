"""`check_finite=True`: name the first part of the model whose weights or output are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, UnsupportedError
from ..ops._weights import unpacked


def check_output(name: str, module: nn.Module, output: Tensor) -> None:
    """Raise ArgumentError if `output` of the module called `name` is not finite: its weight's fault, or its own."""
    if torch.compiler.is_compiling():
        raise UnsupportedError(
            "check_finite=True reads values and cannot be compiled: call the model uncompiled."
        )
    bad = ~torch.isfinite(output)
    if not bad.any():
        return
    _check_weights(module, f"{name}.")
    token = int(bad.flatten(1).any(1).nonzero()[0])
    if output.dtype == torch.float16:
        advice = "Its weights are finite: values overflow float16; use bfloat16 or float32."
    else:
        advice = "Its weights are finite: look at inputs_embeds and at the size of the weights."
    got = f"{int(bad.sum())} values that are not, from token {token} on"
    raise ArgumentError(name, "a finite output", got, advice)


def check_results(model: nn.Module, outputs: Mapping[str, Tensor | None]) -> None:
    """Raise ArgumentError if a loss or logits are not finite: their weights' fault, their own, or the labels'."""
    tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if not bad:
        return
    _check_weights(model, "")
    name, value = bad[-1], tensors[bad[-1]]
    if name == "loss":
        advice = "The weights are finite: look at the labels (with none but -100 there is no mean) and the logits."
        raise ArgumentError("loss", "a finite number", f"{value.item()}", advice)
    count = value.numel() - int(torch.isfinite(value).sum())
    advice = "The head's weights are finite: values overflow, so use bfloat16 or float32."
    raise ArgumentError(name, "finite values", f"{count} that are not", advice)


def _check_weights(module: nn.Module, prefix: str) -> None:
    for name, parameter in module.named_parameters():
        count = parameter.numel() - int(torch.isfinite(unpacked(parameter)).sum())
        if count:
            got = f"{count} of {parameter.numel()} that are NaN or infinite"
            advice = "Load or save the checkpoint again."
            raise ArgumentError(f"{prefix}{name}", "finite weights", got, advice)
