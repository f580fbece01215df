"""The shipped wheel is checked as a user gets it: its modules, its device code, its encoder in another environment."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from gpu_code import cuda_driver, nvcc

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/check_wheel.py"
pytestmark = [
    pytest.mark.xdist_group("wheel"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files"),
    pytest.mark.skipif(bool(nvcc.absent()), reason=nvcc.absent() or "-"),
]

# The compiler tells source files apart by hashes of their paths and options.
ANONYMOUS = re.compile(r"\d+_GLOBAL__N__[0-9a-f]{8}_\d+_cuda_\w*?cu_[0-9a-f]{8}")
UNEXECUTED = re.compile(r"//.*|^\s*\.(loc|file)\b.*|^\$L__(func|tmp|info)\w+:", re.M)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_wheel", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(wheel: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, wheel], capture_output=True, text=True)


def test_the_wheel_runs_where_it_was_not_built(wheel):
    done = check(wheel)
    assert done.returncode == 0, done.stderr
    size = re.search(r"whl: ([\d.]+) MB", done.stdout)
    assert float(size[1]) < 60
    assert re.search(r"^module _cuda 80,86,89,90,100,120\+PTX 1[3-9]0\d0$", done.stdout, re.M)
    assert "encoder, cpu: differs by" in done.stdout
    assert "all-MiniLM-L6-v2, cpu: differs by" in done.stdout
    assert "device code" in done.stdout


def instructions(text: str) -> list[str]:
    """The lines of a PTX text without comments, spaces, and what is for debuggers."""
    code = UNEXECUTED.sub("", text.partition("\t.section")[0])
    lines = (" ".join(line.split()) for line in ANONYMOUS.sub("", code).splitlines())
    return [line for line in lines if line]


def test_the_executed_ptx_is_the_shipped_one(script, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.startswith("bertfast/_cuda"))
        module = archive.extract(name, tmp_path)
    subprocess.run([script.cuobjdump(), "-xptx", "all", module], cwd=tmp_path, check=True)
    folders = tmp_path, cuda_driver.build()
    shipped, executed = (
        sorted(instructions(path.read_text()) for path in folder.glob("*.ptx"))
        for folder in folders
    )
    assert [len(unit) for unit in shipped] == [len(unit) for unit in executed]
    for unit, same in zip(shipped, executed, strict=True):
        assert not [pair for pair in zip(unit, same, strict=True) if pair[0] != pair[1]][:5]
    entries = sum(line.startswith((".entry", ".visible .entry")) for u in shipped for line in u)
    assert entries == len(cuda_driver.entries())


def test_another_instruction_is_seen():
    text = (
        ".entry k(\n)\n{\n\t.loc 1 2 3\n$L__tmp0:\n\tadd.s64 %rd1, %rd2, 4; // 4\n}\n\t.section\n"
    )
    assert instructions(text) == [".entry k(", ")", "{", "add.s64 %rd1, %rd2, 4;", "}"]
    assert instructions(text.replace("2, 4;", "2, 8;")) != instructions(text)


def test_a_wheel_without_its_licence_is_refused(wheel, tmp_path):
    broken = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as good, zipfile.ZipFile(broken, "w") as bad:
        for name in good.namelist():
            if not name.endswith("LICENSE"):
                bad.writestr(name, good.read(name))
    done = check(broken)
    assert (done.returncode, done.stderr) == (1, "check_wheel: the wheel lacks LICENSE\n")


@pytest.mark.parametrize(
    ("promised", "cubins", "texts", "message"),
    [
        ("80,90+PTX", {"80": 2}, {"80": 2}, "promised sm_80,90"),
        ("80,90+PTX", {"80": 2, "90": 1}, {"80": 2}, "a target lacks cubins"),
        ("80,90+PTX", {"80": 2, "90": 2}, {}, "expected PTX"),
        ("80,90", {"80": 2, "90": 2}, {"80": 2}, "expected PTX"),
        ("80", {"80": 2, "90": 2}, {}, "promised sm_80"),
    ],
)
def test_promised_device_code_that_lacks_is_seen(script, promised, cubins, texts, message):
    with pytest.raises(script.WheelError, match=message):
        script.covered(promised, Counter(cubins), Counter(texts))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-L{libs}", "-Wl,--no-as-needed", "-lcudart"], "needs libcudart"),
        (["-DEXPORT"], "exports PyInit__cuda, another"),
    ],
)
def test_a_module_that_needs_or_exports_too_much_is_seen(script, tmp_path, flags, message):
    (tmp_path / "empty.c").write_text("")
    (tmp_path / "module.c").write_text(
        "void PyInit__cuda(void) {}\n#ifdef EXPORT\nvoid another(void) {}\n#endif\n"
    )
    compile_ = ["gcc", "-shared", "-fPIC"]
    library = tmp_path / "libcudart.so"
    subprocess.run([*compile_, tmp_path / "empty.c", "-o", library], check=True)
    module = tmp_path / "_cuda.so"
    flags = [flag.format(libs=tmp_path) for flag in flags]
    subprocess.run([*compile_, tmp_path / "module.c", "-o", module, *flags], check=True)
    with pytest.raises(script.WheelError, match=message):
        script.needed(module)
