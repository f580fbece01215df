"""The output object is used as transformers' is, and goes through torch.compile and pytrees."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bertfast.outputs import BaseModelOutputWithPooling, ModelOutput


class LossOutput(ModelOutput):
    loss: Tensor | None
    logits: Tensor


def make(cls=BaseModelOutputWithPooling):
    hidden = torch.arange(6.0).view(1, 2, 3)
    return cls(last_hidden_state=hidden, pooler_output=None, hidden_states=(hidden, hidden + 1))


def read(out):
    """What a user of the output can ask for, in plain values."""
    return {
        "keys": list(out.keys()),
        "iterated": list(out),
        "length": len(out),
        "first": out[0].tolist(),
        "last": [t.tolist() for t in out[-1]],
        "sliced": len(out[:1]),
        "by name": out["last_hidden_state"].tolist(),
        "absent": (out.pooler_output, out.attentions, out.past_key_values, out.get("attentions")),
        "contains": ("hidden_states" in out, "attentions" in out),
        "tuple": [type(v) for v in out.to_tuple()],
        "unpacked": sorted({**out}),
        "is dict": isinstance(out, dict),
    }


def test_used_as_transformers_output():
    theirs = pytest.importorskip("transformers.modeling_outputs")
    assert read(make()) == read(make(theirs.BaseModelOutputWithPoolingAndCrossAttentions))
    fields = theirs.BaseModelOutputWithPoolingAndCrossAttentions.__dataclass_fields__
    ours = BaseModelOutputWithPooling._fields
    assert [name for name in ours if name in fields] == list(fields)
    assert set(ours) - set(fields) < {"past_key_values", "cache"}  # one thing, renamed in 5.24


def test_one_storage_behind_attributes_and_keys():
    out = make()
    out.pooler_output = torch.ones(1, 3)
    assert out["pooler_output"] is out.pooler_output is out[2]
    out["pooler_output"] = None
    assert "pooler_output" not in out
    assert out.pooler_output is None
    with pytest.raises(KeyError, match="last_hidden_state"):
        out["hidden"] = torch.ones(1)
    with pytest.raises(KeyError):
        out["attentions"]
    with pytest.raises(AttributeError, match="'hidden'"):
        _ = out.hidden
    assert repr(LossOutput(logits=1)) == "LossOutput(logits=1)"


def test_built_from_pairs_copied_and_pickled():
    out = make()
    # torch.nn.DataParallel and accelerate rebuild outputs so.
    for same in (
        type(out)((name, value) for name, value in out.items()),
        type(out)(dict(out)),
        copy.copy(out),
        copy.deepcopy(out),
        pickle.loads(pickle.dumps(out)),
    ):
        assert type(same) is type(out)
        assert read(same) == read(out)


def test_pytree_node():
    out = LossOutput(loss=None, logits=torch.ones(2))
    doubled = pytree.tree_map(lambda t: t * 2, out)
    assert type(doubled) is LossOutput
    assert list(doubled) == ["logits"]
    assert doubled.logits.tolist() == [2.0, 2.0]
    leaves, _ = pytree.tree_flatten_with_path(out)
    assert leaves[0][0][0].key == "logits"


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        hidden = self.linear(x)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=None, hidden_states=(x, hidden)
        )


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        out = self.inner(x)
        loss = out[0].sum() + out["hidden_states"][1].sum() + out.last_hidden_state.sum()
        return LossOutput(loss=loss, logits=out.to_tuple()[0]), out


def test_through_compile_fullgraph():
    torch.manual_seed(0)
    model = Outer()
    x = torch.randn(2, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (got, inner), (want, _) = compiled(x), model(x)
    assert type(got) is LossOutput
    assert type(inner) is BaseModelOutputWithPooling
    assert list(inner) == ["last_hidden_state", "hidden_states"]
    torch.testing.assert_close(got.to_tuple(), want.to_tuple())
    got.loss.backward()
    assert model.inner.linear.weight.grad is not None
