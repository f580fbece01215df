"""What is shipped: wheel and sdist are built without torch; the module needs, exports and executes only what it may."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import bertfast
from bertfast import extension
from gpu_code import nvcc

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("wheel")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")


@pytest.fixture(scope="module")
def module() -> Path:
    assert extension.cpu is not None, extension.REASON
    return Path(extension.cpu.__file__)


def test_what_shares_the_wheel_runs_in_one_process(request):
    """Two builds at a time would take each other's files away."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("not run by pytest-xdist: there is one process")
    assert request.node.nodeid.endswith("@wheel"), "run with --dist loadgroup"


def test_wheel_holds_the_package_and_nothing_else(wheel):
    assert wheel.name.startswith(f"bertfast-{bertfast.__version__}-cp")
    names = zipfile.ZipFile(wheel).namelist()
    tree = {str(p.relative_to(ROOT)) for p in ROOT.glob("bertfast/**/*.py")}
    assert {name for name in names if name.endswith(".py")} == tree
    modules = [name for name in names if name.endswith((".so", ".dylib"))]
    wanted = {"_cpu", *([] if nvcc.absent() else ["_cuda"])}
    assert sorted(name.split("/")[1].split(".")[0] for name in modules) == sorted(wanted)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith("bertfast") for name in names)


def test_sdist_holds_what_a_build_needs(dist):
    (sdist,) = dist.glob("bertfast-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    suffixes = ("cpp", "h", "cu", "cuh")
    sources = {str(p.relative_to(ROOT)) for s in suffixes for p in ROOT.glob(f"csrc/**/*.{s}")}
    sources |= {str(p.relative_to(ROOT)) for p in ROOT.glob("build_tools/*.py")}
    rest = {
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "Makefile",
        "scripts/bootstrap.sh",
    }
    assert names >= sources | rest
    assert not [name for name in names if name.endswith((".so", ".o"))]


@linux
def test_module_needs_openmp_by_name_and_no_torch(module):
    with module.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
        paths = [tag for kind in ("DT_RPATH", "DT_RUNPATH") for tag in dynamic.iter_tags(kind)]
    assert "libgomp.so.1" in needed
    assert not [name for name in needed if re.search(r"torch|c10|cuda|python|omp5", name)]
    assert not paths


@linux
def test_module_exports_its_entry_only(module):
    with module.open("rb") as file:
        symbols = list(ELFFile(file).get_section_by_name(".dynsym").iter_symbols())
    exported = {
        symbol.name
        for symbol in symbols
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
    }
    assert exported == {"PyInit__cpu"}
    assert not [symbol.name for symbol in symbols if "2bf" in symbol.name]


FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\t(?P<name>\S+)(?P<operands>.*)$")
NAMESPACE = re.compile(r"2bf(?:8(baseline)|4(avx2)|9(avx2_wide)|6(avx512)|10(avx512_dot))")


def needs(name: str, operands: str) -> str:
    """The instruction set that one instruction belongs to, as far as the gate tells them apart."""
    if re.match(r"vpdp|vdpbf16|vcvtne", name):
        return "avx512_dot"
    if re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]|\{1to", operands):
        return "avx512"
    if "%ymm" in operands or re.match(r"v(?!er[rw]$|m(call|launch|resume))", name):
        return "avx2"  # every instruction whose name begins with v is VEX-coded
    if re.match(
        r"(andn|bextr|bls\w+|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|tzcnt)l?q?$", name
    ):
        return "avx2"
    return "baseline"


ALLOWED = {
    "baseline": {"baseline"},
    "avx2": {"baseline", "avx2"},
    "avx2_wide": {"baseline", "avx2"},
    "avx512": {"baseline", "avx2", "avx512"},
    "avx512_dot": {"baseline", "avx2", "avx512", "avx512_dot"},
}


def foreign(disassembly) -> tuple[list[str], dict[str, set[str]]]:
    """(instructions outside their function's set, the sets that were seen in each namespace)."""
    found, seen, function, home = [], {}, "", "baseline"
    for line in disassembly:
        if match := FUNCTION.match(line):
            function = match.group(1)
            inside = NAMESPACE.search(function)
            home = inside[inside.lastindex] if inside else "baseline"
        elif match := INSTRUCTION.match(line):
            kind = needs(match["name"], match["operands"])
            seen.setdefault(home, set()).add(kind)
            if kind not in ALLOWED[home]:
                found.append(f"{function}: {line.strip()}")
    return found, seen


@linux
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="one instruction set on this processor")
def test_no_instruction_outside_its_own_set(module):
    command = ["objdump", "-d", "--no-show-raw-insn", "--wide", str(module)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        found, seen = foreign(process.stdout)
    assert not found, "\n".join(found[:20])
    for name, sets in ALLOWED.items():  # the gate saw what each variant is for
        assert sets <= seen[name] | {"baseline"}, name


def test_the_gate_sees_a_foreign_instruction():
    text = """\
0000000000001000 <_ZN2bf8baseline12_GLOBAL__N_13fooEv>:
    1000:\taddps  %xmm0,%xmm1
    1003:\tvaddps %xmm0,%xmm1,%xmm1
0000000000002000 <_ZN2bf4avx23barEv>:
    2000:\tvfmadd231ps %ymm0,%ymm1,%ymm2
    2005:\tvaddps %zmm0,%zmm1,%zmm1
0000000000003000 <_ZN2bf9avx2_wide3bazEv._omp_fn.0>:
    3000:\tvaddps (%rax){1to8},%ymm1,%ymm1
0000000000004000 <_ZSt4sortIPfEvT_S1_>:
    4000:\tvzeroupper
0000000000005000 <_ZN2bf6avx5123barEv>:
    5000:\tvaddps %zmm0,%zmm1,%zmm1{%k1}
    5006:\tvpdpbusd %zmm0,%zmm1,%zmm1
0000000000006000 <_ZN2bf10avx512_dot3barEv>:
    6000:\tvpdpbusd (%rax){1to16},%zmm1,%zmm1
"""
    assert [line.partition(":")[0] for line in foreign(text.splitlines())[0]] == [
        "_ZN2bf8baseline12_GLOBAL__N_13fooEv",
        "_ZN2bf4avx23barEv",
        "_ZN2bf9avx2_wide3bazEv._omp_fn.0",
        "_ZSt4sortIPfEvT_S1_",
        "_ZN2bf6avx5123barEv",
    ]
