"""Files: output appears whole under its name, or what stood there before stays."""

from __future__ import annotations

import os

import pytest

from bertfast._files import atomic_path, atomic_write


def test_atomic_write(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_write(path, "w") as file:
        file.write("ä")
        assert not path.exists()
    assert path.read_bytes() == "ä".encode()
    path.chmod(0o640)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == "ä".encode()
    with atomic_path(path) as temporary:
        temporary.unlink()  # a writer may make the file anew, with permissions of its own
        temporary.touch(mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_atomic_write_refuses(tmp_path):
    for place, kind in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "none" / "x", FileNotFoundError),
    ):
        with pytest.raises(kind) as caught, atomic_write(place):
            pass
        assert caught.value.filename == str(place)
    with pytest.raises(ValueError, match="mode"), atomic_write(tmp_path / "x", "a"):
        pass


def test_atomic_write_keeps_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(tmp_path / "pipe") as file:
        file.write(b"x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)
