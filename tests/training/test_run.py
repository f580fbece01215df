"""Runs: whole ones, killed and stopped ones, two processes, and what is wrong with a folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file

import bertfast
from bertfast.cli import main
from bertfast.errors import ArgumentError, RunError, StoreError
from bertfast.training import log, run, state
from bertfast.training.pretraining import Job, make_model, pretrain
from bertfast.training.run import Stopped
from harness.disk import full_after
from harness.minilm import MINILM
from training.processes import LOSSES, MOMENTS
from training.runs import CONFIG, digest, recipe_of

DRIVER = Path(__file__).with_name("processes.py")
pytestmark = pytest.mark.xdist_group("training")


def drive(what: str, store: Path, folder: Path) -> dict[str, list[int]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), what, str(store), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / f"{what}.json").read_text())
    found["said"] = done.stderr
    return found


@pytest.fixture(scope="session")
def killed(store, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("killed")
    return folder, drive("killed", store.folder, folder)


@pytest.fixture(scope="session")
def together(store, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("together")
    return folder, drive("together", store.folder, folder)


@pytest.fixture(scope="session")
def whole(store, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    pretrain(recipe_of(store.folder, evaluate_every=6, evaluate_examples=16), folder)
    return folder


def test_a_whole_run(whole, store):
    lines = log.read(whole)
    assert [line["step"] for line in lines] == [3, 6, 6, 9, 12, 12]
    for line in lines[0], lines[-2]:
        assert line["tokens_per_second"] > 0
        assert 0 < line["masked_lm_loss"] < 7
        assert 0 <= line["next_sentence_accuracy"] <= 1
        assert 0 <= line["masked_lm_accuracy"] <= 1
    assert "held_out_masked_lm_accuracy" in lines[2]
    assert b"<svg" in (whole / log.CURVES).read_bytes()
    assert sorted(p.name for p in (whole / state.FOLDER).iterdir()) == [
        "step-00000008",
        "step-00000012",
    ]


def test_the_model_in_transformers(whole):
    ours = bertfast.BertForPreTraining.from_pretrained(whole / run.FINAL).eval()
    theirs = transformers.BertForPreTraining.from_pretrained(whole / run.FINAL).eval()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole / run.FINAL)
    inputs = tokenizer("my dog is hairy", return_tensors="pt")
    with torch.no_grad():
        want, got = theirs(**inputs).prediction_logits, ours(**inputs).prediction_logits
    assert (want - got).abs().max() < 1e-5 * want.abs().max()  # parity itself: tests/models


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_gone_on_with(killed, moment):
    folder, status = killed
    assert status["undisturbed"] == [0], status["said"]
    assert status[moment] == [signal.SIGKILL, 0], status["said"]
    assert digest(folder / moment) == digest(folder / "undisturbed")
    assert [p.name for p in (folder / moment / state.FOLDER).iterdir()] == ["step-00000012"]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes(together, sharding):
    """With dropout, lengths that differ, and going on in one process after 12 steps of two."""
    folder, status = together
    assert status["one"] == [0], status["said"]
    assert status[sharding] == [0, 0, 0], status["said"]
    want, got = (json.loads((folder / name / LOSSES).read_text()) for name in ("one", sharding))
    assert [step for step, *_ in got] == [step for step, *_ in want] == list(range(1, 21))
    for (_, loss, norm), (_, other, norm_other) in zip(want, got, strict=True):
        assert abs(loss - other) <= 1e-5  # the target
        assert abs(norm - norm_other) <= 1e-5 * norm
    assert got[0][1] > got[-1][1]


def test_a_signal_saves(store, whole, tmp_path, recipe):
    def say(line):
        if line.startswith("step 6/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGTERM after step 6"):
        pretrain(recipe, tmp_path, say=say)
    assert state.newest(tmp_path).state["step"] == 6
    pretrain(recipe, tmp_path)
    assert digest(tmp_path) == digest(whole)
    assert [line["step"] for line in log.read(tmp_path)] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("owner", "name", "works"),  # how many of its calls: those of the first checkpoint
    [
        (state, "save_optimizer", 1),
        (Job, "save_model", 1),
        (state, "write_json", 2),
        (state, "_flush", 1),
    ],
)
def test_no_space(whole, tmp_path, recipe, owner, name, works):
    """Whatever part of a checkpoint cannot be written, the one before is there, and the run goes on from it."""
    with full_after(works, owner, name), pytest.raises(OSError, match="No space left"):
        pretrain(recipe, tmp_path)
    assert [p.name for p in (tmp_path / state.FOLDER).iterdir()] == ["step-00000004"]
    assert state.newest(tmp_path).state["step"] == 4
    pretrain(recipe, tmp_path)
    assert digest(tmp_path) == digest(whole)


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, recipe, caplog):
    pretrain(recipe, tmp_path)
    path = tmp_path / state.FOLDER / "step-00000012" / state.OPTIMIZER
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    pretrain(recipe, tmp_path)
    assert "damaged" in caplog.text
    assert digest(tmp_path) == digest(whole)


def test_not_a_number(store, tmp_path):
    recipe = recipe_of(store.folder, learning_rate=1e30, clip=0, warmup=0, save_every=1)
    with pytest.raises(RunError, match=r"step \d+: the loss is .*lower learning_rate"):
        pretrain(recipe, tmp_path)
    assert state.newest(tmp_path) is not None


def test_two_runs_on_one_folder(tmp_path, recipe):
    tmp_path.joinpath(".lock").touch()
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(RunError, match="another run trains there"),
    ):
        pretrain(recipe, tmp_path)


def test_another_recipe(whole, store):
    with pytest.raises(RunError, match="learning_rate was 0.001 and is 0.5"):
        pretrain(recipe_of(store.folder, learning_rate=0.5), whole)


def test_another_store(whole, store, tmp_path, recipe):
    other = tmp_path / "store"
    shutil.copytree(store.folder, other)
    about = json.loads((other / "store.json").read_text())
    (other / "store.json").write_text(json.dumps({**about, "note": "made again"}))
    run_folder = tmp_path / "run"
    pretrain(recipe_of(other), run_folder)
    shutil.rmtree(other)
    shutil.copytree(store.folder, other)
    with pytest.raises(RunError, match="other data"):
        pretrain(recipe_of(other), run_folder)


def test_another_vocabulary(store, tmp_path):
    with pytest.raises(StoreError, match="another vocabulary"):
        pretrain(recipe_of(store.folder, config=None, model=str(MINILM)), tmp_path)


def test_a_model_with_other_dropout(whole, store):
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.25}
    model = make_model(recipe_of(store.folder, model=str(whole / "model"), config=changes), store)
    assert {name: getattr(model.config, name) for name in changes} == changes
    assert model.bert.encoder.layer[0].output.dropout.p == 0
    kept = load_file(whole / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], model.state_dict()[name]) for name in kept)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_dropout": 0.0}, "fields of a BertConfig, got hidden_dropout"),
        ({"hidden_size": 64}, "size mismatch|sizes"),
    ],
)
def test_a_model_with_what_it_cannot_have(whole, store, config, said):
    with pytest.raises(ArgumentError, match=said):
        make_model(recipe_of(store.folder, model=str(whole / "model"), config=config), store)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"config": {**CONFIG, "max_position_embeddings": 20}},
            "phases: length: expected at most 20",
        ),
        ({"config": {**CONFIG, "num_attention_heads": 5}}, "config|heads"),
        ({"store": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_recipes(store, tmp_path, changes, said):
    with pytest.raises((ArgumentError, StoreError), match=said):
        pretrain(recipe_of(**{"store": store.folder, **changes}), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16", "gradient_checkpointing": True, "optimizer": "lamb"},
        {"next_sentence": False, "masking": {"whole_words": True, "ngram": 3}},
        {"schedule": "budget", "budget": "2s", "ramp": 0.5, "log_every": 1},
    ],
    ids=["bf16", "words alone", "budget"],
)
def test_ways_to_train(store, tmp_path, changes):
    """Each learns: the loss of the last steps is below that of the first."""
    phases = [{"length": 48, "steps": 40, "batch": 16, "micro_tokens": 400}]
    fields = {"phases": phases, "learning_rate": 5e-3, "log_every": 2, "save_every": 0, **changes}
    said: list[str] = []
    pretrain(recipe_of(store.folder, **fields), tmp_path, say=said.append)
    lines = log.read(tmp_path)
    losses = [line["masked_lm_loss"] for line in lines]
    assert sum(losses[-3:]) < sum(losses[:3]), losses
    assert ("next_sentence_accuracy" in lines[0]) == (changes.get("next_sentence", True))
    if "budget" in changes:
        assert 1.9 < state.newest(tmp_path).state["seconds"] < 9
        assert lines[-1]["learning_rate"] < max(line["learning_rate"] for line in lines) / 2


def test_commands(store, tmp_path):
    """Begun, and gone on with after a step that SIGTERM ended, by the command; TensorBoard's events too."""
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe_of(store.folder).as_dict()))
    command = ["pretrain", str(path), "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "step 12/12: loss" in result.output
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert (
        bertfast.pretrain(path, tmp_path / "run") == tmp_path / "run" / "model"
    )  # is done already
    wrong = CliRunner().invoke(main, [*command, "--seed", "6"])
    assert wrong.exit_code == 2
    assert "seed was 5 and is 6" in wrong.output
