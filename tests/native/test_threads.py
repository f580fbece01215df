"""Threads of the backend cpu: a pool, as many as torch has, no GIL, forks; results do not depend on them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bertfast import dispatch, extension, ops
from harness import CASES, OPERATIONS, make_gradient, make_inputs, public, refusal, seeds

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
forks = pytest.mark.skipif(
    sys.platform != "linux", reason="macOS's own libraries do not survive a fork, Windows has none"
)
LINEAR = """
import torch
from bertfast import dispatch, ops
x, weight, bias = torch.randn(256, 128), torch.randn(512, 128), torch.randn(512)
def run():
    with dispatch.use_backend("cpu"), torch.no_grad():
        return ops.linear_gelu(x, weight, bias)
"""


@pytest.fixture(autouse=True)
def _threads():
    assert extension.cpu, extension.REASON
    before = torch.get_num_threads()
    with dispatch.use_backend("cpu"), torch.no_grad():
        yield
    torch.set_num_threads(before)


def in_fresh_process(program: str) -> str:
    seeded = f"import torch\ntorch.manual_seed({seeds.seed()})\n"
    command = [sys.executable, "-c", seeded + LINEAR + program]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # the package harness
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


@linux
@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_threads_as_torch_has(count):
    program = f"""
import os
torch.set_num_threads({count})
before = len(os.listdir("/proc/self/task"))
run()
print(len(os.listdir("/proc/self/task")) - before + 1)
"""
    assert int(in_fresh_process(program)) == count


def test_gil_is_released():
    torch.set_num_threads(1)
    x, weight, bias = torch.randn(4096, 768), torch.randn(3072, 768), torch.randn(3072)
    started, ended = threading.Event(), threading.Event()

    def work():
        try:
            with dispatch.use_backend("cpu"), torch.no_grad():
                started.set()
                ops.linear_gelu(x, weight, bias)
        finally:
            ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    ticks = 0
    while not ended.is_set():
        time.sleep(0.001)
        ticks += 1
    thread.join()
    assert ticks > 10  # with the GIL held, this thread would have woken up once or twice


FORK = """
import os, time
def status_of(child, seconds):  # the function's result in a forked child
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = child()
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, 9)
    os.waitpid(process, 0)
    return "hangs"
"""


@linux
def test_forked_child_runs_on_one_thread_and_does_not_hang():
    program = """
torch.set_num_threads(2)
expected = run()
def child():
    before = len(os.listdir("/proc/self/task"))
    same = torch.equal(run(), expected)
    return 0 if same and len(os.listdir("/proc/self/task")) == before else 1
print("status", status_of(child, 20))
assert torch.equal(run(), expected)  # the parent's threads are untouched
"""
    assert in_fresh_process(FORK + program) == "status 0\n"


@forks
def test_torch_computes_in_a_forked_child():
    """Its own pool of threads, if the parent had one, is lost."""
    program = """
from harness import Case, make_inputs, public
case = Case("base", (128,) * 4, 768, 768, heads=12)
def layer():
    with dispatch.use_backend("cpu"), torch.no_grad():
        return [public(name)(**make_inputs(name, case, torch.float32))
                for name in ("qkv_projection", "attention", "linear_layernorm", "linear_gelu")]
torch.set_num_threads(2)
expected = layer()
def child():
    right = all(map(torch.equal, layer(), expected))
    product = expected[-1] @ expected[-1].t()
    return 0 if right and product.isfinite().all() and torch.get_num_threads() == 1 else 1
print("status", status_of(child, 60))
assert torch.get_num_threads() == 2
"""
    assert in_fresh_process(FORK + program) == "status 0\n"


@linux
def test_a_forked_child_may_have_threads_of_its_own():
    program = """
torch.set_num_threads(3)
expected = run()
def child():
    torch.set_num_threads(3)
    before = len(os.listdir("/proc/self/task"))
    found = run()
    made = len(os.listdir("/proc/self/task")) - before
    return 0 if made == 2 and torch.equal(found, expected) else 1
print("status", status_of(child, 20))
"""
    assert in_fresh_process(FORK + program) == "status 0\n"


@linux
def test_the_pool_takes_no_signals():
    program = """
import os, signal
torch.set_num_threads(3)
before = set(os.listdir("/proc/self/task"))
run()
for task in set(os.listdir("/proc/self/task")) - before:
    status = open(f"/proc/self/task/{task}/status").read()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    assert blocked >> (signal.SIGINT - 1) & 1
    print("thread")
"""
    assert in_fresh_process(program) == "thread\n" * 2


@forks
def test_a_fork_before_any_kernel_keeps_the_threads():
    """Or after kernels on one thread alone: there is no pool to lose."""
    program = """
torch.set_num_threads(1)
run()
torch.set_num_threads(2)
print("threads", status_of(torch.get_num_threads, 20))
"""
    assert in_fresh_process(FORK + program) == "threads 2\n"


def test_concurrent_python_threads():
    torch.set_num_threads(2)
    jobs = [
        (operation, make_inputs(operation, case, torch.float32))
        for operation in OPERATIONS
        for case in CASES[operation]
        if case.name in ("tiny", "odd", "minilm", "base")
    ]
    expected = [public(operation)(**inputs) for operation, inputs in jobs]
    wrong = []

    def work(shift):
        with dispatch.use_backend("cpu"), torch.no_grad():
            for i in range(2 * len(jobs)):
                place = (i + shift) % len(jobs)
                operation, inputs = jobs[place]
                if not torch.equal(public(operation)(**inputs), expected[place]):
                    wrong.append(operation)

    threads = [threading.Thread(target=work, args=(7 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PARITY = [
    pytest.param(
        operation, case, dtype, id=f"{operation}-{case}-{str(dtype).removeprefix('torch.')}"
    )
    for operation in OPERATIONS
    for case in CASES[operation]
    for dtype in (torch.float32, torch.bfloat16)
]


def results(operation, case, dtype) -> list[torch.Tensor]:
    """The result and, where the C++ backend has a backward, the gradients."""
    inputs = make_inputs(operation, case, dtype)
    found = [public(operation)(**inputs)]
    if refusal(operation, "backward", case, dtype, "cpu") is None:
        floating = {
            name: value.detach().requires_grad_()
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
        with torch.enable_grad():
            out = public(operation)(**{**inputs, **floating})
            found += torch.autograd.grad(out, list(floating.values()), make_gradient(case, out))
    return found


@pytest.mark.parametrize(("operation", "case", "dtype"), PARITY)
def test_results_do_not_depend_on_the_number_of_threads(operation, case, dtype):
    torch.set_num_threads(1)
    expected = results(operation, case, dtype)
    for count in (2, 3):
        torch.set_num_threads(count)
        for i, (got, wanted) in enumerate(
            zip(results(operation, case, dtype), expected, strict=True)
        ):
            assert torch.equal(got, wanted), f"{count} threads, result {i}"


ROWS = [name for name in OPERATIONS if name not in ("attention", "masked_cross_entropy")]
PER_TOKEN = {"x", "residual", "input_ids", "inputs_embeds", "position_ids", "token_type_ids"}


@pytest.mark.parametrize("operation", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_does_not_depend_on_its_batch(operation, dtype):
    for case in CASES[operation]:
        if case.p:
            continue  # dropout is counted from the sequence's place in the batch
        inputs = make_inputs(operation, case, dtype)
        whole = public(operation)(**inputs)
        for start, stop in ((0, 1), (0, case.tokens // 2), (case.tokens // 3, case.tokens)):
            part = {
                name: value[start:stop] if name in PER_TOKEN and value is not None else value
                for name, value in inputs.items()
            }
            assert torch.equal(public(operation)(**part), whole[start:stop]), (
                f"{case} [{start}:{stop}]"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_does_not_depend_on_its_batch(dtype):
    for case in CASES["attention"]:
        if case.p:
            continue
        inputs = make_inputs("attention", case, dtype)
        whole = ops.attention(**inputs)
        start = 0
        for length in case.lengths:
            offsets = torch.tensor([0, length], dtype=torch.int32)
            alone = {**inputs, "qkv": inputs["qkv"][start : start + length], "cu_seqlens": offsets}
            assert torch.equal(ops.attention(**alone), whole[start : start + length]), f"{case}"
            start += length


def test_the_module_reports_what_it_uses():
    torch.set_num_threads(2)
    report = extension.describe()
    assert report["threads"] == 2
    assert report["active"] in report["instruction_sets"]
