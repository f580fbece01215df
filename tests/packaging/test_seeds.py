"""What tests may not do: have a tolerance of their own, draw numbers where a module is imported, or set a seed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
COMPARISONS = {"assert_close", "allclose", "isclose", "assert_allclose", "approx"}
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "rand_like", "randn_like", "random"}
SEEDS = {"manual_seed", "default_rng"}  # seeds.generator, seeds.restart and seeds.seed instead
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def calls(node: ast.AST, inside_functions: bool = True) -> Iterator[tuple[str, ast.Call]]:
    """(the function's last name, the call) of all calls, or of those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS) and not inside_functions:
            continue
        if isinstance(child, ast.Call):
            yield getattr(child.func, "attr", getattr(child.func, "id", "")), child
        yield from calls(child, inside_functions)


def keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {word.arg: word.value for word in call.keywords if word.arg}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_file(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for name, call in calls(tree):
        place = f"{file.relative_to(TESTS)}:{call.lineno}"
        if name in COMPARISONS:
            given = [getattr(keywords(call).get(key), "value", None) for key in ("rtol", "atol")]
            assert given == [0, 0], f"{place}: {name}; harness.near applies the accuracy check"
        if name in SEEDS and file.name not in ("seeds.py", "conftest.py"):
            argument = ast.unparse(call.args[0]) if call.args else ""
            assert "seed" in argument, f"{place}: {name}({argument}) does not follow --seed"
    at_import = list(calls(tree, inside_functions=False))
    if "restart" in [name for name, _ in at_import]:  # a program of its own, which sets its seed
        return
    for name, call in at_import:
        drawn = name in DRAWS and "generator" not in keywords(call)
        assert not drawn, f"{file.relative_to(TESTS)}:{call.lineno}: {name} at import; see seeds.py"
