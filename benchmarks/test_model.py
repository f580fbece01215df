"""Speed of the whole encoder, fp32, against transformers on the same weights, and of ours in bfloat16; outputs are
compared first.
"""

from __future__ import annotations

import pytest
import torch

from bertfast import extension

from . import models
from .peers import transformers_bert
from .race import RACES, Race, report, variant

BASELINE = "sdpa"
CONTENDERS = ("bertfast", "bertfast-avx2", "bertfast-bf16", "sdpa", "eager", "sdpa-mkl-intel")
BUDGET = 4.0  # seconds of counted rounds of one race


def run_race(shape: str, load: str) -> Race:
    group = f"model {shape} {load}"
    race = Race(group, sum(models.LOADS[load]), models.flops(shape, load), BASELINE)
    batch, ours = models.batch(load), models.model(shape)
    contenders = {"bertfast": lambda: ours(**batch)}
    truth = ours(**batch).last_hidden_state
    if "avx2" not in extension.cpu.variants() or extension.cpu.variant() == "avx2":
        race.skipped["bertfast-avx2"] = (
            f"{extension.cpu.variant()} is the instruction set of `bertfast` here"
        )
    else:
        contenders["bertfast-avx2"] = _at_avx2(models.model(shape), batch)
        race.narrow["bertfast-avx2"] = "avx2"
    half = models.model(shape).bfloat16()
    _compare_half(truth, half(**batch).last_hidden_state, batch)
    contenders["bertfast-bf16"] = lambda: half(**batch)
    for name in ("sdpa", "eager"):
        peer = transformers_bert.build(models.config(shape), ours.state_dict(), name)
        _compare(name, truth, peer(**batch).last_hidden_state, batch)
        contenders[name] = lambda peer=peer: peer(**batch)
    reason, worker = transformers_bert.Worker.refusal(), None
    if reason is None:
        worker = transformers_bert.Worker(
            models.config(shape), ours.state_dict(), torch.get_num_threads()
        )
        _compare("sdpa-mkl-intel", truth, worker.output(batch), batch)
        contenders["sdpa-mkl-intel"] = worker
    else:
        race.skipped["sdpa-mkl-intel"] = reason
    race.run(contenders, BUDGET)
    if worker is not None:
        worker.close()
    return race


def _at_avx2(model, batch):
    def call():
        with variant("avx2"):
            return model(**batch)

    return call


def _compare(name: str, ours: torch.Tensor, theirs: torch.Tensor, batch: dict) -> None:
    """The largest difference at real tokens; both sides round in fp32, in another order, through all layers."""
    mask = batch.get("attention_mask")
    difference = (ours - theirs).abs() if mask is None else (ours - theirs).abs() * mask[..., None]
    assert difference.max() < 1e-4, f"{name} differs from bertfast by {difference.max():.2g}"


def _compare_half(truth: torch.Tensor, half: torch.Tensor, batch: dict) -> None:
    """The least cosine of a real token's row: bfloat16 keeps eight bits at each operation."""
    cosines = torch.cosine_similarity(truth, half.float(), dim=-1)
    if (mask := batch.get("attention_mask")) is not None:
        cosines = cosines[mask.bool()]
    assert cosines.min() > 0.9999, f"bfloat16: cosine {cosines.min():.6f}"


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("load", ["8x128", "1x16", "ragged-32"])
@pytest.mark.parametrize("shape", models.SHAPES)
def test_model(benchmark, shape, load, name):
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    group = f"model {shape} {load}"
    if group not in RACES:
        with torch.no_grad():
            RACES[group] = run_race(shape, load)
    race = RACES[group]
    if name in race.skipped:
        pytest.skip(race.skipped[name])
    report(benchmark, race, name)
