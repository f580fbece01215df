"""What a call costs besides its operations: through the core, through bertfast's class, through transformers' class.

Twelve layers so narrow that the host's time is nearly all there is; one thread, eval mode, a ragged batch. `core`
packs, encodes and unpacks; the door adds the look at arguments and modules, and transformers' output object.
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
GROUP = "host time, 12 tiny layers"
CONTENDERS = ("core", "bertfast", "sdpa")
ROUNDS = 500


def run_race() -> Race:
    torch.manual_seed(20)
    model = BertModel(BertConfig(**CONFIG), add_pooling_layer=False).eval()
    theirs = transformers_bert.build(CONFIG, model.state_dict(), "sdpa", pooler=False)
    ids, mask = torch.randint(0, 99, (2, 8)), torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    weights = model.view()

    def core() -> torch.Tensor:
        batch = pack(mask, 2, 8, "cpu", input_ids=ids)
        return unpack(encode_packed(weights, batch), batch)

    ours = model(ids, attention_mask=mask).last_hidden_state
    assert core().equal(ours)
    difference = (theirs(ids, attention_mask=mask).last_hidden_state - ours)[mask.bool()].abs()
    assert difference.max() < 1e-4
    race = Race(GROUP, int(mask.sum()), 1.0, "sdpa")
    contenders = {
        "core": core,
        "bertfast": lambda: model(ids, attention_mask=mask),
        "sdpa": lambda: theirs(ids, attention_mask=mask),
    }
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
def test_door(benchmark, name):
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    if GROUP not in RACES:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                RACES[GROUP] = run_race()
        finally:
            torch.set_num_threads(threads)
    report(benchmark, RACES[GROUP], name)
