"""Builds bertfast._cpu and bertfast._cuda with ninja: no torch, no network, no look at this machine's processor or GPU.

_cpu: every csrc/*/cpu.cpp and csrc/common/cpu_*.cpp is compiled once for each instruction set, in a namespace of its
own, and chosen by cpuid at run time; csrc/bindings.cpp and the other csrc/common/*.cpp once.
_cuda, where nvcc is found: every csrc/*/cuda*.cu to PTX for compute_80, and from that PTX to a cubin for each target.
Variables: BERTFAST_BUILD=auto|cpu|cuda, BERTFAST_CUDA_ARCHS (else TORCH_CUDA_ARCH_LIST; as in 80;90+PTX), CUDA_HOME,
CXX, CXXFLAGS, NVCCFLAGS, LDFLAGS, MAX_JOBS; BERTFAST_WERROR=1: no warnings.
"""

import os
import platform
import re
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
CUDA_TARGETS = "80;86;89;90;100;120+PTX"
LEAST_TARGET = 80  # the kernels use what sm_80 brought: bf16 products and asynchronous copies

# -Wno-psabi: vectors pass between functions of one unit only, so nobody relies on how.
FLAGS = (
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno "
    "-fno-trapping-math -Wall -Wextra -Wno-psabi -Icsrc"
)
NVCC_FLAGS = (
    "-O3 -std=c++17 --expt-relaxed-constexpr --compress-mode=size -Icsrc "
    "-Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
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


def cuda_toolkit():
    """(nvcc, folder of its headers and libraries): of CUDA_HOME, PATH or PyPI's nvidia-cuda-nvcc; None where absent."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    wheels = [
        str(nvcc) for path in sys.path for nvcc in Path(path or ".").glob("nvidia/cu*/bin/nvcc")
    ]
    for nvcc in [home and f"{home}/bin/nvcc", shutil.which("nvcc"), *sorted(wheels, reverse=True)]:
        if nvcc and Path(nvcc).exists():
            asked = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
            said = subprocess.run(asked, capture_output=True, text=True)
            top = re.search(r"^#\$ TOP=(.*)$", said.stderr + said.stdout, re.M)
            return nvcc, Path(top[1].strip() if top else Path(nvcc).parent.parent).resolve()
    return None


def cuda_targets():
    """(compute capabilities, as in ["80", "90"]; whether their PTX goes along)."""
    name = (
        "BERTFAST_CUDA_ARCHS" if os.environ.get("BERTFAST_CUDA_ARCHS") else "TORCH_CUDA_ARCH_LIST"
    )
    asked = os.environ.get(name) or CUDA_TARGETS
    names = [item.replace(".", "") for item in re.split(r"[;,\s]+", asked.strip()) if item]
    plain = [item.removesuffix("+PTX") for item in names]
    if wrong := [item for item in plain if not item.isdigit()]:
        fail(f"{name}: expected compute capabilities as in 80;90+PTX, got {', '.join(wrong)}.")
    if old := [item for item in plain if int(item) < LEAST_TARGET]:
        sys.stderr.write(
            f"bertfast: {name}: no kernels for {', '.join(old)}, which torch will serve\n"
        )
    kept = sorted({item for item in plain if int(item) >= LEAST_TARGET}, key=int)
    if not kept:
        fail(f"{name}={asked}: the kernels need compute capability 8.0 or newer.")
    return kept, any(item.endswith("+PTX") for item in names)


def bindings_flags():
    # The folder goes through the environment: build isolation has it elsewhere each time, and a
    # changed command compiles again. The version is in the command, so that an update does too.
    import pybind11

    pybind = f'-DBF_PYBIND11={pybind11.__version__} -isystem "$$BF_PYBIND11_INCLUDE"'
    return f"{pybind} -isystem {shlex.quote(sysconfig.get_path('include'))}"


def cpu_script(objects, module, isas):
    """(text of build.ninja, the objects) of _cpu, with paths relative to the root."""
    compile_flags, link_flags = openmp()
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
    return script(objects, module, builds, compile_flags, link_flags)


def cuda_script(objects, module, toolkit):
    """The same of _cuda."""
    nvcc, root = toolkit
    targets, with_ptx = cuda_targets()
    codes = [f"sm_{target}" for target in targets] + ["compute_80"] * with_ptx
    library = next(iter(root.glob("**/libcudart_static.a")), None)
    if library is None:
        fail(
            f"libcudart_static.a is not in {root}. Install nvidia-cuda-runtime beside nvcc, or set CUDA_HOME."
        )
    include = library.parent.parent / "include"
    flags = f"-DBF_CUDA '-DBF_CUDA_TARGETS=\"{','.join(targets)}{'+PTX' * with_ptx}\"' -isystem {include}"
    sources = [ROOT / "csrc/bindings.cpp", *sorted(ROOT.glob("csrc/common/cuda_*.cpp"))]
    builds = [
        ("compile", path.relative_to(ROOT), f"{path.stem}.o",
         f"{flags} {bindings_flags() if path.name == 'bindings.cpp' else ''}")
        for path in sources
    ]  # fmt: skip
    builds += [
        ("nvcc", path.relative_to(ROOT), f"{path.parent.name}_{path.stem}.o", "")
        for path in sorted(ROOT.glob("csrc/*/cuda*.cu"))
    ]
    link = f"{library} -ldl -lrt -lpthread -static-libgcc"
    gencode = f"-gencode 'arch=compute_80,code=[{','.join(codes)}]'"
    nvcc_flags = f"{gencode} -ccbin {compiler()} {NVCC_FLAGS} {os.environ.get('NVCCFLAGS', '')}"
    return script(objects, module, builds, "", link, nvcc, nvcc_flags)


def script(objects, module, builds, compile_flags, link_flags, nvcc="", nvcc_flags=""):
    """(text of build.ninja, the compilers' message files); builds: (rule, source, object, flags)."""
    flags = f"{FLAGS} {compile_flags} {os.environ.get('CXXFLAGS', '')}"
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


class Build(build_ext):
    """Writes build.ninja and lets ninja do the rest; a second run compiles only what changed."""

    user_options = build_ext.user_options + OPTIONS

    def initialize_options(self):
        super().initialize_options()
        self.isa = self.objects = None

    def build_extension(self, ext):
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        objects = self.objects or f"build/native-{tag}"
        if ext.name.endswith("_cuda"):
            objects = f"{objects}/cuda"
            module = f"{objects}/{target.name}"
            text, logs = cuda_script(objects, module, cuda_toolkit())
        else:
            module = f"{objects}/{target.name}"
            text, logs = cpu_script(objects, module, (self.isa or ",".join(ISAS)).split(","))
        self.run_ninja(objects, text, logs)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{target.name}.new")  # processes that run the old one keep it
        shutil.copyfile(ROOT / module, new)
        new.replace(target)

    def run_ninja(self, objects, text, logs):
        import pybind11

        (ROOT / objects).mkdir(parents=True, exist_ok=True)
        (ROOT / objects / "build.ninja").write_text(text)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command = [sys.executable, "-m", "ninja", "-f", f"{objects}/build.ninja", *jobs]
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
    found = None if build == "cpu" else cuda_toolkit()
    if build == "cuda" and found is None:
        packages = (
            "nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"
        )
        fail(f"BERTFAST_BUILD=cuda: no nvcc. Set CUDA_HOME, or: pip install {packages}")
    if build == "auto" and found is None:
        sys.stderr.write("bertfast: no nvcc found: building for CPUs only (BERTFAST_BUILD=cpu)\n")
    names = ["bertfast._cpu", *(["bertfast._cuda"] if found else [])]
    return [Extension(name, sources=[]) for name in names]


setup(ext_modules=modules(), cmdclass={"build_ext": Build})
