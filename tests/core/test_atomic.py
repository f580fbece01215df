"""Files: output appears whole under its name, or what stood there before stays."""

from __future__ import annotations

import os
import stat

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


def test_atomic_write_replaces_the_target_of_a_link(tmp_path):
    """Over several links, relative ones too; the target keeps its permissions, and what fails changes nothing."""
    there = tmp_path / "there"
    there.mkdir()
    target, second, link = there / "data", there / "second", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o604)
    second.symlink_to("data")
    link.symlink_to(second)
    with pytest.raises(KeyError), atomic_write(link):
        raise KeyError
    assert target.read_bytes() == b"old"
    with atomic_write(link) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert (link.is_symlink(), second.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o604
    assert sorted(os.listdir(there)) == ["data", "second"]
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]


def test_atomic_write_of_links_without_a_file(tmp_path):
    """One that dangles makes its target, as open does; a circle, or a folder that is missing, is an error."""
    (tmp_path / "dangling").symlink_to("target")
    with atomic_write(tmp_path / "dangling") as file:
        file.write(b"new")
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "dangling").is_symlink()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("none/target")
    (tmp_path / "folder").symlink_to(".")
    for name, kind in (("circle", OSError), ("nowhere", OSError), ("folder", IsADirectoryError)):
        with pytest.raises(kind) as caught, atomic_write(tmp_path / name):
            pass
        assert caught.value.filename == str(tmp_path / name)
        assert (tmp_path / name).is_symlink()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_atomic_write_of_open_files(tmp_path):
    """/dev/fd/N is a link to a file that somebody holds open: it is written, not replaced."""
    with open(tmp_path / "held", "w+b") as held:
        with atomic_write(f"/dev/fd/{held.fileno()}") as file:
            file.write(b"new")
        assert held.read() == b"new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(tmp_path / "link") as file:
        file.write(b"x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(tmp_path / "link").st_mode)


@pytest.mark.parametrize("function", ["fstat", "open"])
def test_an_interrupt_while_the_file_is_made_leaves_none(tmp_path, monkeypatch, function):
    """A signal may come at any line."""
    right = getattr(os, function)

    def interrupted(*arguments):
        right(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "out"):
        pass
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []
