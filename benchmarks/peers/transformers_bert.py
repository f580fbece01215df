"""transformers' BertModel as a peer: the same weights, in this process or in one of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

# MKL takes its fast paths only on processors that call themselves Intel's. Loaded first, this replaces its answer.
TELL_MKL = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def build(config: dict, state: dict[str, Tensor], attention: str, pooler: bool = True):
    """transformers' model in eval mode with the given weights; attention is "eager" or "sdpa"."""
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(**config, attn_implementation=attention), add_pooling_layer=pooler
    ).eval()
    model.load_state_dict(state)
    return model


def is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def build_mkl_library(folder: Path) -> Path:
    """The library that, loaded first (LD_PRELOAD), tells MKL that the processor is Intel's."""
    library = folder / "tell_mkl.so"
    source = library.with_suffix(".c")
    source.write_text(TELL_MKL)
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return library


class Worker:
    """A transformers model (sdpa) in a process of its own, in which MKL is told that the processor is Intel's."""

    def __init__(self, config: dict, state: dict[str, Tensor], threads: int):
        self._folder = tempfile.TemporaryDirectory()
        library = build_mkl_library(Path(self._folder.name))
        weights = Path(self._folder.name, "weights.pt")
        torch.save(state, weights)
        context = get_context("spawn")
        self._pipe, end = context.Pipe()
        before = os.environ.get("LD_PRELOAD")
        os.environ["LD_PRELOAD"] = str(library)
        try:
            self._process = context.Process(
                target=_serve, args=(end, config, weights, threads), daemon=True
            )
            self._process.start()
        finally:
            os.environ.pop("LD_PRELOAD")
            if before is not None:
                os.environ["LD_PRELOAD"] = before
        self._pipe.recv()

    def output(self, batch: dict[str, Tensor]) -> Tensor:
        """last_hidden_state [B,S,H] of the batch, which later calls repeat."""
        self._pipe.send({name: tensor.numpy() for name, tensor in batch.items()})
        return torch.from_numpy(self._pipe.recv())

    def __call__(self) -> float:
        """Seconds of one forward."""
        self._pipe.send(None)
        return self._pipe.recv()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._folder.cleanup()

    @staticmethod
    def refusal() -> str | None:
        """Why this contender makes no sense here, or None."""
        if not is_amd():
            return "not an AMD processor: stock MKL is at its best already"
        return (
            None
            if shutil.which("cc")
            else "no C compiler to build the one-line library that tells MKL"
        )


def _serve(pipe, config: dict, weights: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    model = build(config, torch.load(weights), "sdpa")
    pipe.send("ready")
    batch: dict[str, Tensor] = {}
    with torch.no_grad():
        while True:
            message = pipe.recv()
            if message is not None:
                batch = {name: torch.from_numpy(array) for name, array in message.items()}
                pipe.send(model(**batch).last_hidden_state.numpy())
                continue
            start = time.perf_counter()
            model(**batch)
            pipe.send(time.perf_counter() - start)
