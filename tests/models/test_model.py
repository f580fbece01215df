"""BertModel against transformers' BertModel: every mask, layout, dtype and option."""

from __future__ import annotations

import copy

import pytest
import torch

import bertfast
from bertfast import BertModel
from harness import near, seeds
from models.ecosystem import in_float64, real_tokens

B, S = 4, 17


def masks():
    """Name -> [B,S] int64: every kind of padding; each row has a real token."""
    right = torch.ones(B, S, dtype=torch.int64)
    right[0, 9:], right[2, 1:] = 0, 0
    holes = right.clone()
    holes[1, 3:6], holes[3, ::2] = 0, 0
    return {"right": right, "left": right.flip(1), "holes": holes, "ones": torch.ones_like(right)}


def batch(segments=True):
    ids = torch.randint(0, 99, (B, S))
    return (
        {"input_ids": ids, "token_type_ids": torch.randint(0, 3, (B, S))}
        if segments
        else {"input_ids": ids}
    )


def same(ours, theirs, inputs, real=None, **options):
    """All outputs of our model at real tokens, by the accuracy check; states of padding are zeros. Returns ours."""
    got = ours(**inputs, **options)
    real = torch.ones(B, S).bool() if real is None else real
    assert (got.last_hidden_state[~real] == 0).all()
    exact = in_float64(theirs)(**in_float64(inputs), **options)
    if next(theirs.parameters()).dtype == torch.float64:
        theirs = copy.deepcopy(theirs).float()
    found = [real_tokens(o, real) for o in (got, exact, theirs(**inputs, **options))]
    if "attention_mask" in inputs:  # elsewhere transformers pools a padded position
        rows = inputs["attention_mask"][:, 0].bool()
        for output in found:
            output["pooler_output"] = output["pooler_output"][rows]
    near("output", *found)
    return got


@pytest.mark.parametrize("kind", ["bool", "int64", "float32"])
@pytest.mark.parametrize("padding", ["right", "left", "holes", "ones"])
@torch.no_grad()
def test_masks(pair, padding, kind):
    theirs, ours = pair()
    inputs, mask = batch(), masks()[padding]
    inputs["attention_mask"] = mask.to(getattr(torch, kind))
    got = same(ours, theirs, inputs, mask.bool(), output_hidden_states=True)
    assert got.hidden_states[-1].equal(got.last_hidden_state)
    first = got.last_hidden_state[torch.arange(B), mask.argmax(1)]
    exact, eager = (
        torch.tanh(pooler.dense(first.to(pooler.dense.weight.dtype)))
        for pooler in (in_float64(ours.pooler), ours.pooler)
    )
    near("pooler_output", got.pooler_output, exact, eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["reference", "auto"])
@torch.no_grad()
def test_dtypes(pair, dtype, backend):
    theirs, ours = pair(dtype)
    inputs, mask = batch(), masks()["right"]
    with bertfast.use_backend(backend):
        same(ours, theirs, {**inputs, "attention_mask": mask}, mask.bool())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_is_no_worse_than_transformers(pair, dtype):
    theirs, ours = (model.to(dtype) for model in pair())
    mask = masks()["right"]
    got = same(ours, theirs, {**batch(), "attention_mask": mask}, mask.bool())
    assert got[0].dtype == dtype


@pytest.mark.parametrize("act", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
@torch.no_grad()
def test_activations(pair, act):
    theirs, ours = pair(hidden_act=act)
    same(ours, theirs, batch())


@torch.no_grad()
def test_positions_and_embeddings(pair):
    theirs, ours = pair()
    positions = torch.randint(0, 40, (B, S))
    embeds = torch.randn(B, S, 48)
    for inputs in (
        {"inputs_embeds": embeds, "position_ids": positions},
        {"inputs_embeds": embeds, "attention_mask": masks()["left"]},
        {**batch(), "position_ids": positions[:1], "attention_mask": masks()["holes"]},
        {"input_ids": torch.randint(0, 99, (B, S), dtype=torch.int32)},
    ):
        same(ours, theirs, inputs, inputs.get("attention_mask", torch.ones(B, S)).bool())


@torch.no_grad()
def test_rows_of_padding_are_zeros_and_change_nothing(ours):
    model, inputs, mask = ours(), batch(), masks()["right"]
    want = model(**inputs, attention_mask=mask)
    more = {name: torch.cat([value, value[:2]]) for name, value in inputs.items()}
    got = model(**more, attention_mask=torch.cat([mask, torch.zeros_like(mask[:2])]))
    assert got[0][:B].equal(want[0])
    assert got[1][:B].equal(want[1])
    assert (got[0][B:] == 0).all()
    assert (got[1][B:] == 0).all()
    nothing = model(**inputs, attention_mask=torch.zeros_like(mask))
    assert all((value == 0).all() for value in nothing.to_tuple())


@torch.no_grad()
def test_packed_call(ours):
    model, inputs, mask = ours(), batch(), masks()["right"]
    want = model(**inputs, attention_mask=mask, output_hidden_states=True)
    real = mask.bool()
    packed = {name: value[real][None] for name, value in inputs.items()}
    lengths = torch.cat([mask.sum(1), torch.zeros(1, dtype=torch.int64)])  # and an empty sequence
    starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    options = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts.clone(), "max_length_q": S}
    got = model(**packed, **options, max_length_k=S, output_hidden_states=True, seq_idx=real)
    assert got[0].shape == (1, int(mask.sum()), 48)
    for a, b in zip((got[0], *got.hidden_states), (want[0], *want.hidden_states), strict=True):
        assert a[0].equal(b[real])
    assert got[1][:B].equal(want[1])
    assert (got[1][B] == 0).all()
    positions = torch.arange(S).expand(B, S)[real][None]
    again = model(**packed, cu_seq_lens_q=starts.long(), position_ids=positions)
    assert again[0].equal(got[0])


@torch.no_grad()
def test_outputs(ours):
    model, inputs = ours(), batch()
    output = model(**inputs, output_hidden_states=True)
    assert list(output) == ["last_hidden_state", "pooler_output", "hidden_states"]
    assert len(output.hidden_states) == 3
    plain, pair_of = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(pair_of, tuple)
    assert pair_of[0].equal(plain[0])
    assert pair_of[1].equal(plain["pooler_output"])
    model.config.output_hidden_states, model.config.return_dict = True, False
    assert len(model(**inputs)) == 3
    unpooled = BertModel(model.config, add_pooling_layer=False).eval()
    assert unpooled(**inputs, return_dict=True).pooler_output is None


@torch.no_grad()
def test_small_batches(ours):
    model = ours()
    empty = model(torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 5))
    assert empty[0].shape == (0, 5, 48)
    assert empty[1].shape == (0, 48)
    ids = torch.tensor([[7]])
    assert model(ids)[0].shape == (1, 1, 48)
    unused = model(torch.tensor([[7, 98]]), torch.tensor([[1, 0]]))
    assert unused[0][:, :1].equal(model(ids)[0])
    whole = model(torch.randint(0, 99, (1, 40)))
    assert whole[0].isfinite().all()


def test_dropout_is_the_same_in_every_layout(ours):
    model = ours().train()
    inputs, mask = batch(), masks()["right"]
    real = mask.bool()

    def run(**arguments):
        seeds.restart(3)
        return model(**arguments)[0]

    padded = run(**inputs, attention_mask=mask)
    assert run(**inputs, attention_mask=mask).equal(padded)
    assert not model(**inputs, attention_mask=mask)[0].equal(padded)
    wider = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in inputs.items()}
    got = run(**wider, attention_mask=torch.nn.functional.pad(mask, (0, 4)))
    assert got[:, :S].equal(padded)
    starts = torch.nn.functional.pad(mask.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
    packed = {name: value[real][None] for name, value in inputs.items()}
    assert run(**packed, cu_seq_lens_q=starts)[0].equal(padded[real])
    seeds.restart(3)
    exact = in_float64(model)(**inputs, attention_mask=mask)[0]
    with bertfast.use_backend("reference"):
        near("dropout", padded, exact, run(**inputs, attention_mask=mask))
    model.eval()
    plain = model(**inputs, attention_mask=mask)[0]
    assert (plain - padded).abs().max() > 0.1  # dropout is no rounding
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    assert run(**inputs, attention_mask=mask).equal(plain)


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_autocast(ours, act):
    """Whatever autocast makes of the products that torch computes, operations get one dtype, and results hold."""
    model = ours(hidden_act=act).train()
    model.encoder.layer[0].attention.self.query.register_forward_hook(lambda *arguments: None)
    model.embeddings.LayerNorm.register_forward_hook(lambda *arguments: None)
    inputs = batch()
    seeds.restart(3)
    exact = in_float64(model)(**inputs)[0]
    found = []
    for backend in ("auto", "reference"):
        seeds.restart(3)
        with torch.autocast("cpu", torch.bfloat16), bertfast.use_backend(backend):
            found.append(model(**inputs))
    got, eager = found
    near("states", got[0], exact, eager[0], rounded=torch.bfloat16)
    (got[0].sum() + got[1].float().sum()).backward()


SENTENCES = [
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog, and nobody in the village thinks that odd.",
    "Ok",
    "Der schnelle braune Fuchs; 敏捷的棕毛狐狸。",
]


@torch.no_grad()
def test_minilm(minilm):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (extra: test)"
    )
    tokens = transformers.AutoTokenizer.from_pretrained(minilm)(
        SENTENCES, padding=True, return_tensors="pt"
    )
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    ours = BertModel.from_pretrained(minilm)
    for dtype in (torch.float32, torch.float64):
        same(ours.to(dtype), theirs.to(dtype), tokens, tokens["attention_mask"].bool())
