"""Stores from documents: what they hold, by any number of workers, after any interruption."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import filelock
import numpy as np
import pytest

from bertfast.data import readers, shards
from bertfast.data.prepare import prepare
from bertfast.data.sentences import sentences, splitter
from bertfast.data.store import Store
from bertfast.data.vocabulary import train_vocabulary
from bertfast.errors import ArgumentError, CheckpointError, InputFileError, StoreError
from bertfast.text.tokenizer import Tokenizer
from harness.stores import documents


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a store, by its name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def decoded(store: Store) -> list[list[list[str]]]:
    """The tokens of each sentence of each document."""
    tokens = np.empty(store.tokens, dtype=int)
    starts = store.sentence_starts.range(0, store.sentences)
    store.copy_tokens(starts[:-1], np.diff(starts).tolist(), tokens, starts[:-1].tolist())
    name = Tokenizer.from_folder(store.tokenizer_folder).backend.id_to_token
    rows = [[name(i) for i in row.tolist()] for row in np.split(tokens, starts[1:-1])]
    borders = store.document_starts.range(0, store.documents)
    return [rows[a:b] for a, b in pairwise(borders)]


def starts_of_words(store: Store) -> list[bool]:
    found = np.empty(store.tokens, dtype=bool)
    starts = store.sentence_starts.range(0, store.sentences)
    store.copy_words(starts[:-1], np.diff(starts).tolist(), found, starts[:-1].tolist())
    return found.tolist()


def test_store_holds_the_sentences(store, minilm):
    """In their order, tokenized as ever; ## pieces start no word."""
    backend = Tokenizer.from_folder(minilm).backend
    split = splitter("en")
    expected = [
        [backend.encode(s, add_special_tokens=False).tokens for s in sentences(text, split)]
        for text in documents(60)
    ]
    assert decoded(store) == expected
    assert len(list((store.folder / "shards").iterdir())) > 3
    flat = [token for document in expected for sentence in document for token in sentence]
    assert starts_of_words(store) == [not token.startswith("##") for token in flat]
    assert "##va" in flat


def test_special_tokens_in_a_text_are_text(tmp_path, minilm):
    text = tmp_path / "a.txt"
    text.write_text("One [MASK] here. [SEP] there.\n\nAnother.")
    flat = [
        t
        for d in decoded(prepare([text], tmp_path / "store", tokenizer=minilm))
        for s in d
        for t in s
    ]
    assert not {"[MASK]", "[SEP]"} & set(flat)
    assert "mask" in flat


def test_wrapped_lines_and_odd_documents(tmp_path, minilm):
    """A line break is a space; what has no word is no sentence and no document."""
    text = tmp_path / "a.txt"
    text.write_bytes("\ufeffA line\nbreak. Next.\r\n \t\r\n\u200b\n\n\n\x00\n\nLast one".encode())
    found = decoded(prepare([text], tmp_path / "store", tokenizer=minilm))
    assert found == [[["a", "line", "break", "."], ["next", "."]], [["last", "one"]]]


def test_hook(tmp_path, minilm):
    text = tmp_path / "a.txt"
    text.write_text("one. two\nthree\n\nfour\n")
    hook = "bertfast.data.sentences:lines"
    store = prepare([text], tmp_path / "store", tokenizer=minilm, sentence_hook=hook)
    assert decoded(store) == [[["one", ".", "two"], ["three"]], [["four"]]]
    for bad in ("nothing", "os:nothing", "no.module:f", "os:name"):
        with pytest.raises(ArgumentError, match="sentences: expected module:function"):
            prepare([text], tmp_path / "store2", tokenizer=minilm, sentence_hook=bad)
    with pytest.raises(ArgumentError, match="language: expected an ISO 639 code"):
        prepare([text], tmp_path / "store2", tokenizer=minilm, language="English")
    assert not (tmp_path / "store2").exists()


def test_chinese(tmp_path):
    """A vocabulary of characters; sentences end with 。！？；; and their quotes; jieba's words are the words."""
    text, tokenizer = tmp_path / "a.txt", tmp_path / "tokenizer"
    text.write_text("我的狗很可爱。“它睡觉吗？”他说！很好；;对\n\n我们喜欢北京大学的BERTs。")
    train_vocabulary(lambda: readers.texts([text]), tokenizer, size=60, chinese=True)
    store = prepare([text], tmp_path / "store", tokenizer=tokenizer, language="zh", words="jieba")
    found = decoded(store)
    assert ["".join(sentence) for sentence in found[0]] == [
        "我的狗很可爱。",
        "“它睡觉吗？”",
        "他说！",
        "很好；;",
        "对",
    ]
    bits = iter(starts_of_words(store))
    rows = [[(token, next(bits)) for token in sentence] for d in found for sentence in d]
    marked = ["".join("|" * start + token for token, start in row) for row in rows]
    assert marked[0] == "|我|的|狗|很|可爱|。"
    assert marked[-1].startswith("|我们|喜欢|北京大学|的|berts|。")
    assert marked[-1].count("|") == 6
    with pytest.raises(ArgumentError, match="words: expected one of jieba"):
        prepare([text], tmp_path / "other", tokenizer=tokenizer, words="spacy")


# interruptions

KILLED = """
import os, shutil, signal, sys
from multiprocessing import get_context
from pathlib import Path
sys.path[:0] = {path!r}
from bertfast.data import readers, shards
from bertfast.data.prepare import prepare
from test_prepare import content
readers.SLICE = 2000
corpus, folder, minilm = {corpus!r}, Path({folder!r}), {minilm!r}
expected = content(Path({expected!r}))

def run(point=None):
    left = [point]
    def counted(function):
        def call(*arguments):
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)
        return call
    os.fsync, os.rename, os.replace = map(counted, (os.fsync, os.rename, os.replace))
    shards._Writer.write = counted(shards._Writer.write)
    prepare([corpus], folder, tokenizer=minilm)

killed = 0
for point in {points}:
    shutil.rmtree(folder, ignore_errors=True)
    process = get_context("fork").Process(target=run, args=(point,))
    process.start()
    process.join()
    killed += process.exitcode == -signal.SIGKILL
    assert (folder / "store.json").exists() == (process.exitcode == 0), point
    prepare([corpus], folder, tokenizer=minilm)
    assert content(folder) == expected, point
print(killed)
"""


def test_killed_anywhere_it_goes_on(store, corpus, minilm, tmp_path):
    """SIGKILL before the n-th write, fsync or rename: the next run makes the same bytes."""
    points = [1, 3, 8, 17, 18, 19, 20, 21, 40, 10**6]
    names = {"corpus": str(corpus), "folder": str(tmp_path / "store"), "minilm": str(minilm)}
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = KILLED.format(path=path, expected=str(store.folder), points=points, **names)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == len(points) - 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_make_the_same_and_end_with_their_run(store, corpus, minilm, tmp_path):
    """Two processes; the run is killed while they work, and goes on."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nfrom bertfast.data import sentences\n"
        "def split(text):\n    time.sleep(0.05)\n    return sentences.splitter('en')(text)\n"
    )
    program = f"""
from bertfast.data import readers
from bertfast.data.prepare import prepare
if __name__ == "__main__":
    readers.SLICE = 2000
    prepare([{str(corpus)!r}], {str(tmp_path / "store")!r}, tokenizer={str(minilm)!r},
            sentence_hook="slow:split", workers=2)
"""
    script = tmp_path / "run.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, str(script)]
    run = subprocess.Popen(command, env=environment, start_new_session=True)
    shard = tmp_path / "store/shards/00000000"
    deadline = time.monotonic() + 60
    while not shard.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = _children(run.pid)
    run.kill()
    run.wait()
    assert len(children) >= 2
    assert not (tmp_path / "store/store.json").exists()
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_alive, children))
    assert subprocess.run(command, env=environment).returncode == 0
    found, expected = content(tmp_path / "store"), content(store.folder)
    for name in expected:  # the splitter is another
        assert name in ("store.json", "prepare.json") or found[name] == expected[name], name
    assert found.keys() == expected.keys()


def _children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("call", [1, 2, 9, 21, 30])
@pytest.mark.parametrize("function", ["write", "fsync"])
def test_no_space_left(store, corpus, minilm, tmp_path, monkeypatch, small_slices, function, call):
    """What is finished stays, nothing half written is left, and the next run ends it."""
    left = [call]

    def full(true):
        def write(*arguments):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return true(*arguments)

        return write

    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        if function == "fsync":
            patch.setattr(os, "fsync", full(os.fsync))
        else:
            patch.setattr(shards, "open_raw", lambda path: _Full(path, left))
        with pytest.raises(OSError, match="No space left"):
            prepare([corpus], folder, tokenizer=minilm)
    assert not list(folder.rglob("*.tmp"))
    finished = {name: data for name, data in content(folder).items() if name.startswith("shards/")}
    expected = content(store.folder)
    assert all(expected[name] == data for name, data in finished.items())
    assert bool(finished) == (call > 8)
    prepare([corpus], folder, tokenizer=minilm)
    assert content(folder) == expected


class _Full:
    """A file on a disk that has no space at the n-th write."""

    def __init__(self, path: Path, left: list[int]):
        self._handle, self._left = open(path, "wb", buffering=0), left  # noqa: SIM115
        self.fileno, self.close = self._handle.fileno, self._handle.close

    def write(self, data) -> int:
        self._left[0] -= 1
        if self._left[0] == 0:
            self._handle.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._handle.write(data)


def test_shards_in_doubt_are_made_again(store, corpus, minilm, tmp_path, small_slices):
    copied = shutil.copytree(store.folder, tmp_path / "copy")
    (copied / "shards/00000001/words.bits").unlink()
    (copied / "shards/00000002/shard.json").write_text("{}")
    (copied / "shards/00000003.0a1b.tmp").mkdir()
    os.utime(copied / "shards/00000000/tokens.bin", (0, 0))
    prepare([corpus], copied, tokenizer=minilm)
    assert content(copied) == content(store.folder)
    assert (copied / "shards/00000000/tokens.bin").stat().st_mtime == 0  # was not made again


# what is refused


def test_other_settings(store, corpus, minilm, tokenizer_folder, small_slices, tmp_path):
    before = content(store.folder)
    other = tmp_path / "corpus.txt"
    other.write_text(corpus.read_text().replace("My", "Me", 1))
    for inputs, options, different in (
        ([corpus], {"tokenizer": tokenizer_folder}, "tokenizer"),
        ([corpus], {"language": "de"}, "splitter"),
        ([other], {}, "inputs"),
        ([corpus, corpus], {}, "inputs, slices"),
    ):
        with pytest.raises(StoreError, match=f"got other {different}. Give another folder"):
            prepare(inputs, store.folder, **{"tokenizer": minilm, **options})
    assert content(store.folder) == before


def test_two_runs_on_one_folder(store, corpus, minilm, small_slices):
    with (
        filelock.FileLock(store.folder / ".lock"),
        pytest.raises(StoreError, match="got one that is preparing this store"),
    ):
        prepare([corpus], store.folder, tokenizer=minilm)
    again = prepare([corpus], store.folder, tokenizer=store.tokenizer_folder)  # its own serves too
    assert again.fingerprint == store.fingerprint
    with pytest.raises(ArgumentError, match="workers: expected one process or more, got 0"):
        prepare([corpus], store.folder, tokenizer=minilm, workers=0)


def test_empty_corpus(tmp_path, minilm):
    """Said; and the folder serves for the corpus that has words."""
    text = tmp_path / "a.txt"
    for nothing in ("", " \n\n\t\n"):
        text.write_text(nothing)
        with pytest.raises(InputFileError, match=r"a\.txt: no document with a word in it"):
            prepare([text], tmp_path / f"store{len(nothing)}", tokenizer=minilm)
    text.write_text("A word.")
    assert prepare([text], tmp_path / "store0", tokenizer=minilm).tokens == 3


def test_undecodable_bytes(corpus, tmp_path, minilm, small_slices):
    """The file and the line, in a later slice too."""
    text = tmp_path / "a.txt"
    lines = corpus.read_bytes().split(b"\n")
    lines[100] += b"\xff"
    text.write_bytes(b"\n".join(lines))
    message = r"a\.txt, line 101: expected UTF-8, got the byte 0xff"
    with pytest.raises(InputFileError, match=message):
        prepare([text], tmp_path / "store", tokenizer=minilm)
    assert (tmp_path / "store/shards/00000000").is_dir()
    with pytest.raises(StoreError, match="an unfinished run"):
        Store.open(tmp_path / "store")


def test_no_mask_in_the_vocabulary(corpus, tmp_path, tokenizer_folder):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    text = (tokenizer_folder / "vocab.txt").read_text().replace("[MASK]\n", "other\n")
    (folder / "vocab.txt").write_text(text)
    with pytest.raises(CheckpointError, match=r"the mask token \[MASK\], it is not there"):
        prepare([corpus], tmp_path / "store", tokenizer=folder)
    assert not (tmp_path / "store").exists()


def test_missing_input(tmp_path, minilm):
    with pytest.raises(InputFileError, match=r"none\.txt: cannot be read, No such file"):
        prepare([tmp_path / "none.txt"], tmp_path / "store", tokenizer=minilm)


def test_slices_of_a_large_input_are_larger(tmp_path, monkeypatch):
    """So that a store has about a thousand shards, not more."""
    monkeypatch.setattr(readers, "SLICE", 1)
    text = tmp_path / "a.txt"
    text.write_text("a b c\n\n" * 20_000)
    assert 900 < len(readers.slices([text])) <= 1024
