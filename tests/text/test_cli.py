"""The command `bertfast`: results equal to the library's, one line for every mistake, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import bertfast
from bertfast import BertModel, Encoder
from bertfast.cli import main
from bertfast.cli.demo import clip
from bertfast.cli.encode import encode
from bertfast.cli.info import parameter_table

TEXTS = ["Call me Ishmael.", "", "道可道，非常道。", "whale " * 70]
DEMO = Path(__file__).parents[2] / "examples" / "demo.txt"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in an empty directory with a text file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))

    def call(*arguments, **options):
        return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)

    return call


def spawn(*arguments, **options) -> subprocess.Popen:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "bertfast", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, **options})


def test_encode(run, tiny, encoder):
    result = run("encode", tiny, "in.txt", "-o", "out.npy")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines()[-1].startswith("out.npy: 4 vectors of 32 in ")
    assert (np.load("out.npy") == encoder.encode(TEXTS)).all()
    assert sorted(os.listdir()) == ["in.txt", "out.npy"]


def test_encode_options(run, tiny):
    rows = [{"id": index, "body": text} for index, text in enumerate(TEXTS)]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--field", "body", "--pooling", "max", "--normalize", "--max-length", "8"]
    options += ["--batch-tokens", "10", "--prompt", "a: ", "--device", "cpu", "--no-progress"]
    result = run("encode", tiny, "in.jsonl", "-o", "out.jsonl", *options, "--dtype", "float64")
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [record["text"] for record in found] == TEXTS
    encoder = Encoder.from_pretrained(tiny, dtype="float64")
    expected = encoder.encode(TEXTS, pooling="max", normalize=True, max_length=8, prompt="a: ")
    assert (np.float32([record["embedding"] for record in found]) == expected).all()


def test_encode_pipe(run, tiny, encoder):
    result = run("encode", tiny, "-", "--max-length", "8", input="a\nb\n")
    assert result.exit_code == 0
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["text"] for record in records] == ["a", "b"]
    assert (np.float32(records[0]["embedding"]) == encoder.encode("a")).all()


def test_encode_nothing(run, tiny):
    assert run("encode", tiny, "-", "-o", "out.npy", input="").exit_code == 0
    assert np.load("out.npy").shape == (0, 32)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("encode MODEL none.txt -o out.npy", 2, "none.txt: cannot be read, No such file"),
        ("encode MODEL bad.txt -o out.npy", 2, "bad.txt, line 2: expected UTF-8"),
        ("encode MODEL bad.jsonl -o out.npy", 2, "bad.jsonl, line 1: no field 'text'"),
        ("encode MODEL in.txt -o out.doc", 2, "--output: expected a name in .npy, .parquet"),
        ("encode MODEL in.txt -o none/out.npy", 1, "none/out.npy: No such file or directory"),
        ("encode MODEL in.txt -o . --format npy", 1, ".: Is a directory"),
        ("encode nothing in.txt -o out.npy", 2, "nothing"),
        ("encode MODEL in.txt -o out.npy --max-length 999", 2, "max_length: expected an integer"),
        ("encode MODEL in.txt -o out.npy --batch-tokens 0", 2, "batch_tokens: expected an integer"),
        ("encode MODEL in.txt -o /dev/full --format jsonl", 1, "/dev/full: No space left"),
        ("info nothing", 2, "nothing"),
        ("explain nothing a", 2, "nothing"),
        ("demo --model nothing", 2, "nothing"),
        ("demo --text none.txt", 2, "none.txt: cannot be read"),
    ],
)
def test_mistakes_are_one_line(run, tiny, arguments, code, message):
    Path("bad.txt").write_bytes(b"ok\n\xff\n")
    Path("bad.jsonl").write_text("{}\n")
    before = sorted(os.listdir())
    result = run(*(tiny if word == "MODEL" else word for word in arguments.split()))
    assert result.exit_code == code
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("bertfast: ")
    assert result.stderr.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("encode MODEL", "Missing argument 'INPUT'"),
        ("encode MODEL in.txt --pooling best", "'best' is not one of"),
        ("encode MODEL in.txt --device nowhere", "Invalid value for '--device'"),
        ("nothing", "No such command 'nothing'"),
    ],
)
def test_usage(run, arguments, message):
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert message in result.stderr


def test_vectors_that_are_not_finite(run, tiny, tmp_path):
    model = BertModel.from_pretrained(tiny)
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.bias.fill_(torch.nan)
    model.save_pretrained(tmp_path / "nan")
    shutil.copy(tiny / "vocab.txt", tmp_path / "nan")
    result = run("encode", "nan", "in.txt", "-o", "out.npy", "--max-length", "8")
    assert result.exit_code == 2
    assert "text 1: the model gave a vector that is not finite" in result.stderr
    assert not Path("out.npy").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("not enough memory: 7 bytes")])
def test_out_of_memory(run, tiny, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("bertfast.inference.encoder.pool", fail)
    result = run("encode", tiny, "in.txt", "-o", "out.npy")
    assert result.exit_code == 1
    assert result.stderr == "bertfast: out of memory: try a smaller --batch-tokens\n"
    assert os.listdir() == ["in.txt"]


def test_reader_of_the_pipe_leaves(run, tiny):
    Path("long.txt").write_text("a\n" * 20_000)
    process = spawn("encode", tiny, "long.txt")
    assert process.stdout.read(1) == b"{"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1


def test_disk_fills_up(run, tiny):
    """A file size limit fails the write as a full disk does; the file of before stays."""
    Path("out.npy").write_text("old")
    Path("long.txt").write_text("a\n" * 2000)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = spawn("encode", tiny, "long.txt", "-o", "out.npy", preexec_fn=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == b"bertfast: out.npy: File too large\n"
    assert Path("out.npy").read_text() == "old"
    assert sorted(os.listdir()) == ["in.txt", "long.txt", "out.npy"]


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("no temporary file appeared")


def has_temporary_file() -> bool:
    return any(name.endswith(".tmp") for name in os.listdir())


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
        (signal.SIGINT, 1),
    ],
)
def test_termination_leaves_nothing(run, tiny, number, status):
    def heed():  # whatever ignores it around the tests: nohup, or a shell's &
        signal.signal(number, signal.SIG_DFL)

    process = spawn("encode", tiny, "-", "-o", "out.npy", preexec_fn=heed)
    process.stdin.write(b"a\n")
    process.stdin.flush()
    wait_for(has_temporary_file)
    process.send_signal(number)
    assert process.wait(60) == status
    process.communicate()
    assert os.listdir() == ["in.txt"]


def test_a_signal_that_is_ignored_stays_so(run, tiny):
    """As under nohup."""

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = spawn("encode", tiny, "-", "-o", "out.npy", preexec_fn=ignore)
    wait_for(has_temporary_file)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(b"a\n", timeout=60)
    assert process.returncode == 0, errors
    assert np.load("out.npy").shape == (1, 32)


def test_the_target_of_a_link_is_written(run, tiny):
    Path("data").mkdir()
    Path("out.npy").symlink_to("data/out.npy")
    for _ in range(2):
        assert run("encode", tiny, "in.txt", "-o", "out.npy", "--no-progress").exit_code == 0
        assert Path("out.npy").is_symlink()
        assert np.load("data/out.npy").shape == (4, 32)


@pytest.mark.parametrize("name", ["-", "/dev/fd/1"])
def test_names_of_standard_output(run, tiny, name):
    """What stands before in the file stays."""
    with open("all.jsonl", "wb") as out:
        out.write(b"before\n")
        out.flush()
        arguments = ("in.txt", "-o", name, "--format", "jsonl")
        assert spawn("encode", tiny, *arguments, stdout=out).wait(60) == 0
    lines = Path("all.jsonl").read_bytes().splitlines()
    assert (lines[0], len(lines)) == (b"before", 5)


def test_which_device(run, tiny, monkeypatch):
    line = run("encode", tiny, "in.txt", "-o", "out.npy", "--progress").stderr
    assert "encode on cpu" in line
    assert line.splitlines()[-1].endswith(" texts/s on cpu)")
    monkeypatch.setattr("bertfast.cli.encode.default_device", lambda: torch.device("meta"))
    asked = []
    monkeypatch.setattr(
        bertfast.Encoder, "from_pretrained", lambda *a, **options: asked.append(options["device"])
    )
    for option in ((), ("--device", "cpu")):
        run("encode", tiny, "in.txt", "-o", "out.npy", *option)
    assert asked == ["meta", "cpu"]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.txt", "a\n\nb [E1]\n", "a.txt, line 3"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "[E1]"}\n', "a.jsonl, line 3"),
        ("a.csv", 'id,text\n1,"a\nb"\n2,[E1]\n', "a.csv, line 4"),
    ],
)
def test_tokens_that_the_model_lacks(run, tiny, name, content, place):
    shutil.copytree(tiny, "model")
    Path("model/added_tokens.json").write_text(json.dumps({"[E1]": 30522}))
    Path(name).write_text(content)
    result = run("encode", "model", name, "-o", "out.npy")
    assert result.exit_code == 2
    start = (
        f"bertfast: {place}: expected tokens that the model has (30522), got '[E1]', number 30522. "
    )
    assert result.stderr.startswith(start)
    assert not Path("out.npy").exists()


def test_prompts_and_shorter_vectors(run, tiny, encoder):
    shutil.copytree(tiny, "model")
    files = {
        "modules.json": [
            {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "config_sentence_transformers.json": {"prompts": {"q": "find: "}, "truncate_dim": 9},
    }
    Path("model/1_Pooling").mkdir()
    for name, content in files.items():
        Path("model", name).write_text(json.dumps(content))
    expected = encoder.encode([f"find: {text}" for text in TEXTS])
    for option, width in (((), 9), (("--truncate-dim", "5"), 5), (("--truncate-dim", "50"), 32)):
        result = run("encode", "model", "in.txt", "-o", "out.npy", "--prompt-name", "q", *option)
        assert result.exit_code == 0, result.stderr
        assert f"4 vectors of {width} in" in result.stderr
        assert (np.load("out.npy") == expected[:, :width]).all()
    result = run("encode", "model", "in.txt", "-o", "out.npy", "--prompt-name", "x")
    assert "bertfast: prompt_name: expected one of query, document, q" in result.stderr


def test_version_and_help(run):
    assert run("--version").stdout == f"bertfast, version {bertfast.__version__}\n"
    listing = run("--help").stdout
    for name in main.list_commands(None):
        assert name in listing
        text = run(name, "--help").stdout
        assert "Examples:" in text
        assert f"  bertfast {name}" in text
        assert max(map(len, text.splitlines())) <= 80


def test_info(run, minilm):
    text = run("info").stdout
    for word in (bertfast.__version__, torch.__version__, "masked_cross_entropy", "native code"):
        assert word in text
    text = run("info", minilm).stdout
    assert "vectors: mean pooling, length 1, texts of at most 256 tokens" in text
    assert text.splitlines()[-1].split() == ["total", "22,713,216", "90.9", "MB", "in", "float32"]


def test_info_says_why(run):
    with bertfast.use_backend("reference"):
        text = run("info").stdout
    rows = [line.split() for line in text.splitlines()]
    assert ["attention", "reference", "reference"] in rows
    assert ["backend", "reference"] in rows


BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def test_parameter_table():
    totals = {30522: "109,482,240", 21128: "102,267,648"}
    for vocab_size, total in totals.items():
        *rows, last = parameter_table({**BASE, "vocab_size": vocab_size}).splitlines()
        assert last.split()[:2] == ["total", total]
        counts = {" ".join(row.split()[:-1]): int(row.split()[-1].replace(",", "")) for row in rows}
        layer = counts["encoder.layer, each of 12"]
        parts = ("attention.self", "attention.output", "intermediate", "output")
        assert sum(counts[part] for part in parts) == layer == 7_087_872
        others = sum(n for name, n in counts.items() if name not in parts) - layer
        assert f"{others + 12 * layer:,}" == total


def test_explain(run, tiny):
    result = run("explain", tiny, "a b c", "d")
    assert result.exit_code == 0, result.stderr
    for name in ("embedding", "encoder"):
        assert name in result.stdout


def test_demo(run, tiny):
    result = run("demo", "--model", tiny, "--text", "in.txt", "--rounds", "1")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "text   in.txt, 4 sentences" in lines
    assert "$ bertfast encode MODEL in.txt -o build/demo.npy" in lines
    assert sum(line.startswith("Search: ") for line in lines) == 3
    assert any(line.startswith("Largest difference from plain PyTorch") for line in lines)
    assert len(lines) < 40
    assert np.load("build/demo.npy").shape == (4, 32)


def test_demo_classifies(run, tiny):
    result = run("demo", "--model", tiny, "--rounds", "1")
    assert result.exit_code == 0, result.stderr
    after = result.stdout.partition("$ bertfast finetune single build/demo.csv ")[2].splitlines()
    assert "build/demo-run/model: the model after" in "".join(after)
    place = after.index("$ bertfast predict build/demo-run/model new.txt")
    said = [line.split()[0] for line in after[place + 1 : place + 3]]
    assert len(said) == 2
    assert set(said) <= {"novel", "speech"}


def test_demo_text_and_searches(minilm):
    """The three searches of `make demo` find what a reader would."""
    from bertfast import Encoder
    from bertfast.cli.demo import QUERIES, nearest

    texts = DEMO.read_text(encoding="utf-8").splitlines()
    assert len(texts) == len(set(texts)) > 250
    assert all(text == text.strip() != "" for text in texts)
    encoder = Encoder.from_pretrained(minilm)
    vectors = encoder.encode(texts)
    found = [" ".join(nearest(encoder, query, texts, vectors)) for query in QUERIES]
    for words, lines in zip(("forest water", "sea", "明月"), found, strict=True):
        assert all(word in lines for word in words.split())


@pytest.mark.parametrize(
    ("text", "clipped"),
    [("short", "short"), ("longer text", "longer ..."), ("道可道非常道", "道可道...")],
)
def test_clip(text, clipped):
    assert clip(text, 10) == clipped


def test_the_command_keeps_the_signal_handler(run, tiny):
    before = signal.getsignal(signal.SIGTERM)
    encode.main([str(tiny), "in.txt", "-o", "out.npy"], standalone_mode=False)
    assert signal.getsignal(signal.SIGTERM) is before
