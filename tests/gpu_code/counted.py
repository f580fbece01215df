"""What the shipped host code of the backend cuda launches at BERT-base's sizes, what it computes and moves, and what
its loops issue: benchmarks/counted.json, from which a GPU's times are predicted. Written by

    PYTHONPATH=.:tests python -m gpu_code.counted
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from statistics import mean

import harness
from benchmarks import gpu, predictions
from gpu_code import cuda_driver
from gpu_code.gates import budgets
from gpu_code.gates.census import launched
from harness import costs
from harness.costs import Cost

MULTIPROCESSORS = 132  # an H100's, by which tiles and cuts are chosen
SEED = 20  # of ids and labels, some of which are alike


def counted(part: str, load: str) -> dict[str, dict]:
    """ "forward", "saving", "backward" -> launches, kernels' names in their order; issued, the most instructions that a
    warp issues for a tensor-core instruction in the kernels' hot loops, by their gates (None: no such loop); flops;
    bytes.
    """
    operation = "linear_layernorm" if part == "attention_output" else part
    case = replace(gpu.case(part, load), seed=SEED)
    inputs = harness.make_inputs(operation, case, predictions.DTYPE)
    with cuda_driver.emulated(execute=False, multiprocessors=MULTIPROCESSORS) as device:
        found = dict(launched(device, operation, case, predictions.DTYPE, "cuda"))
    names = {direction: [launch.name for launch in found[direction]] for direction in found}
    kinds = {
        "forward": ("forward", False),
        "saving": ("forward", True),
        "backward": ("backward", True),
    }
    result = {}
    for kind, (direction, save) in kinds.items():
        launches = list(map(_name, names[direction]))
        cost = costs.cost(operation, direction, inputs, save)
        cost += Cost(0, more_bytes(operation, direction, inputs, launches))
        issued = _issued(names[direction])
        result[kind] = {
            "launches": launches,
            "issued": issued,
            "flops": cost.flops,
            "bytes": cost.bytes,
        }
    return result


def more_bytes(operation: str, direction: str, inputs: dict, launches: list[str]) -> int:
    """What is read or written once more because a kernel is apart, where the fused design has one."""
    if operation == "linear_gelu":  # between GELU's slope and the product
        between = inputs["x"].shape[0] * inputs["weight"].shape[0] * predictions.DTYPE.itemsize
        return 2 * between * launches.count("multiply_by_slope")
    short = operation == "attention" and inputs["max_seqlen"] <= costs.SHORT
    if short and direction == "backward" and len(launches) > 1:
        qkv = inputs["qkv"]
        return (qkv.numel() + qkv.numel() // 3) * qkv.element_size()
    return 0


def _name(mangled: str) -> str:
    """`forward_tiles` of _ZN2bf4cuda...13forward_tilesI..."""
    at, name = 3, ""
    while length := re.match(r"\d+", mangled[at:]):
        start = at + len(length[0])
        at = start + int(length[0])
        name = mangled[start:at]
    return name


def _issued(names: Iterable[str]) -> float | None:
    found = [loop.issued for loop in map(budgets.loop_budget, names) if loop]
    return round(mean(found), 3) if found else None


def main() -> None:
    table = {load: {part: counted(part, load) for part in predictions.PARTS} for load in gpu.LOADS}
    loads = []
    for load, parts in table.items():
        lines = [f"  {json.dumps(part)}: {json.dumps(found)}" for part, found in parts.items()]
        loads.append(f" {json.dumps(load)}: {{\n" + ",\n".join(lines) + "\n }")
    predictions.COUNTED.write_text("{\n" + ",\n".join(loads) + "\n}\n")


if __name__ == "__main__":
    main()
