"""Learning rates over a run, and how many sequences a step has."""

from __future__ import annotations

import numpy as np

from .recipe import Phase, Settings


def learning_rate(settings: Settings, done: float) -> float:
    """The rate of a step.

    Args:
        done: share of the run that lies before the step, 0 to 1: of its steps, or with a budget of its time.
    """
    return settings.learning_rate * _SCHEDULES[settings.schedule](
        settings, min(max(done, 0.0), 1.0)
    )


def _linear(settings: Settings, done: float) -> float:
    """From 0 to 1 in the warm-up, and to 0 at the end (Devlin et al., 2019, appendix A.2)."""
    if done < settings.warmup:
        return done / settings.warmup
    return (1 - done) / (1 - settings.warmup) if settings.warmup < 1 else 1.0


def _stable(settings: Settings, done: float) -> float:
    """From 0 to 1, level, and to 0 in the last `decay` share (Hu et al., "MiniCPM", 2024)."""
    if done < settings.warmup:
        return done / settings.warmup
    return min(1.0, (1 - done) / settings.decay) if settings.decay else 1.0


# a budget is linear in time, as in Geiping and Goldstein, "Cramming", 2023
_SCHEDULES = {"linear": _linear, "warmup-stable-decay": _stable, "budget": _linear}


def sequences(settings: Settings, phase: Phase) -> np.ndarray:
    """Sequences of each step of a phase, int64 [steps]; in the ramp they grow from an eighth of the phase's batch."""
    ramp = round(settings.ramp * phase.steps)
    share = np.minimum(1.0, np.arange(1, phase.steps + 1) / max(ramp, 1)) if ramp else 1.0
    grown = np.rint(phase.batch * (0.125 + 0.875 * share) * np.ones(phase.steps))
    return np.maximum(1, grown).astype(np.int64)
