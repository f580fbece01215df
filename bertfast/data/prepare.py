"""A corpus on disk to a store of tokens: in slices, by several processes, and on from where a run was stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from .._files import alone, read_json, write_json
from ..checkpoint.hub import require
from ..errors import ArgumentError, BertfastError, InputFileError, StoreError
from . import readers, sentences, shards
from .segments import Segmenter, check_words
from .store import FILE, SHARDS, TOKENIZER, VERSION, Store, shard_folder, token_dtype, write_summary
from .vocabulary import copy_tokenizer, read_vocabulary

SETTINGS = "prepare.json"  # what a run was asked for; a later one with other settings is refused


class _Task(NamedTuple):
    """What a worker needs to know, beside the slice."""

    folder: Path
    language: str
    hook: str | None
    words: str | None


def prepare(
    inputs: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str],
    language: str = "en",
    field: str = "text",
    sentence_hook: str | None = None,
    words: str | None = None,
    workers: int = 1,
    progress: bool | None = None,
) -> Store:
    """Write a store of the documents of `inputs`; a run that was stopped is gone on with.

    The store's bytes follow from the input and the settings, whatever the number of workers and of interruptions.

    Args:
        inputs: what `readers.slices` takes.
        folder: of the store; made where it is missing.
        tokenizer: a folder with the tokenizer, such as a checkpoint; it is copied into the store.
        language, sentence_hook: what `sentences.splitter` takes.
        field: where jsonl, parquet and data sets have the text.
        words: "jieba": bits for Chinese whole words.
        workers: processes; 1 works in this one.
        progress: show a bar; None: on a terminal.

    Raises:
        ArgumentError: an argument is out of its range, or the name of an input says no known format.
        InputFileError: an input cannot be read, or there is no word in all of them.
        StoreError: the folder holds a store of other settings, or another run is at work on it.
        CheckpointError: no tokenizer, or one without [MASK].
        OSError: the disk is full. What is finished stays, and the next run goes on.
    """
    check_words(words)
    if workers < 1:
        raise ArgumentError("workers", "one process or more", repr(workers))
    sentences.splitter(language, sentence_hook)  # raises what is wrong before anything is written
    source = Path(tokenizer)
    loaded, vocabulary = read_vocabulary(source)
    parts = readers.slices(inputs, field)
    settings = {
        "version": VERSION,
        "inputs": [readers.identity(path) for path in inputs],
        "slices": [part[2:5] for part in parts],
        "tokenizer": hashlib.sha256(loaded.backend.to_str().encode()).hexdigest(),
        "splitter": sentences.describe(language, sentence_hook),
        "words": f"jieba {version('jieba')}" if words else "pieces",
    }
    folder = Path(folder)
    busy = StoreError(
        f"{folder}: expected no other run, got one that is preparing this store. Wait for its end."
    )
    with alone(folder, busy):
        (folder / SHARDS).mkdir(exist_ok=True)
        _remove_stale(folder)
        _check_settings(folder, settings)
        copy_tokenizer(source, folder / TOKENIZER, loaded, vocabulary.tokens)
        task = _Task(folder, language, sentence_hook, words)
        _make_shards(task, parts, workers, progress)
        about = {"splitter": settings["splitter"], "words": settings["words"]}
        if not write_summary(folder, vocabulary, len(parts), about):
            raise InputFileError(f"{', '.join(map(str, inputs))}: no document with a word in it.")
    return Store.open(folder)


def _remove_stale(folder: Path) -> None:
    """What a run that was killed had begun."""
    for shard in (folder / SHARDS).glob("*.tmp"):
        shutil.rmtree(shard, ignore_errors=True)
    for file in folder.glob(".bertfast-*.tmp"):
        file.unlink()


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))  # tuples become lists
    if not path.is_file() or not any((folder / SHARDS).iterdir()):
        write_json(path, settings)
        return
    before = read_json(path, StoreError)
    different = [key for key in settings if before.get(key) != settings[key]]
    if different:
        raise StoreError(
            f"{path}: expected the settings of the run that began this store, got other {', '.join(different)}. "
            "Give another folder, or remove this one."
        )


def _make_shards(
    task: _Task, parts: list[readers.Slice], workers: int, progress: bool | None
) -> None:
    """Make the shards that are not there."""
    todo = [number for number in range(len(parts)) if not _finished(task.folder, number)]
    if not todo:
        return
    (task.folder / FILE).unlink(missing_ok=True)  # unfinished, from here on
    tqdm = require("tqdm", "The progress bar").tqdm
    bar = tqdm(
        total=sum(part.bytes for part in parts),
        initial=sum(part.bytes for part in parts) - sum(parts[n].bytes for n in todo),
        unit="B",
        unit_scale=True,
        desc="prepare",
        disable=not (sys.stderr.isatty() if progress is None else progress),
    )
    with bar:
        for number in _made(task, parts, todo, workers):
            bar.update(parts[number].bytes)


def _finished(folder: Path, number: int) -> bool:
    """Whether a shard is whole; one in doubt is removed."""
    shard = shard_folder(folder, number)
    if not shard.is_dir():
        return False
    try:
        shards.read_summary(shard)
    except StoreError:
        shutil.rmtree(shard)
        return False
    return True


def _made(task: _Task, parts: list[readers.Slice], todo: list[int], workers: int) -> Iterator[int]:
    """Numbers of shards, as they are made."""
    if workers == 1 or len(todo) == 1:
        worker = _Worker(task)
        for number in todo:
            worker.make(number, parts[number])
            yield number
        return
    context = multiprocessing.get_context("spawn")  # nothing of this process's threads
    with ProcessPoolExecutor(min(workers, len(todo)), context, _start, (task,)) as pool:
        try:
            waiting: dict[Future[None], int] = {
                pool.submit(_make, number, parts[number]): number for number in todo
            }
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield waiting.pop(future)
        except BrokenProcessPool as error:
            raise BertfastError(
                "A process of bertfast prepare was killed; the machine may lack memory. Run it again with fewer "
                "--workers: it goes on where it stopped."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


class _Worker:
    """Makes shards."""

    def __init__(self, task: _Task):
        tokenizer, vocabulary = read_vocabulary(task.folder / TOKENIZER)
        split = sentences.splitter(task.language, task.hook)
        self._folder = task.folder
        self._segmenter = Segmenter(tokenizer, vocabulary, split, task.words)
        self._dtype = token_dtype(len(vocabulary.tokens))

    def make(self, number: int, part: readers.Slice) -> None:
        blocks = self._segmenter.blocks(readers.documents(part))
        shards.write_shard(shard_folder(self._folder, number), blocks, self._dtype)


_worker: _Worker | None = None  # of a process of the pool


def _start(task: _Task) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process is a core
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(task)


def _make(number: int, part: readers.Slice) -> None:
    _worker.make(number, part)


def _end_with_parent() -> None:
    """A run that is killed leaves no process behind, which would write while the next run does."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
