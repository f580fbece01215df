"""A kernel's fields go over by name: what is missing, unknown or ill-typed is refused with its name."""

import pytest

from bertfast import extension

pytestmark = pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))

POINTERS = ("x", "weight", "bias", "residual", "ln_weight", "ln_bias", "out", "z", "mean", "rstd")
FIELDS = {
    **dict.fromkeys((*POINTERS, "cu_seqlens", "sequences", "rows", "ln_dtype"), 0),
    "weight_dtype": 0,
    **dict.fromkeys(("n", "k", "x_stride", "weight_stride", "residual_stride"), 8),
    "eps": 1e-12,
    "dtype": 0,
    "threads": 1,
    "gpu": None,
    "dropout": {"seed": 0, "example_ids": 0, "threshold": 0, "scale": 1.0},
}


def run(**changed) -> None:
    fields = {**FIELDS, **changed}
    extension.cpu.linear_layernorm_fwd({k: v for k, v in fields.items() if v is not ...})


def test_whole():
    run()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"residual": ...}, "linear_layernorm_fwd.residual: missing"),
        ({"weights": 0}, r"linear_layernorm_fwd: no fields \['weights'\]"),
        ({"x": "x"}, "linear_layernorm_fwd.x: expected an integer that fits, got 'x'"),
        ({"x": -1}, "linear_layernorm_fwd.x: expected an integer that fits, got -1"),
        ({"rows": 2.0}, "linear_layernorm_fwd.rows: expected an integer that fits, got 2.0"),
        ({"rows": True}, "linear_layernorm_fwd.rows: expected an integer that fits, got True"),
        ({"rows": 2**63}, "linear_layernorm_fwd.rows: expected an integer that fits, got 9"),
        ({"threads": 2**31}, "linear_layernorm_fwd.threads: expected an integer that fits"),
        ({"eps": "small"}, "linear_layernorm_fwd.eps: expected a number"),
        ({"dtype": 3}, r"linear_layernorm_fwd.dtype: expected 0 \(float32\), 1 \(bfloat16\) or 2"),
        ({"ln_dtype": 1}, "linear_layernorm_fwd.ln_dtype: expected the product's dtype or float32"),
        ({"dropout": 0}, "linear_layernorm_fwd.dropout: expected a dict of fields"),
        ({"dropout": {"seed": 0}}, "linear_layernorm_fwd.dropout.example_ids: missing"),
        ({"gpu": {"stream": 0, "workspace": 0, "tf32": 1}}, "fwd.gpu.tf32: expected a bool"),
    ],
)
def test_what_is_wrong_is_named(changed, message):
    with pytest.raises(TypeError, match=message):
        run(**changed)


@pytest.mark.parametrize("weight", [0, [0, 0], (0, 0, 0), [0, None, 0]])
def test_a_list_of_three(weight):
    fields = {k: FIELDS[k] for k in ("x", "out", "rows", "n", "k", "x_stride")}
    fields |= {k: FIELDS[k] for k in ("weight_dtype", "dtype", "threads", "gpu")}
    fields |= {"bias": [0, 0, 0], "weight_stride": [8, 8, 8]}
    extension.cpu.qkv_projection_fwd({**fields, "weight": [0, 0, 0]})
    with pytest.raises(TypeError, match="qkv_projection_fwd.weight: expected"):
        extension.cpu.qkv_projection_fwd({**fields, "weight": weight})
