"""transformers' common tests of models pass on our classes, but for those of a table that tells why not.

They run in a process of their own, of transformers_suite.py, on the CPU and without network. SUITE_MODULE=transformers
runs them on transformers' own classes, which tells what to expect of a new version; SUITE_TESTS is the folder of that
version's tests, .venv/transformers-<version>/tests by default, where scripts/fetch_transformers_tests.py puts them.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SUITE = Path(__file__).with_name("transformers_suite.py")
MODULE = os.environ.get("SUITE_MODULE", "bertfast")

# Tests that fail on our classes, and why they may: a difference from transformers that README states.
EXCEPTIONS: dict[str, str] = {}
# Tests that are left out, by a part of their names: they show nothing of an encoder of text.
OMITTED = {
    "test_get_": "features of images, videos and sounds: without such a method they pass",
    "test_multimodal": "the same",
    "sdpa_kernels": "torch's choices of attention, none of which runs here; their other halves stay",
}
# How many tests pass on the classes of transformers 5.24.0. The others skip themselves: no GPU, not such a model.
PASSING = 72


@pytest.fixture
def folder() -> Path:
    """The common tests of the transformers that is installed."""
    version = importlib.metadata.version("transformers")
    default = ROOT / ".venv" / f"transformers-{version}" / "tests"
    found = Path(os.environ.get("SUITE_TESTS", default)).resolve()
    if not (found / "test_modeling_common.py").exists():
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"no tests of transformers {version}: run scripts/fetch_transformers_tests.py")
    return found


def verdicts(report: str, folder: Path) -> dict[str, str]:
    """By test of a JUnit report: "passed", "skipped: " and why (by a file of the folder), or what went wrong."""
    found = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        wrong = [
            (part.get("message") or part.tag).splitlines()[0]
            for part in case
            if part.tag in ("failure", "error")
        ]
        skips = [part.text or part.get("type") for part in case if part.tag == "skipped"]
        theirs = f"{folder}{os.sep}"
        wrong += [f"not skipped by transformers: {text}" for text in skips if theirs not in text]
        good = f"skipped: {skips[0].removeprefix(theirs)}" if skips else "passed"
        found[case.get("name")] = "; ".join(dict.fromkeys(wrong)) or good
    return found


def complaints(found: dict[str, str], exceptions: dict[str, str], passing: int) -> list[str]:
    """What is not as it should be: failures outside the table, tests of the table that pass, and too few that do."""
    skipped = [f"{name}: {why}" for name, why in found.items() if why.startswith("skipped: ")]
    failed = {
        name: why
        for name, why in found.items()
        if why != "passed" and f"{name}: {why}" not in skipped
    }
    said = [f"{name}: {why}" for name, why in failed.items() if name not in exceptions]
    said += [
        f"{name} is in EXCEPTIONS ({why}), yet: {found.get(name, 'there is no such test')}"
        for name, why in exceptions.items()
        if name not in failed
    ]
    ran = len(found) - len(skipped)
    if ran < passing:
        said += [f"{ran} tests ran, and {passing} do on transformers' own classes.", *skipped]
    return said


def test_transformers_suite(folder, tmp_path, request):
    report = tmp_path / "report.xml"
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    settings = {
        "SUITE_MODULE": MODULE,
        "SUITE_TESTS": str(folder),
        "SUITE_SEED": str(request.config.getoption("seed")),
        "TRANSFORMERS_TEST_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    options = ["-c", os.devnull, "--noconftest", "-p", "no:cacheprovider", "--disable-warnings"]
    options += ["--rootdir", str(ROOT), "-q", "-rfE", "--tb=short", f"--junitxml={report}"]
    options += ["-k", f"not ({' or '.join(OMITTED)})"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(SUITE)],
        cwd=ROOT, env={**kept, **settings}, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert run.returncode in (0, 1), f"{run.stdout[-4000:]}\n{run.stderr[-4000:]}"
    found = verdicts(report.read_text(encoding="utf-8"), folder)
    said = complaints(found, EXCEPTIONS if MODULE == "bertfast" else {}, PASSING)
    assert not said, "\n".join([*said, run.stdout[-12000:]])


REPORT = """<testsuites><testsuite>
<testcase name="good"/>
<testcase name="skips"><skipped>/theirs/test_common.py:1: no GPU</skipped></testcase>
<testcase name="skips_here"><skipped>/ours/suite.py:1: no time</skipped></testcase>
<testcase name="expected"><skipped type="pytest.xfail"/></testcase>
<testcase name="bad"><skipped>/theirs/test_common.py:1: no GPU</skipped>
<failure message="1 != 2&#10;more"/><failure message="1 != 2"/></testcase>
<testcase name="broken"><error message="no module"/></testcase>
</testsuite></testsuites>"""


def test_report_is_judged():
    found = verdicts(REPORT, Path("/theirs"))
    assert found == {
        "good": "passed",
        "skips": "skipped: test_common.py:1: no GPU",
        "skips_here": "not skipped by transformers: /ours/suite.py:1: no time",
        "expected": "not skipped by transformers: pytest.xfail",
        "bad": "1 != 2",
        "broken": "no module",
    }
    failed = ("skips_here", "expected", "bad", "broken")
    assert complaints(found, dict.fromkeys(failed, "why"), 5) == []
    assert complaints(found, dict.fromkeys(failed[1:], "why"), 5) == [
        f"skips_here: {found['skips_here']}"
    ]
    assert complaints(found, dict.fromkeys(failed, "why"), 6) == [
        "5 tests ran, and 6 do on transformers' own classes.",
        "skips: skipped: test_common.py:1: no GPU",
    ]
    assert complaints(found, dict.fromkeys([*failed, "good", "gone"], "why"), 5) == [
        "good is in EXCEPTIONS (why), yet: passed",
        "gone is in EXCEPTIONS (why), yet: there is no such test",
    ]
