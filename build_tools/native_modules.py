"""How setup.py builds the native modules.

_cpu: every csrc/*/cpu.cpp and cpu_*.cpp is compiled once for each instruction set, in a namespace of its own, and
chosen by cpuid at run time; csrc/bindings.cpp and the other .cpp files once.
_cuda, where nvcc is found (cuda_toolkit.py): every csrc/*/cuda*.cu to PTX for compute_80, and from that PTX to a cubin
for each target.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cuda_toolkit
from ninja_file import MACOS, ROOT, bindings_flags, fail, script
from setuptools import Extension
from setuptools.command.build_ext import build_ext

AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl"
ISAS = {  # name -> flags, from narrow to wide; never -march=native
    "baseline": "-march=x86-64-v2",
    "avx2": f"{AVX2} -mtune=haswell",
    "avx2_wide": f"{AVX2} -mtune=haswell -DBF_WIDE_TILE",  # AVX-512's tile at AVX2 width, for tests
    "avx512": f"{AVX2} {AVX512} -mtune=skylake-avx512",
    "avx512_dot": f"{AVX2} {AVX512} -mavx512vnni -mavx512bf16 -mtune=skylake-avx512",
}
if platform.machine().lower() not in ("x86_64", "amd64"):
    ISAS = {"baseline": "", "neon_dot": "-march=armv8.2-a+dotprod"}
OPTIONS = [
    ("isa=", None, f"only these instruction sets, by comma (of {', '.join(ISAS)})"),
    ("objects=", None, "folder of the objects (default: build/native-PLATFORM-PYTHON)"),
]


def cpu_script(objects, module, isas):
    """(text of build.ninja, the compilers' message files) of _cpu, with paths relative to the root."""
    link_flags = "-undefined dynamic_lookup" if MACOS else "-pthread"
    table = f"'-DBF_FOR_EACH_ISA(X)={' '.join(f'X({isa})' for isa in isas)}'"
    builds = []
    for path in sorted([ROOT / "csrc/bindings.cpp", *ROOT.glob("csrc/*/*.cpp")]):
        source, name = path.relative_to(ROOT), f"{path.parent.name}_{path.stem}.o"
        if path.name == "cpu.cpp" or path.name.startswith("cpu_"):
            builds += [(source, f"{isa}/{name}", f"-DBF_ISA={isa} {ISAS[isa]}") for isa in isas]
        elif not path.name.startswith("cuda_"):
            extra = bindings_flags() if path.name == "bindings.cpp" else ""
            builds.append((source, name, f"{table} {extra}"))
    builds = [("compile", *build) for build in builds]
    return script(objects, module, builds, link_flags)


@contextlib.contextmanager
def alone(folder):
    """Waits while another process builds in the folder: two ninjas would overwrite each other's objects."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Build(build_ext):
    """Writes build.ninja and lets ninja do the rest; a second run compiles only what changed."""

    user_options = build_ext.user_options + OPTIONS

    def initialize_options(self):
        super().initialize_options()
        self.isa = self.objects = None

    def run(self):
        """A _cuda of an earlier build outlives neither a build without it nor one that fails."""
        names = [ext.name for ext in self.extensions]
        folders = [Path(self.build_lib), *([ROOT] if self.inplace else [])]
        old = [folder / self.get_ext_filename("bertfast._cuda") for folder in folders]
        done = False
        try:
            super().run()
            done = "bertfast._cuda" in names
        finally:
            for path in [] if done else old:
                path.unlink(missing_ok=True)

    def build_extensions(self):
        """All modules are made before one is put in its place."""
        for module, target in [self.make(ext) for ext in self.extensions]:
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_name(f"{target.name}.new")  # processes that run the old one keep it
            shutil.copyfile(module, new)
            new.replace(target)

    def make(self, ext):
        """(the module among its objects, where it goes)."""
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        objects = self.objects or f"build/native-{tag}"
        if ext.name.endswith("_cuda"):
            objects = f"{objects}/cuda"
            module = f"{objects}/{target.name}"
            text, logs = cuda_toolkit.cuda_script(objects, module, cuda_toolkit.find())
        else:
            module = f"{objects}/{target.name}"
            text, logs = cpu_script(objects, module, (self.isa or ",".join(ISAS)).split(","))
        with alone(ROOT / objects):
            self.run_ninja(objects, text, logs)
        return ROOT / module, target

    def run_ninja(self, objects, text, logs):
        import pybind11

        (ROOT / objects / "build.ninja").write_text(text)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        if not jobs.isdecimal() or int(jobs) < 1:
            fail(f"MAX_JOBS: expected a number from 1, got {jobs!r}.")
        command = [sys.executable, "-m", "ninja", "-f", f"{objects}/build.ninja", "-j", jobs]
        environment = {**os.environ, "BF_PYBIND11_INCLUDE": pybind11.get_include()}
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            fail("the native code did not compile; the compiler's message stands above.")
        warnings = "".join(log.read_text() for log in logs)
        sys.stderr.write(warnings)
        if warnings and os.environ.get("BERTFAST_WERROR") == "1":
            fail("BERTFAST_WERROR=1 makes the compiler's warnings above an error.")


def modules():
    """_cpu always; _cuda as BERTFAST_BUILD says: auto where nvcc is found."""
    build = os.environ.get("BERTFAST_BUILD") or "auto"
    if build not in ("auto", "cpu", "cuda"):
        fail(f"BERTFAST_BUILD: expected auto, cpu or cuda, got {build!r}.")
    found = None if build == "cpu" else cuda_toolkit.find()
    if build != "cpu" and found is None:
        advice = f"For GPUs set CUDA_HOME, or: pip install {cuda_toolkit.PACKAGES}"
        if build == "cuda":
            fail(f"BERTFAST_BUILD=cuda: no nvcc found. {advice}")
        sys.stderr.write(f"bertfast: no nvcc found: building for CPUs only. {advice}\n")
    names = [*(["bertfast._cuda"] if found else []), "bertfast._cpu"]  # a bad toolkit shows first
    return [Extension(name, sources=[]) for name in names]
