"""Which values the fields of a `BertConfig` may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .errors import ConfigError

HIDDEN_ACTS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh")


def check(config: Any) -> None:
    """Raise ConfigError at the first field that describes no model that bertfast can run."""
    for name, expected, holds, advice in _RULES:
        value = getattr(config, name, None)
        if not holds(value):
            raise ConfigError(message(name, expected, value, advice))
    heads = config.num_attention_heads
    if config.hidden_size % heads:
        advice = f"num_attention_heads is {heads}; each head takes an equal part."
        raise ConfigError(
            message("hidden_size", f"a multiple of {heads}", config.hidden_size, advice)
        )
    pad = config.pad_token_id
    if pad is not None and not (is_int(pad) and -config.vocab_size <= pad < config.vocab_size):
        expected = f"None or a token id below vocab_size {config.vocab_size}"
        raise ConfigError(message("pad_token_id", expected, pad, None))


def message(name: str, expected: str, got: Any, advice: str | None) -> str:
    text = repr(got)
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"{name}: expected {expected}, got {text}." + (f" {advice}" if advice else "")


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any, low: float = 0.0, high: float = math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value < high


def _is_dropout(value: Any) -> bool:
    # Dropout works in steps of 2**-16; all of them would leave nothing.
    return _is_number(value, high=1.0) and round(value * 65536) < 65536


_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
_ENCODERS_ONLY = "bertfast runs encoders only; use transformers for this model."
# Field, what is expected, whether a value is, what to do.
_RULES: list[tuple[str, str, Callable[[Any], bool], str | None]] = [
    ("model_type", "'bert'", lambda v: v == "bert", "Load another architecture with transformers."),
    *[
        (name, "an integer from 1 to 2147483647", lambda v: is_int(v) and 1 <= v < 2**31, None)
        for name in (*_SIZES, "type_vocab_size")
    ],
    (
        "num_hidden_layers",
        "an integer from 0 to 4096",
        lambda v: is_int(v) and 0 <= v <= 4096,
        None,
    ),
    (
        "hidden_act",
        "one of " + ", ".join(HIDDEN_ACTS),
        lambda v: isinstance(v, str) and v in HIDDEN_ACTS,
        "Use transformers for another activation.",
    ),
    ("hidden_dropout_prob", "a number from 0 to below 1", _is_dropout, None),
    ("attention_probs_dropout_prob", "a number from 0 to below 1", _is_dropout, None),
    (
        "classifier_dropout",
        "None or a number from 0 to below 1",
        lambda v: v is None or _is_dropout(v),
        None,
    ),
    ("layer_norm_eps", "a finite number of at least 0", _is_number, None),
    ("initializer_range", "a finite number of at least 0", _is_number, None),
    (
        "problem_type",
        "None or one of " + ", ".join(_PROBLEMS),
        lambda v: v in (None, *_PROBLEMS),
        None,
    ),
    ("is_decoder", "False", lambda v: not v, _ENCODERS_ONLY),
    ("is_encoder_decoder", "False", lambda v: not v, _ENCODERS_ONLY),
    ("add_cross_attention", "False", lambda v: not v, _ENCODERS_ONLY),
    (
        "position_embedding_type",
        "'absolute'",
        lambda v: v == "absolute",
        "For relative positions use transformers below version 5.",
    ),
    (
        "chunk_size_feed_forward",
        "0",
        lambda v: not v,
        "Set it to 0: the outputs are the same, and the feed-forward layers need little memory here.",
    ),
    ("pruned_heads", "none", lambda v: not v, "Use transformers below version 5 for pruned heads."),
    (
        "quantization_config",
        "none",
        lambda v: not v,
        "Take the checkpoint with unquantized weights.",
    ),
]
