"""Sentences of a document."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from importlib.metadata import version

from ..checkpoint.hub import require
from ..errors import ArgumentError

Split = Callable[[str], Iterable[str]]
_CHINESE = re.compile(r"[^。！？；;]+(?:[。！？；;]+[”’」』）】》]*)?|[。！？；;]+[”’」』）】》]*")


def splitter(language: str = "en", hook: str | None = None) -> Split:
    """What splits a document into sentences; a line break inside a document is a space.

    Args:
        language: an ISO 639 code, for the rules of sentencex; "zh" splits after 。！？；;.
        hook: "module:function" of a function that takes a document and gives its sentences, instead.

    Raises:
        ArgumentError: no such language code or function.
        UnsupportedError: sentencex is not installed.
    """
    if hook is not None:
        return _hook(hook)
    if not re.fullmatch(r"[a-z]{2,3}", language):
        raise ArgumentError("language", "an ISO 639 code such as en", repr(language))
    if language == "zh":
        return _CHINESE.findall
    segment = require("sentencex", "Splitting text into sentences").segment
    return lambda text: segment(language, text)


def describe(language: str, hook: str | None) -> str:
    """The splitter and its version, as the store keeps it."""
    if hook is not None:
        return hook
    return "zh 1" if language == "zh" else f"sentencex {version('sentencex')} {language}"


def lines(text: str) -> list[str]:
    """A hook for documents with a sentence a line: --sentences bertfast.data.sentences:lines."""
    return text.splitlines()


def sentences(text: str, split: Split) -> list[str]:
    """The sentences of a document, with single spaces inside; none is empty."""
    found = (" ".join(sentence.split()) for sentence in split(text))
    return [sentence for sentence in found if sentence]


def _hook(name: str) -> Split:
    module, colon, function = name.partition(":")
    expected = "module:function, a function that can be imported"
    if not (module and colon and function):
        raise ArgumentError("sentences", expected, repr(name))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ArgumentError("sentences", expected, f"{name!r} ({error})") from error
    if not callable(found):
        raise ArgumentError("sentences", expected, f"{name!r}, which is no function")
    return found
