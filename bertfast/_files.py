"""Files: output appears whole under its name, or what stood there before stays; JSON is read with clear errors."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_OPEN_FILES = tuple(map(Path, ("/dev", "/dev/fd", "/proc/self/fd")))  # their names are links


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """For a writer that wants a file name: give it the yielded temporary path, in the same directory.

    When the block ends well, that file is flushed to disk and renamed to `path`; when it raises, it is removed and
    `path` is as before. Of a symbolic link the target is replaced, and the link stays. A device, a pipe or an open file
    (``/dev/null``, ``/dev/fd/3``) is yielded as it is and never replaced. Several files become visible together by
    entering them all in one ``contextlib.ExitStack``: the last entered is renamed first.

    Raises:
        OSError: with `path` as its file name, when the directory is missing or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if (path.exists() and not path.is_file()) or path.parent in _OPEN_FILES:
        yield path
        return
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    # short, as names are limited
    temporary = target.with_name(f".bertfast-{secrets.token_hex(8)}.tmp")
    try:
        mode = _create(temporary, target, path)
        yield temporary
        flush(temporary)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` only when the block ends without an exception.

    Args:
        path: the file to write; its directory must exist. A device or pipe is opened straight.
        mode: "wb" or "w"; text is UTF-8.

    Raises:
        OSError: the file cannot be created, written or renamed (disk full, no permission); nothing is left behind.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode: expected 'w' or 'wb', got {mode!r}.")
    encoding = "utf-8" if mode == "w" else None
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as handle:
        yield handle


@contextmanager
def alone(folder: Path, busy: Exception) -> Iterator[None]:
    """For one process at a time, on a folder, which is made; raises `busy` where another one is at work there."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise busy from None


def write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write a JSON object that replaces `path` when all of it is on the disk."""
    with atomic_write(path, "w") as handle:
        json.dump(value, handle, indent=1)
        handle.write("\n")


def read_json(path: Path, error: type[Exception]) -> dict[str, Any]:
    """The JSON object that a file holds; raises `error`, naming the file, when there is none."""
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise error(f"{path}: expected a file, got {found} there.")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as cause:
        raise error(f"{path}: cannot be read, {cause.strerror}.") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{path}: expected JSON in UTF-8, got something else ({cause}).") from cause
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def _create(temporary: Path, target: Path, path: Path) -> int:
    """Makes an empty file; returns the permissions that it shall have in the end: those of the file that it replaces,
    else what the umask leaves (a writer may make the temporary file anew, with others)."""
    try:
        mode = target.stat().st_mode & 0o777 if target.is_file() else None
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        return os.fstat(handle).st_mode & 0o777 if mode is None else mode
    finally:
        os.close(handle)


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
