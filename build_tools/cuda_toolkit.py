"""How _cuda is built: which nvcc, for which GPUs, by which commands. No GPU and no driver is looked at."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from ninja_file import ROOT, bindings_flags, compiler, fail, script

TARGETS = "80;86;89;90;100;120+PTX"
LEAST_TARGET = 80  # the kernels use what sm_80 brought: bf16 products and asynchronous copies
OLDEST = (12, 8)  # the first nvcc that compiles for sm_120
PACKAGES = "nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"
FLAGS = (
    "-O3 -std=c++17 --expt-relaxed-constexpr --compress-mode=size -Icsrc "
    "-Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
)


def find():
    """The nvcc of CUDA_HOME, of PATH or of PyPI's packages, the first that is new enough; or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    # pip's build isolation hides the environment that it installs into; sysconfig still names it
    folders = dict.fromkeys([*(path or "." for path in sys.path), sysconfig.get_path("purelib")])
    wheels = [nvcc for path in folders for nvcc in Path(path).glob("nvidia/cu*/bin/nvcc")]
    for nvcc in [home and f"{home}/bin/nvcc", shutil.which("nvcc"), *sorted(wheels, reverse=True)]:
        if nvcc and Path(nvcc).exists() and new_enough(nvcc):
            return str(nvcc)
    return None


def new_enough(nvcc):
    said = answer(nvcc, "--version")
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release and tuple(map(int, release.groups())) >= OLDEST:
        return True
    found = f"CUDA {release[1]}.{release[2]}" if release else said.strip() or "no version"
    oldest = ".".join(map(str, OLDEST))
    sys.stderr.write(f"bertfast: {nvcc} passed over: {found}; CUDA {oldest} is the oldest\n")
    return False


def answer(*command):
    """What a command prints, or why it does not run."""
    try:
        said = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return said.stdout + said.stderr


def parts(nvcc):
    """(headers, libcudart_static.a) that go with an nvcc; ends the build where a part is missing."""
    said = answer(nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull)
    top = re.search(r"^#\$ TOP=(.*)$", said, re.M)
    root = Path(top[1].strip() if top else Path(nvcc).parent.parent).resolve()
    places = (place for folder in ("lib64", "lib", "targets/*/lib") for place in root.glob(folder))
    found = [place / "libcudart_static.a" for place in places]
    library = next((path.resolve() for path in found if path.exists()), None)
    if library is None:
        missing(nvcc, root / "lib/libcudart_static.a", "nvidia-cuda-runtime")
    include = library.parent.parent / "include"
    for path, package in (
        (include / "cuda_runtime.h", "nvidia-cuda-runtime"),
        (include / "crt/host_config.h", "nvidia-cuda-crt"),
        (root / "nvvm/bin/cicc", "nvidia-nvvm"),
    ):
        if not path.exists():
            missing(nvcc, path, package)
    return include, library


def missing(nvcc, path, package):
    fail(
        f"{nvcc} is there, but {path} is not. Install {package} beside it, set CUDA_HOME to a "
        "whole toolkit, or build for CPUs only with BERTFAST_BUILD=cpu."
    )


def targets():
    """(compute capabilities, as in ["80", "90"]; whether their PTX goes along)."""
    ours = bool(os.environ.get("BERTFAST_CUDA_ARCHS"))
    name = "BERTFAST_CUDA_ARCHS" if ours else "TORCH_CUDA_ARCH_LIST"
    asked = os.environ.get(name) or TARGETS
    names = [item.replace(".", "") for item in re.split(r"[;,\s]+", asked.strip()) if item]
    plain = [item.removesuffix("+PTX") for item in names]
    if wrong := [item for item in plain if not item.isdigit()]:
        advice = "" if ours else " BERTFAST_CUDA_ARCHS goes before it."
        fail(f"{name}: expected capabilities as in 80;90+PTX, got {', '.join(wrong)}.{advice}")
    if old := [item for item in plain if int(item) < LEAST_TARGET]:
        sys.stderr.write(
            f"bertfast: {name}: no kernels for {', '.join(old)}, which torch will serve\n"
        )
    kept = sorted({item for item in plain if int(item) >= LEAST_TARGET}, key=int)
    if not kept:
        fail(f"{name}={asked}: the kernels need compute capability 8.0 or newer.")
    return kept, any(item.endswith("+PTX") for item in names)


def cuda_script(objects, module, nvcc):
    """(text of build.ninja, message files) of _cuda: each .cu to PTX of compute_80, and that to cubins."""
    kept, with_ptx = targets()
    include, library = parts(nvcc)
    flags = (
        f"-DBF_CUDA '-DBF_CUDA_TARGETS=\"{','.join(kept)}{'+PTX' * with_ptx}\"' -isystem {include}"
    )
    sources = [ROOT / "csrc/bindings.cpp", *sorted(ROOT.glob("csrc/*/cuda_*.cpp"))]
    builds = [
        ("compile", path.relative_to(ROOT), f"{path.stem}.o",
         f"{flags} {bindings_flags() if path.name == 'bindings.cpp' else ''}")
        for path in sources
    ]  # fmt: skip
    builds += [
        ("nvcc", path.relative_to(ROOT), f"{path.parent.name}_{path.stem}.o", "")
        for path in sorted(ROOT.glob("csrc/*/cuda*.cu"))
    ]
    link = f"{library} -ldl -lrt -lpthread"
    codes = [f"sm_{target}" for target in kept] + ["compute_80"] * with_ptx
    gencode = f"-gencode 'arch=compute_80,code=[{','.join(codes)}]'"
    nvcc_flags = f"{gencode} -ccbin {compiler()} {FLAGS} {os.environ.get('NVCCFLAGS', '')}"
    return script(objects, module, builds, link, nvcc, nvcc_flags)
