"""`bertfast vocab` and `bertfast prepare`."""

from __future__ import annotations

import sys

from click.testing import CliRunner

from bertfast.cli import main
from bertfast.data.store import Store


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_from_documents_to_a_store(corpus, tmp_path):
    tokenizer, store = tmp_path / "tokenizer", tmp_path / "store"
    made = run("vocab", corpus, "-o", tokenizer, "--size", 120, "--cased", "--unused", 4)
    assert made.exit_code == 0, made.output
    assert "120 tokens" in made.output
    made = run("prepare", corpus, "-o", store, "--tokenizer", tokenizer, "--workers", 1)
    assert made.exit_code == 0, made.output
    found = Store.open(store, verify=True)
    assert found.vocab_size == 120
    assert f"60 documents, {found.sentences} sentences, {found.tokens} tokens" in made.output


def test_a_hook_of_the_working_folder(tmp_path, minilm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "own_splitter.py").write_text("def split(text):\n    return text.split('|')\n")
    (tmp_path / "a.txt").write_text("one|two|three\n\nfour")
    options = ("--tokenizer", minilm, "--sentences", "own_splitter:split")
    made = run("prepare", "a.txt", "-o", "store", *options)
    assert made.exit_code == 0, made.output
    assert "2 documents, 4 sentences, 4 tokens" in made.output


def test_one_document_is_said(tmp_path, minilm):
    (tmp_path / "a.jsonl").write_text('{"body": "One document. Two sentences."}\n')
    options = ("--tokenizer", minilm, "--field", "body")
    made = run("prepare", tmp_path / "a.jsonl", "-o", tmp_path / "store", *options)
    assert made.exit_code == 0, made.output
    assert "One document gives no false next sentence" in made.output


def test_errors_are_one_line(tmp_path, minilm):
    (tmp_path / "a.txt").write_bytes(b"good\n\n\xff\n")
    made = run("prepare", tmp_path / "a.txt", "-o", tmp_path / "store", "--tokenizer", minilm)
    assert made.exit_code == 2
    assert made.output.count("\n") == 1
    assert "a.txt, line 3: expected UTF-8, got the byte 0xff" in made.output
