"""Exceptions: every message names what was expected, what came, and what to do."""


class BertfastError(Exception):
    """Base of everything that bertfast raises on purpose."""


class ArgumentError(BertfastError, ValueError):
    """An argument of a public function is wrong.

    Args:
        name: the argument as the caller spells it.
        expected: what would have been right.
        got: what came.
        advice: what to do about it, one sentence.
    """

    def __init__(self, name: str, expected: str, got: str, advice: str | None = None):
        self.name, self.expected, self.got, self.advice = name, expected, got, advice
        super().__init__(
            f"{name}: expected {expected}, got {got}." + (f" {advice}" if advice else "")
        )

    def __reduce__(self):
        return type(self), (self.name, self.expected, self.got, self.advice)


class ConfigError(BertfastError, ValueError):
    """A model configuration is missing a field or describes an impossible model."""


class CheckpointError(BertfastError, ValueError):
    """A checkpoint cannot be read, is incomplete, or is not safe to read."""


class InputFileError(BertfastError, ValueError):
    """A text input cannot be read; the message carries the file and the line."""


class StoreError(BertfastError, ValueError):
    """A store of tokens is unfinished, damaged, or made with other settings; the message names the file."""


class RecipeError(BertfastError, ValueError):
    """A training recipe cannot be read, or says something that is wrong."""


class RunError(BertfastError, RuntimeError):
    """A training run cannot go on: its folder is in use or another run's, or its loss is not finite."""


class UnsupportedError(BertfastError, RuntimeError):
    """A feature, or a backend asked for by name, refuses; the message says what to use."""
