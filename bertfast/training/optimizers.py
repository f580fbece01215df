"""AdamW with and without the correction of its moments, and LAMB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .recipe import Settings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights, which decay, and biases and LayerNorm, which do not; each tensor once, in the model's order."""
    found: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            found[parameter.ndim > 1].append(parameter)
    return [
        {"params": found[decays], "weight_decay": weight_decay if decays else 0.0}
        for decays in (True, False)
        if found[decays]
    ]


def make_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The settings's optimizer, with a learning rate that the loop sets."""
    groups = parameter_groups(model, settings.weight_decay)
    kind = AdamW if settings.optimizer == "adamw" else Lamb
    return kind(groups, settings.betas, settings.eps, settings.bias_correction)


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW (Loshchilov and Hutter, 2019), which can leave the moments as they are, as BERT's does.

    Without correction the step is lr · (m / (√v + eps) + decay · w), which torch's is with other numbers: it divides m
    by c1 = 1 - β1^t and √v by √c2, c2 = 1 - β2^t.

    Args:
        groups: with "params" and "weight_decay"; "lr" is set before each step.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        bias_correction: bool,
    ):
        super().__init__(list(groups), lr=0.0, betas=betas, eps=eps, fused=True)
        self.bias_correction = bias_correction

    @torch.no_grad()
    def step(self) -> None:
        """One step, by gradients that are there."""
        if self.bias_correction:
            super().step()
            return
        held = [{name: group[name] for name in _CHANGED} for group in self.param_groups]
        try:
            for group in self.param_groups:
                self._without_correction(group)
            super().step()
        finally:
            for group, values in zip(self.param_groups, held, strict=True):
                group.update(values)

    def _without_correction(self, group: dict[str, Any]) -> None:
        state = self.state.get(group["params"][0])
        time = 1 + (int(state["step"]) if state else 0)
        c1, c2 = (1 - beta**time for beta in group["betas"])
        factor = c1 / c2**0.5
        group["lr"], group["eps"] = group["lr"] * factor, group["eps"] / c2**0.5
        group["weight_decay"] = group["weight_decay"] / factor


_CHANGED = ("lr", "eps", "weight_decay")


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, algorithm 2).

    Each weight's step is Adam's, decay added, scaled to the norm of the weight; what does not decay takes Adam's step.

    Args: as `AdamW`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        bias_correction: bool,
    ):
        super().__init__(list(groups), {"lr": 0.0, "betas": betas, "eps": eps})
        self.bias_correction = bias_correction

    @torch.no_grad()
    def step(self) -> None:
        """One step, by gradients that are there."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_of(weight, group)

    def _step_of(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        (beta1, beta2), time = group["betas"], int(state["step"])
        mean = state["exp_avg"].lerp_(weight.grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
        if self.bias_correction:
            mean, square = mean / (1 - beta1**time), square / (1 - beta2**time)
        update = mean / (square.sqrt() + group["eps"])
        decay = group["weight_decay"]
        if decay:
            update = update + decay * weight
            length, other = _norm(weight), _norm(update)
            ratio = torch.where((length > 0) & (other > 0), length / other, 1.0)
            update = update * ratio
        weight.add_(update, alpha=-group["lr"])


def _norm(tensor: Tensor) -> Tensor:
    """Of the whole tensor, where processes hold parts of it too."""
    found = torch.linalg.vector_norm(tensor)
    return found.full_tensor() if hasattr(found, "full_tensor") else found
