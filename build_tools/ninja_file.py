"""What native_modules.py and cuda_toolkit.py share: the compiler, its flags, and the text of a build.ninja."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACOS = sys.platform == "darwin"

# -Wno-psabi: vectors pass between functions of one unit only, so nobody relies on how.
FLAGS = (
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno "
    "-fno-trapping-math -pthread -Wall -Wextra -Wno-psabi -Icsrc"
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
rule nvcc
  command = {nvcc} {nvccflags} -MD -MF $out.d -c $in -o $out > $out.log 2>&1 || $
    {{ cat $out.log >&2; exit 1; }}
  depfile = $out.d
  deps = gcc
  description = nvcc $out
rule link
  command = {cxx} -shared $in -o $out {ldflags}
  description = link $out
"""


def fail(message):
    raise SystemExit(f"bertfast: {message}")


def compiler():
    """CXX, or what is on PATH."""
    names = ("clang++", "g++") if MACOS else ("g++", "c++", "clang++")
    found = os.environ.get("CXX") or next(filter(shutil.which, names), None)
    return found or fail("no C++ compiler found: `make` says how to install one; or set CXX.")


def bindings_flags():
    # The folder goes through the environment: build isolation has it elsewhere each time, and a
    # changed command compiles again. The version is in the command, so that an update does too.
    import pybind11

    pybind = f'-DBF_PYBIND11={pybind11.__version__} -isystem "$$BF_PYBIND11_INCLUDE"'
    return f"{pybind} -isystem {shlex.quote(sysconfig.get_path('include'))}"


def script(objects, module, builds, link_flags, nvcc="", nvcc_flags=""):
    """(text of build.ninja, the compilers' message files); builds: (rule, source, object, flags)."""
    flags = f"{FLAGS} {os.environ.get('CXXFLAGS', '')}"
    ldflags = f"{link_flags} {os.environ.get('LDFLAGS', '')}"
    lines = [
        NINJA.format(
            objects=objects, cxx=compiler(), flags=flags, ldflags=ldflags, nvcc=nvcc,
            nvccflags=nvcc_flags,
        )
    ]  # fmt: skip
    compiled = [f"{objects}/{name}" for _, _, name, _ in builds]
    for (rule, source, _, extra), target in zip(builds, compiled, strict=True):
        lines.append(f"build {target}: {rule} {source}\n  flags = {extra}")
    lines.append(f"build {module}: link {' '.join(compiled)}\n")
    return "\n".join(lines), [ROOT / f"{name}.log" for name in compiled]
