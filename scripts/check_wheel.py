"""Checks a built wheel: what it carries, what its modules need, and that it runs in an environment of its own.

    python scripts/check_wheel.py dist/bertfast-0.1.0-*.whl [--python OTHER/bin/python]

--python: the interpreter whose packages, torch above all, serve; bertfast comes from the wheel. Needs pyelftools, and
for the CUDA kernels cuobjdump, of a CUDA toolkit or of the package triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from elftools.elf.elffile import ELFFile

LARGEST = 60_000_000
SYSTEM = re.compile(r"(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux.*)\.so")
SITES = "import sys; print(*(p for p in sys.path if p.endswith(('site-packages', 'dist-packages'))), sep='\\n')"


class WheelError(Exception):
    """The wheel is not what it should be."""


def check(condition: object, message: str) -> None:
    if not condition:
        raise WheelError(message)


def contents(wheel: Path, names: list[str], metadata: str) -> None:
    """The size, the licence and the version."""
    size = wheel.stat().st_size
    check(size <= LARGEST, f"{wheel.name} has {size:,} bytes; {LARGEST:,} is the limit")
    check(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks LICENSE")
    check("bertfast/recipes/bert-base.yaml" in names, "the wheel lacks the recipes")
    check("License-Expression: Apache-2.0" in metadata, "METADATA names no Apache-2.0")
    version = wheel.name.split("-")[1]
    check(f"\nVersion: {version}\n" in metadata, f"METADATA has another version than {version}")
    print(f"{wheel.name}: {size / 1e6:.1f} MB")


def needed(module: Path) -> set[str]:
    """The libraries that a module names; it may name the system's only, and export its entry only."""
    with module.open("rb") as file:
        elf = ELFFile(file)
        libraries = {
            tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")
        }
        exported = {
            symbol.name
            for symbol in elf.get_section_by_name(".dynsym").iter_symbols()
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
        }
    name = module.name.partition(".")[0]
    wrong = sorted(library for library in libraries if not SYSTEM.match(library))
    check(not wrong, f"{name} needs {', '.join(wrong)}")
    check(exported == {f"PyInit_{name}"}, f"{name} exports {', '.join(sorted(exported))}")
    return libraries


def cuobjdump() -> str:
    home = os.environ.get("CUDA_HOME", "")
    triton = importlib.util.find_spec("triton")
    ours = f"{Path(triton.origin).parent}/backends/nvidia/bin/cuobjdump" if triton else ""
    for path in (f"{home}/bin/cuobjdump", shutil.which("cuobjdump"), ours):
        if path and Path(path).exists():
            return path
    raise WheelError("cuobjdump not found: set CUDA_HOME, or pip install triton")


def device_code(module: Path) -> tuple[Counter, Counter]:
    """(cubins, PTX texts) of a module: how many for each compute capability."""
    counts = []
    for option in ("--list-elf", "--list-ptx"):
        command = [cuobjdump(), option, str(module)]
        said = subprocess.run(command, capture_output=True, text=True)
        counts.append(Counter(re.findall(r"\.sm_(\d+\w?)\.(?:cubin|ptx)", said.stdout)))
    return counts[0], counts[1]


def covered(promised: str, cubins: Counter, texts: Counter) -> None:
    """Every source's cubin for each promised target, and its PTX where that was promised."""
    targets = promised.removesuffix("+PTX").split(",")
    check(set(cubins) == set(targets), f"promised sm_{promised}, found {dict(cubins)}")
    check(len(set(cubins.values())) == 1, f"a target lacks cubins: {dict(cubins)}")
    ptx = {"80": cubins[targets[0]]} if promised.endswith("+PTX") else {}
    check(texts == ptx, f"expected PTX {ptx}, found {dict(texts)}")
    print(f"device code: {dict(cubins)} cubins, {dict(texts)} PTX")


def install(wheel: Path, python: str, folder: Path) -> Path:
    """The interpreter of a new environment: this wheel, and the packages that `python` sees."""
    run(python, "-m", "venv", "--without-pip", folder)
    inside = folder / "bin/python"
    pip = ["-m", "pip", "--disable-pip-version-check", "-q", "--python", inside]
    run(sys.executable, *pip, "install", "--no-deps", "--no-index", wheel)
    purelib = run(inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Plain paths, so that no .pth file in there is read: an editable bertfast stays out.
    Path(purelib, "beside.pth").write_text(run(python, "-c", SITES))
    return inside


def run(*command, cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "BERTFAST_BACKEND")
    }
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment)
    check(done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_wheel(wheel: Path, python: str, cuda: bool, folder: Path) -> None:
    """All checks; raises WheelError at the first that fails."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "files")
        names = archive.namelist()
    (metadata,) = (folder / "files").glob("*.dist-info/METADATA")
    contents(wheel, names, metadata.read_text())
    modules = {path.name.partition(".")[0]: path for path in folder.glob("files/bertfast/_c*.so")}
    wanted = {"_cpu", *(["_cuda"] if cuda else [])}
    check(set(modules) >= wanted, f"expected {sorted(wanted)}, found {sorted(modules)}")
    for name, path in modules.items():
        print(
            f"{name}: {path.stat().st_size / 1e6:.1f} MB, needs {', '.join(sorted(needed(path)))}"
        )
    inside = install(wheel, python, folder / "environment")
    program = Path(__file__).resolve().with_name("check_install.py")
    said = run(inside, "-I", program, *(["--cuda"] if cuda else []), cwd=folder)
    print(said, end="")
    if match := re.search(r"^module _cuda (\S+)", said, re.M):
        covered(match[1], *device_code(modules["_cuda"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", default=sys.executable, help="whose packages serve")
    parser.add_argument("--cpu-only", action="store_true", help="the wheel may lack CUDA kernels")
    asked = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            check_wheel(asked.wheel.resolve(), asked.python, not asked.cpu_only, Path(folder))
    except WheelError as error:
        print(f"check_wheel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
