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

from gpu_code import nvcc

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/check_wheel.py"
pytestmark = [
    pytest.mark.xdist_group("wheel"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files"),
    pytest.mark.skipif(bool(nvcc.absent()), reason=nvcc.absent() or "-"),
]


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
