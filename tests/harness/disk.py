"""A disk that is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def full_after(works: int, owner: Any, name: str) -> Iterator[None]:
    """Inside, the function `name` of `owner` works so many times, and then there is no space left."""
    original, calls = getattr(owner, name), []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > works:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, full)
        yield
