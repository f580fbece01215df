"""The seed of a run (`--seed`), for what is not drawn in a test: at a module's import, in what several tests share, in
another process; and where a test starts from the same numbers twice.

Inside a test torch's, numpy's and Python's generators start from the seed (`_seeded` in tests/conftest.py).
"""

from __future__ import annotations

import argparse
import os
import sys

import torch

VARIABLE = "BERTFAST_TEST_SEED"  # processes that a test starts read it too
PLAIN = 20


def _take_from_command_line() -> None:
    """The package makes its cases when it is imported, which is before pytest reads its options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seed")
    given = parser.parse_known_args(sys.argv[1:])[0].seed
    if given is not None:
        os.environ[VARIABLE] = given


_take_from_command_line()


def seed(number: int = 0) -> int:
    """The run's seed; with a number, another one that follows from both."""
    return int(os.environ.get(VARIABLE, PLAIN)) + 1000 * number


def generator(number: int = 0) -> torch.Generator:
    """A generator that nothing else draws from."""
    return torch.Generator().manual_seed(seed(number))


def restart(number: int = 0) -> None:
    """torch's generator starts anew, each time with the same numbers."""
    torch.manual_seed(seed(number))


def token_ids(*shape: int, below: int = 99) -> torch.Tensor:
    """Indices of 1 to below - 1 for a module's constants: the same whatever was imported before."""
    return torch.randint(1, below, shape, generator=generator())
