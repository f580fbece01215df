"""Fetches the public sets of `bertfast reproduce`: python -m benchmarks.data.fetch squad glue mnli swag -o data"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path

import click

from bertfast._files import atomic_write

from .sets import MRPC, SETS, Source

_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_MRPC_FILES = ("train.tsv", "dev.tsv", "test.tsv")


class FetchError(Exception):
    """A file cannot be fetched, or is not the one that was meant; the message says what to do."""


def fetch(sources: Iterable[Source], folder: Path) -> None:
    """Fetch files that are not there yet, verify them and put them below a folder.

    A file that was begun goes on where it ended. It gets its name, or an archive is unpacked, when its hash is right.

    Raises:
        FetchError: an address cannot be reached, or what came has another hash; then it is removed.
    """
    for source in sources:
        target = folder / source.target
        if target.exists():
            click.echo(f"{target}: there")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        click.echo(f"{source.address}")
        _download(source.address, part)
        _verify(part, source)
        if source.address.endswith(".zip"):
            _unpack(part, target)
        else:
            part.rename(target)
        click.echo(f"{target}: {source.sha256}, as expected")


def _download(address: str, part: Path) -> None:
    """The bytes that `part` lacks; all, where the server gives no parts."""
    begun = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            goes_on = begun and answer.status == 206
            with open(part, "ab" if goes_on else "wb") as handle:
                shutil.copyfileobj(answer, handle, _CHUNK)
                came = handle.tell() - (begun if goes_on else 0)
            promised = answer.headers["Content-Length"]
            if promised is not None and came < int(promised):
                raise OSError(f"{came} of {promised} bytes came")
    except urllib.error.HTTPError as error:
        if begun and error.code == 416:  # all of it was there; its hash tells
            return
        raise FetchError(f"{address}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{address}: {error}. The same command goes on.") from error


def _verify(part: Path, source: Source) -> None:
    digest = hashlib.sha256()
    with open(part, "rb") as handle:
        while some := handle.read(_CHUNK):
            digest.update(some)
    found = digest.hexdigest()
    if found != source.sha256:
        size = part.stat().st_size
        part.unlink()
        raise FetchError(
            f"{source.address}: expected SHA-256 {source.sha256}, got {found} of {size:,} bytes, now removed. Try "
            "again; if it stays so, the file was changed where it comes from."
        )


def _unpack(archive: Path, target: Path) -> None:
    """The folder with the target's name that an archive holds."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(temporary)
    if not (temporary / target.name).is_dir():
        raise FetchError(f"{archive}: expected a folder {target.name} in it, there is none.")
    (temporary / target.name).rename(target)
    shutil.rmtree(temporary)
    archive.unlink()


def make_mrpc(folder: Path) -> None:
    """GLUE's three files of MRPC, from those of SentEval and the list of the pairs in dev."""
    if all((folder / name).exists() for name in _MRPC_FILES):
        return
    train, test = (_rows(folder / f"msr_paraphrase_{part}.txt") for part in ("train", "test"))
    held = {tuple(row) for row in _rows(folder / "mrpc_dev_ids.tsv")}
    header, *pairs = train
    dev = [row for row in pairs if tuple(row[1:3]) in held]
    rest = [row for row in pairs if tuple(row[1:3]) not in held]
    asked = [[str(number), *row[1:]] for number, row in enumerate(test[1:])]
    rows = ([header, *rest], [header, *dev], [["index", *header[1:]], *asked])
    for name, some in zip(_MRPC_FILES, rows, strict=True):
        with atomic_write(folder / name, "w") as handle:
            handle.writelines("\t".join(row) + "\n" for row in some)


def _rows(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line]


@click.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice(list(SETS)))
@click.option("-o", "--output", default="data", show_default=True, help="Folder of the data.")
def main(names: tuple[str, ...], output: str) -> None:
    """Fetch sets: squad (both versions), mnli, glue (with mnli), swag."""
    folder = Path(output)
    try:
        for name in names:
            fetch(SETS[name], folder)
            if name == "glue":
                make_mrpc(folder / MRPC)
    except FetchError as error:
        sys.exit(f"fetch: {error}")


if __name__ == "__main__":
    main()
