"""`check_finite=True`: name the first part of the model whose weights or output are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, UnsupportedError
from .frozen import thawed


def check_weights(model: nn.Module) -> None:
    """Raise ArgumentError naming the first parameter that is not finite everywhere."""
    with thawed(model):
        for name, parameter in model.named_parameters():
            _check_parameter(name, parameter)


def check_output(name: str, module: nn.Module, output: Tensor) -> None:
    """Raise ArgumentError if `output` of the module called `name` is not finite: its weight's fault, or its own."""
    if torch.compiler.is_compiling():
        raise UnsupportedError(
            "check_finite=True reads values and cannot be compiled: call the model uncompiled."
        )
    bad = ~torch.isfinite(output)
    if not bad.any():
        return
    with thawed(module):
        for suffix, parameter in module.named_parameters():
            _check_parameter(f"{name}.{suffix}", parameter)
    token = int(bad.flatten(1).any(1).nonzero()[0])
    if output.dtype == torch.float16:
        advice = "Its weights are finite: values overflow float16; use bfloat16 or float32."
    else:
        advice = "Its weights are finite: look at inputs_embeds and at the size of the weights."
    raise ArgumentError(
        name,
        "a finite output",
        f"{int(bad.sum())} values that are not, from token {token} on",
        advice,
    )


def check_head(head: nn.Module, outputs: Mapping[str, Tensor | None]) -> None:
    """Raise ArgumentError if a loss or logits are not finite: their weights' fault, their own, or the labels'."""
    bad = [k for k, v in outputs.items() if v is not None and not torch.isfinite(v).all()]
    if not bad:
        return
    check_weights(head)
    name, value = bad[-1], outputs[bad[-1]]
    if name == "loss":
        advice = "The weights are finite: look at the labels (with none but -100 there is no mean) and the logits."
        raise ArgumentError("loss", "a finite number", f"{value.item()}", advice)
    count = value.numel() - int(torch.isfinite(value).sum())
    advice = "The head's weights are finite: values overflow, so use bfloat16 or float32."
    raise ArgumentError(name, "finite values", f"{count} that are not", advice)


def _check_parameter(name: str, parameter: Tensor) -> None:
    count = parameter.numel() - int(torch.isfinite(parameter).sum())
    if count:
        got = f"{count} of {parameter.numel()} that are NaN or infinite"
        raise ArgumentError(name, "finite weights", got, "Load or save the checkpoint again.")
