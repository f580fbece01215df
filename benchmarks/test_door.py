"""What a call costs besides its operations: through the core, through bertfast's class, through transformers' class.

Twelve layers so narrow that the host's time is nearly all there is; one thread, a ragged batch, no dropout; a forward
alone, and with its backward. `core` packs, encodes and unpacks; the door adds the look at arguments and modules, and
transformers' output object.
"""

from __future__ import annotations

import time

import pytest
import torch

from bertfast import BertConfig, BertModel
from bertfast.core.batch import pack, unpack
from bertfast.core.encode import encode_packed

from .peers import transformers_bert
from .race import RACES, Race, fma_peak, report, widest

CONFIG = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
GROUPS = {"forward": "host time, 12 tiny layers", "step": "host time, 12 tiny layers, backward too"}
CONTENDERS = ("core", "bertfast", "sdpa")
ROUNDS = 500


def run_race(kind: str) -> Race:
    torch.manual_seed(20)
    model = BertModel(BertConfig(**CONFIG), add_pooling_layer=False).eval()
    theirs = transformers_bert.build(CONFIG, model.state_dict(), "sdpa", pooler=False)
    ids, mask = torch.randint(0, 99, (2, 8)), torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    weights = model.view()

    def core() -> torch.Tensor:
        batch = pack(mask, 2, 8, "cpu", input_ids=ids)
        return unpack(encode_packed(weights, batch), batch)

    contenders = {
        "core": core,
        "bertfast": lambda: model(ids, attention_mask=mask).last_hidden_state,
        "sdpa": lambda: theirs(ids, attention_mask=mask).last_hidden_state,
    }
    assert core().equal(contenders["bertfast"]())
    difference = (contenders["sdpa"]() - contenders["bertfast"]())[mask.bool()].abs()
    assert difference.max() < 1e-4
    if kind == "step":
        parameters = [*model.parameters(), *theirs.parameters()]
        contenders = {name: _step(run, parameters) for name, run in contenders.items()}
    return _race(kind, contenders, int(mask.sum()))


def _step(run, parameters):
    gradient = torch.ones(2, 8, CONFIG["hidden_size"])

    def step() -> None:
        run().backward(gradient)
        for parameter in parameters:
            parameter.grad = None

    return step


def _race(kind, contenders, tokens: int) -> Race:
    race = Race(GROUPS[kind], tokens, 1.0, "sdpa")
    race.peaks = {widest(): fma_peak(widest())}
    race.samples = {name: [] for name in contenders}
    for index in range(
        -50, ROUNDS
    ):  # without a look at the peak between rounds, which would empty the caches
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if index >= 0:
                race.samples[name].append(time.perf_counter() - start)
    return race


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("kind", GROUPS)
def test_door(benchmark, kind, name):
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    group = GROUPS[kind]
    if group not in RACES:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(kind == "forward"):
                RACES[group] = run_race(kind)
        finally:
            torch.set_num_threads(threads)
    report(benchmark, RACES[group], name)
