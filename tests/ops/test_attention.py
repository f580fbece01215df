"""attention: parity of every backend, gradients, mutations, the torch.library ops, bad arguments."""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import dispatch, ops
from bertfast.errors import ArgumentError

OPERATION = "attention"


def test_forward(check_forward, case, dtype, backend):
    check_forward(OPERATION, case, dtype, backend)


def test_backward(check_backward, case, dtype, pair):
    check_backward(OPERATION, case, dtype, pair)


def test_mutation_is_rejected(check_mutation, mutation):
    check_mutation(OPERATION, mutation)


def test_op(check_op, direction):
    check_op(OPERATION, direction)


def _starts(*starts):
    return torch.tensor(starts, dtype=torch.int32)


def _inputs():
    return harness.make_inputs(OPERATION, harness.cases(OPERATION)[1], torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(22, 3, 33)}, r"qkv: expected 4 dimensions, got shape \[22, 3, 33\]"),
        ({"qkv": torch.zeros(22, 2, 3, 11)}, r"qkv: expected shape \[T, 3, heads, head size\]"),
        (
            {"cu_seqlens": torch.tensor([0, 22])},
            r"cu_seqlens: expected torch.int32 \[B\+1\] on cpu, got torch.int64",
        ),
        ({"cu_seqlens": _starts()}, "cu_seqlens: expected starts"),
        ({"cu_seqlens": _starts(1, 22)}, "cu_seqlens: expected starts that begin at 0"),
        (
            {"cu_seqlens": _starts(0, 18, 17, 22)},
            "cu_seqlens: expected starts that begin at 0, never fall",
        ),
        ({"cu_seqlens": _starts(0, 23)}, r"end at no more than 22 \(the tokens\), got \[0, 23\]"),
        ({"max_seqlen": 16}, "max_seqlen: expected at least 17, the longest sequence, got 16"),
        ({"p": -0.1}, r"p: expected a probability in \[0, 1\]"),
        ({"p": 0.1}, "seed: expected"),
        *(
            ({"p": 0.1, "seed": torch.tensor([1]), "example_ids": ids}, f"example_ids: {message}")
            for ids, message in harness.WRONG_IDS
        ),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ArgumentError, match=message):
        ops.attention(**(_inputs() | change))


def test_rows_of_no_sequence_are_zero(backend):
    inputs = _inputs() | {"cu_seqlens": _starts(0, 5, 9)}
    _skip_where_refused(backend, inputs)
    with dispatch.use_backend(backend), torch.no_grad():
        out = ops.attention(**inputs)
        alone = ops.attention(**inputs | {"qkv": inputs["qkv"][:9]})
    assert torch.equal(out[:9], alone)
    assert (out[9:] == 0).all()


def test_scale_is_one_over_root_d_by_default(backend):
    inputs = _inputs()
    _skip_where_refused(backend, inputs)
    with dispatch.use_backend(backend), torch.no_grad():
        assert torch.equal(
            ops.attention(**inputs | {"scale": None}), ops.attention(**inputs | {"scale": 11**-0.5})
        )


def test_a_negative_scale_is_that_of_negative_queries(backend):
    inputs = _inputs() | {
        "scale": -12.0
    }  # logits so far apart that the largest one has to be found
    _skip_where_refused(backend, inputs)
    qkv = inputs["qkv"].clone()
    qkv[:, 0] *= -1
    with dispatch.use_backend(backend), torch.no_grad():
        out = ops.attention(**inputs)
        assert out.isfinite().all()
        assert torch.equal(out, ops.attention(**inputs | {"qkv": qkv, "scale": 12.0}))


def test_without_scale_all_keys_count_alike(backend):
    inputs = _inputs() | {"scale": 0.0}
    _skip_where_refused(backend, inputs)

    def run(name, dtype):
        with torch.no_grad(), dispatch.use_backend(name):
            return ops.attention(**inputs | {"qkv": inputs["qkv"].to(dtype)})

    exact, plain = run("reference", torch.float64), run("reference", torch.float32)
    harness.near("attention", run(backend, torch.float32), exact, plain)


def test_large_logits_stay_finite(backend):
    inputs = _inputs()
    _skip_where_refused(backend, inputs)
    with dispatch.use_backend(backend), torch.no_grad():
        out = ops.attention(**inputs | {"qkv": inputs["qkv"] * 1e4})
    assert out.isfinite().all()


def test_nan_of_any_payload_reaches_the_result(backend):
    inputs = _inputs()
    _skip_where_refused(backend, inputs)
    qkv = inputs["qkv"].clone()
    qkv[4, 1, 1].view(torch.int32).fill_(
        0x7FC00001
    )  # a key of one head; low bits set, unlike the usual NaN's
    with dispatch.use_backend(backend), torch.no_grad():
        out = ops.attention(**inputs | {"qkv": qkv}).unflatten(1, (3, -1))
    assert out[:17, 1].isnan().all()  # every query of that head in that sequence
    assert out.isnan().sum() == 17 * out.shape[2]


def _skip_where_refused(backend, inputs):
    reason = harness.refuses(OPERATION, backend, *inputs.values(), False)
    if reason is not None:
        pytest.skip(reason)
