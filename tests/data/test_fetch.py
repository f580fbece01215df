"""benchmarks/data/fetch.py against a server of this machine."""

from __future__ import annotations

import hashlib
import re
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from click.testing import CliRunner

from benchmarks.data import sets
from benchmarks.data.fetch import FetchError, fetch, main, make_mrpc
from benchmarks.data.sets import Source

CONTENT = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`; of requests, `server.ranges` keeps the ranges, and the first `server.cut` bytes are all
    that is sent."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        content, start = self.server.content, 0
        if wanted and self.server.parts:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if wanted and self.server.parts else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut])

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.content, made.ranges, made.parts, made.cut = CONTENT, [], True, None
    made.address = f"http://127.0.0.1:{made.server_port}/file"
    thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def source(address: str, content: bytes = CONTENT, target: str = "set/a.bin") -> Source:
    return Source(address, hashlib.sha256(content).hexdigest(), target)


@pytest.mark.parametrize("parts", [True, False])
def test_broken_off_and_gone_on(server, tmp_path, parts):
    server.cut, server.parts = 100, parts
    with pytest.raises(FetchError, match="100 of 10240 bytes came. The same command goes on"):
        fetch([source(server.address)], tmp_path)
    assert [path.name for path in (tmp_path / "set").iterdir()] == [".a.bin.part"]
    server.cut = None
    for _ in range(2):  # the second time nothing is asked for
        fetch([source(server.address)], tmp_path)
    assert server.ranges == [None, "bytes=100-"]
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["a.bin"]
    assert (tmp_path / "set/a.bin").read_bytes() == CONTENT


def test_stopped_before_the_hash(server, tmp_path):
    """All bytes are there, under the temporary name."""
    part = tmp_path / "set/.a.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    fetch([source(server.address)], tmp_path)
    assert (tmp_path / "set/a.bin").read_bytes() == CONTENT


def test_another_hash(server, tmp_path):
    with pytest.raises(
        FetchError, match=r"expected SHA-256 [0-9a-f]{64}, got [0-9a-f]{64} of 10,240"
    ):
        fetch([source(server.address, b"other")], tmp_path)
    assert not list((tmp_path / "set").iterdir())


def test_an_archive(tmp_path):
    """By file://, which knows no ranges."""
    archive = tmp_path / "RTE.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("RTE/train.tsv", "x")
        opened.writestr("__MACOSX/._RTE", "y")
    address, content = archive.as_uri(), archive.read_bytes()
    fetch([source(address, content, "glue/RTE")], tmp_path)
    assert (tmp_path / "glue/RTE/train.tsv").read_text() == "x"
    assert [path.name for path in (tmp_path / "glue").iterdir()] == ["RTE"]
    with pytest.raises(FetchError, match="expected a folder QNLI in it"):
        fetch([source(address, content, "glue/QNLI")], tmp_path)


def test_mrpc(tmp_path):
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    (tmp_path / "msr_paraphrase_train.txt").write_text(
        f"\ufeff{head}\n1\t10\t11\ta b\tc\n0\t12\t13\td\te\n"
    )
    (tmp_path / "msr_paraphrase_test.txt").write_text(f"{head}\r\n1\t14\t15\tf\tg\r\n")
    (tmp_path / "mrpc_dev_ids.tsv").write_text("12\t13\n")
    make_mrpc(tmp_path)
    assert (tmp_path / "train.tsv").read_text() == f"{head}\n1\t10\t11\ta b\tc\n"
    assert (tmp_path / "dev.tsv").read_text() == f"{head}\n0\t12\t13\td\te\n"
    test = head.replace("Quality", "index")
    assert (tmp_path / "test.tsv").read_text() == f"{test}\n0\t14\t15\tf\tg\n"


def test_command(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sets.SETS, "squad", (source(server.address),))
    made = CliRunner().invoke(main, ["squad", "-o", str(tmp_path)])
    assert made.exit_code == 0, made.output
    assert "a.bin: " in made.output
    (tmp_path / "set/a.bin").unlink()
    server.content = b"changed"
    made = CliRunner().invoke(main, ["squad", "-o", str(tmp_path)])
    assert made.exit_code == 1
    assert "fetch: http://127.0.0.1" in made.output
