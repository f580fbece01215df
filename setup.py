"""Builds bertfast._cpu with ninja: no torch, no network, no look at this machine's processor.

Every csrc/*/cpu.cpp and csrc/common/cpu_*.cpp is compiled once for each instruction set, in a namespace
of its own, and chosen by cpuid at run time; csrc/bindings.cpp and the other csrc/common/*.cpp once.
Variables: BERTFAST_BUILD=auto|cpu|cuda, CXX, CXXFLAGS, LDFLAGS, MAX_JOBS; BERTFAST_WERROR=1: no warnings.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MACOS = sys.platform == "darwin"

AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl"
ISAS = {  # name -> flags, from narrow to wide; never -march=native
    "baseline": "-march=x86-64-v2",
    "avx2": f"{AVX2} -mtune=haswell",
    "avx2_wide": f"{AVX2} -mtune=haswell -DBF_WIDE_TILE",  # AVX-512's tile at AVX2 width, for tests
    "avx512": f"{AVX2} {AVX512} -mtune=skylake-avx512",
}
if platform.machine().lower() not in ("x86_64", "amd64"):
    ISAS = {"baseline": ""}

# -Wno-psabi: vectors pass between functions of one unit only, so nobody relies on how.
FLAGS = (
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno "
    "-fno-trapping-math -Wall -Wextra -Wno-psabi -Icsrc"
)
# The compiler's messages stay beside each object, so that BERTFAST_WERROR=1 compiles nothing twice.
NINJA = """\
builddir = {objects}
rule compile
  command = {cxx} {flags} $flags -MMD -MF $out.d -c $in -o $out 2> $out.log || $
    {{ cat $out.log >&2; exit 1; }}
  depfile = $out.d
  deps = gcc
  description = compile $out
rule link
  command = {cxx} -shared $in -o $out {ldflags}
  description = link $out
"""
OPTIONS = [
    ("isa=", None, f"only these instruction sets, by comma (of {', '.join(ISAS)})"),
    ("objects=", None, "folder of the objects (default: build/native-PLATFORM-PYTHON)"),
]


def fail(message):
    raise SystemExit(f"bertfast: {message}")


def compiler():
    """CXX, or what is on PATH: g++ first on Linux, whose OpenMP is the libgomp that torch loads."""
    names = ("clang++", "g++") if MACOS else ("g++", "c++", "clang++")
    found = os.environ.get("CXX") or next(filter(shutil.which, names), None)
    return found or fail("no C++ compiler found: `make` says how to install one; or set CXX.")


def openmp():
    """(compile flags, link flags). Apple's clang has no OpenMP of its own: Homebrew's, untested."""
    if not MACOS:
        return "-fopenmp", "-fopenmp"
    asked = subprocess.run("brew --prefix libomp", shell=True, capture_output=True, text=True)
    omp = Path(asked.stdout.strip())
    if not (omp / "include/omp.h").exists():
        fail("omp.h not found. Run: brew install libomp")
    link = f"-L{omp}/lib -lomp -undefined dynamic_lookup"
    return f"-Xpreprocessor -fopenmp -I{omp}/include", link


def units(isas):
    """Yields (source, object, flags) of every compilation."""
    import pybind11

    # The folder goes through the environment: build isolation has it elsewhere each time, and a
    # changed command compiles again. The version is in the command, so that an update does too.
    pybind = f'-DBF_PYBIND11={pybind11.__version__} -isystem "$$BF_PYBIND11_INCLUDE"'
    binding = f"{pybind} -isystem {shlex.quote(sysconfig.get_path('include'))}"
    table = f"'-DBF_FOR_EACH_ISA(X)={' '.join(f'X({isa})' for isa in isas)}'"
    for path in sorted([ROOT / "csrc/bindings.cpp", *ROOT.glob("csrc/*/*.cpp")]):
        source, name = path.relative_to(ROOT), f"{path.parent.name}_{path.stem}.o"
        if path.name == "cpu.cpp" or path.name.startswith("cpu_"):
            yield from ((source, f"{isa}/{name}", f"-DBF_ISA={isa} {ISAS[isa]}") for isa in isas)
        else:
            yield source, name, f"{table} {binding if path.name == 'bindings.cpp' else ''}"


def ninja_script(isas, objects, module):
    """(text of build.ninja, the compiler's message files), with paths relative to the root."""
    compile_flags, link_flags = openmp()
    flags = f"{FLAGS} {compile_flags} {os.environ.get('CXXFLAGS', '')}"
    ldflags = f"{link_flags} {os.environ.get('LDFLAGS', '')}"
    lines = [NINJA.format(objects=objects, cxx=compiler(), flags=flags, ldflags=ldflags)]
    compiled = []
    for source, name, extra in units(isas):
        compiled.append(f"{objects}/{name}")
        lines.append(f"build {compiled[-1]}: compile {source}\n  flags = {extra}")
    lines.append(f"build {module}: link {' '.join(compiled)}\n")
    return "\n".join(lines), [ROOT / f"{name}.log" for name in compiled]


class Build(build_ext):
    """Writes build.ninja and lets ninja do the rest; a second run compiles only what changed."""

    user_options = build_ext.user_options + OPTIONS

    def initialize_options(self):
        super().initialize_options()
        self.isa = self.objects = None

    def build_extension(self, ext):
        import pybind11

        build = os.environ.get("BERTFAST_BUILD") or "auto"
        if build == "cuda":
            fail("BERTFAST_BUILD=cuda: this tree has no CUDA kernels. Use cpu or auto.")
        if build not in ("auto", "cpu"):
            fail(f"BERTFAST_BUILD: expected auto, cpu or cuda, got {build!r}.")
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        objects = self.objects or f"build/native-{tag}"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        module = f"{objects}/{target.name}"
        script, logs = ninja_script((self.isa or ",".join(ISAS)).split(","), objects, module)
        (ROOT / objects).mkdir(parents=True, exist_ok=True)
        (ROOT / objects / "build.ninja").write_text(script)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command = [sys.executable, "-m", "ninja", "-f", f"{objects}/build.ninja", *jobs]
        environment = {**os.environ, "BF_PYBIND11_INCLUDE": pybind11.get_include()}
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            fail("the native code did not compile; the compiler's message stands above.")
        warnings = "".join(log.read_text() for log in logs)
        sys.stderr.write(warnings)
        if warnings and os.environ.get("BERTFAST_WERROR") == "1":
            fail("BERTFAST_WERROR=1 makes the compiler's warnings above an error.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / module, target)


setup(ext_modules=[Extension("bertfast._cpu", sources=[])], cmdclass={"build_ext": Build})
