"""How pytest-xdist shares the tests among its processes."""

from __future__ import annotations

import pytest


def test_what_shares_a_module_runs_in_one_process(request):
    """conftest.py names the groups, in time for pytest-xdist."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("not run by pytest-xdist: there is one process")
    assert request.node.nodeid.endswith("@test_suite"), "run with --dist loadgroup"
