"""The seed of every test, and the table of which backend computed which operation."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter

import numpy
import pytest
import torch

from bertfast import dispatch, extension, ops

sys.path.insert(0, os.path.dirname(__file__))  # the package gpu_code

from gpu_code.backends import GPU_BACKENDS
from harness import seeds

DIRECTIONS = ("forward", "backward")
OPERATIONS = ops.__all__
# The groups of tests that take longest; they start first, so that the processes of pytest-xdist end together.
LONGEST = (
    "test_attention-cuda",  # makes the module of the backend cuda
    "test_sanitizers",
    "test_linear_layernorm-triton",
    "test_cuda_synchronisation",
    "test_gates-80",
    "test_transformers_suite",
    "test_configurations-attention",
    "test_variants",
    "test_attention-triton",
    "test_linear_gelu-triton",
    "test_masked_cross_entropy-triton",
    "wheel",
    "test_interpreted",
    "test_graphs",
    "test_compile",
    "test_cuda_gates-80",
    "test_cuda_gates-120",
    "test_gates-90",
    "test_gates-120",
    "test_configurations-linear_gelu",
    "test_configurations-qkv_projection",
    "test_executor_mutants",
)
BACKENDS = dispatch.NAMES
_RAN: Counter[tuple[str, str, str]] = Counter()  # (backend, operation, direction) -> passed tests
_REPEATED: list[int] = [0]  # how many tests were left to `make test-all`


def pytest_addoption(parser):
    parser.addoption(
        "--seed", type=int, default=seeds.seed(), help="seed of all that is drawn in tests"
    )
    parser.addoption(
        "--device",
        default="cpu",
        help="cuda: the operations' tests run on a GPU, the backends of a GPU only; cpu: those are executed",
    )
    parser.addoption(
        "--all", action="store_true", help="repeated configurations, orders and architectures too"
    )
    parser.addoption(
        "--all-architectures", action="store_true", help="gate every architecture in every dtype"
    )


def pytest_configure(config):
    os.environ[seeds.VARIABLE] = str(config.getoption("seed"))  # before a test module is imported
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # groups start in the order of collection
    config.addinivalue_line("markers", "repeated: proves nothing that no other test proves; --all")


def pytest_report_header(config):
    return f"bertfast: seed {config.getoption('seed')}, one thread a process"


@pytest.fixture(scope="session", autouse=True)
def _no_tables(tmp_path_factory):
    """Tests neither read nor write the user's tuning tables."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _threads_again():
    """As many threads after a test as before it."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(params=extension.describe()["instruction_sets"])
def variant(request):
    """Each instruction set of the C++ kernels that runs here."""
    before = extension.cpu.variant()
    extension.cpu.set_variant(request.param)
    yield request.param
    extension.cpu.set_variant(before)


@pytest.fixture(autouse=True)
def _seeded(request):
    seed = request.config.getoption("seed")
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _one_thread():
    """Inputs are small, and the suite has a process for each core: a second thread would only wait."""
    torch.set_num_threads(1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    with dispatch.record() as log:
        outcome = yield
    if item.path.parent.name == "ops" and outcome.excinfo is None:
        _RAN.update({(backend, name, direction) for name, direction, backend, _ in log})


def _computes(found, name: str, direction: str) -> bool:
    product = name.partition(":")[2]
    return hasattr(found, direction) and (not product or product in getattr(found, "PRODUCTS", ()))


def _asked() -> list[tuple[str, str, str]]:
    """What a full run must have computed: every backend that an operation has. None needs a GPU."""
    return [
        (backend, operation, direction)
        for operation in OPERATIONS
        for backend in BACKENDS
        for direction in DIRECTIONS
        if _computes(dispatch._BACKENDS[operation][backend], backend, direction)
    ]


def _whole_suite(config) -> bool:
    asked = [os.path.abspath(name) for name in config.args]
    root = str(config.rootpath)
    option = config.option
    plain = not (option.keyword or option.markexpr or getattr(option, "lf", False))
    return plain and any(name in (root, os.path.join(root, "tests")) for name in asked)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Leaves repeated tests to --all; says which process of pytest-xdist runs a test, and what starts first."""
    if not config.getoption("--all"):
        repeated = [item for item in items if item.get_closest_marker("repeated")]
        items[:] = [item for item in items if not item.get_closest_marker("repeated")]
        config.hook.pytest_deselected(items=repeated)
        _REPEATED[0] = len(repeated)
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: _place(groups[item]))


def _group(item) -> str:
    """What shares compiled kernels, imports or what a module sets up, goes to one process."""
    if marker := item.get_closest_marker("xdist_group"):
        return marker.args[0]
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    backends = {parameters.get("backend"), *parameters.get("pair", ())} & set(GPU_BACKENDS)
    part = min(backends, default="")
    if not backends and item.path.parent.name in ("gates", "gpu_code"):
        part = next((parameters[x] for x in ("arch", "target", "operation") if x in parameters), "")
    return f"{item.path.stem}-{part}" if part else item.path.stem


def _place(group: str) -> int:
    return LONGEST.index(group) if group in LONGEST else len(LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A process of pytest-xdist ends: its counts join the table."""
    _REPEATED[0] = getattr(node, "workeroutput", {}).get("repeated", 0)  # all collect the same
    for cell, count in getattr(node, "workeroutput", {}).get("ran", ()):
        _RAN[tuple(cell)] += count


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["repeated"] = _REPEATED[0]
        session.config.workeroutput["ran"] = [(list(cell), n) for cell, n in _RAN.items()]
        return
    empty = [cell for cell in _asked() if not _RAN[cell]]
    if os.environ.get("CI") and _whole_suite(session.config) and empty and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if _REPEATED[0]:
        terminalreporter.write_line(f"{_REPEATED[0]} repeated tests left out: --all runs them")
    if not _RAN and not _whole_suite(config):
        return
    asked = _asked()
    terminalreporter.section("backend by operation: tests passed in tests/ops, forward + backward")
    terminalreporter.write_line(f"{'':24}" + "".join(f"{backend:>16}" for backend in BACKENDS))
    for operation in OPERATIONS:
        cells = [
            [(backend, operation, direction) for direction in DIRECTIONS] for backend in BACKENDS
        ]
        texts = [" + ".join(str(_RAN[c]) if c in asked else "-" for c in cell) for cell in cells]
        terminalreporter.write_line(f"{operation:24}" + "".join(f"{text:>16}" for text in texts))
    if _whole_suite(config):
        for backend, operation, direction in asked:
            if not _RAN[backend, operation, direction]:
                terminalreporter.write_line(
                    f"empty: {backend} {direction} of {operation}", red=True
                )
