"""Every size that a CUDA kernel refuses is refused by `supports` before; what it takes, up to the limit, is launched.

Limits are those of csrc/common/limits.h; nothing is executed, so no memory of such sizes is needed.
"""

from __future__ import annotations

import re

import pytest
import torch

from bertfast import dispatch, extension, ops
from bertfast.errors import UnsupportedError
from bertfast.ops._contract import CONTRACTS
from gpu_code import cuda_driver, nvcc

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())

# Which fields of an operation's struct are held to which limit.
LINEAR = {"rows": "size", "n": "size", "k": "size"}
CROSS_ENTROPY = {"labelled": "size", "vocabulary": "columns", "k": "columns"}
LIMITED = {
    "embedding": {"rows": "size", "n": "features"},
    "qkv_projection": LINEAR,
    "attention": {"tokens": "size", "heads": "heads", "head_size": "head_size"},
    "linear_gelu": LINEAR,
    "linear_layernorm": {**LINEAR, "n": "features"},
    "gelu_layernorm": {**LINEAR, "n": "features"},
    "masked_cross_entropy": CROSS_ENTROPY,
}
SITES = [
    (operation, direction, field, limit)
    for operation, fields in LIMITED.items()
    for direction in ("forward", "backward")
    for field, limit in fields.items()
]
_TYPES = {
    "float": 0.0,
    "Dropout": {"seed": 0, "example_ids": 0, "threshold": 0, "scale": 1.0},
    "EmbeddingTable": {"ids": 0, "order": 0, "dtable": 0, "skip": -1},
}


def _zeros(kind: str) -> object:
    inner = re.fullmatch(r"Three<(.*)>", kind)
    return [_zeros(inner[1])] * 3 if inner else _TYPES.get(kind, 0)


def _fields(operation: str, direction: str, sizes: dict[str, int]) -> dict[str, object]:
    """The fields of a kernel: zeros, but for the sizes."""
    kernel = f"{operation}_{'fwd' if direction == 'forward' else 'bwd'}"
    files = (f"{operation}/op.h", "common/kernel.h")
    text = "".join((cuda_driver.ROOT / "csrc" / name).read_text() for name in files)

    def listed(name: str) -> str:  # with the lists that it names
        (found,) = re.findall(rf"#define {name}\(FIELD\)((?:.*\\\n)*.*)", text)
        return re.sub(r"(BF_\w+)\(FIELD\)", lambda inner: listed(inner[1]), found)

    found = re.findall(r"FIELD\((.+?), (\w+)\)", listed(f"BF_{kernel.upper()}"))
    fields = {name: _zeros(kind) for kind, name in found}
    where = {
        "dtype": 0,
        "threads": 1,
        "gpu": {
            "stream": cuda_driver.STREAM,
            "workspace": 0,
            "tf32": False,
            "invariant": False,
            "cublaslt": False,
            "used": 0,
        },
    }
    return {**fields, **sizes, **where}


def _launch(operation: str, direction: str, sizes: dict[str, int]) -> None:
    kernel = f"{operation}_{'fwd' if direction == 'forward' else 'bwd'}"
    fields = _fields(operation, direction, sizes)
    if operation == "masked_cross_entropy":
        fields["count"] = 16  # an address, which nothing is read from
    getattr(extension.cuda, kernel)(fields)


def _refusal(operation: str, direction: str, sizes: dict[str, int]) -> str | None:
    """What `supports` says to a call with tensors of these sizes."""
    size = dict.fromkeys(("rows", "n", "k", "tokens", "heads", "head_size"), 8) | sizes
    rows, k = size.get("labelled", size["rows"]), size["k"]
    n = size.get("vocabulary", size["n"])
    shapes = {
        "qkv": (size["tokens"], 3, size["heads"], size["head_size"]),
        "position_ids": (rows,),
        "position": (8, n),
        "x": (rows, k),
        **dict.fromkeys(("weight", "wq", "wk", "wv"), (n, k)),
    }
    call_type = getattr(CONTRACTS[operation], direction)
    given = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    call = call_type(**{name: given.get(name) for name in call_type._fields})
    return dispatch._BACKENDS[operation]["cuda"].supports(call)


@pytest.fixture(autouse=True)
def device():
    with cuda_driver.emulated(execute=False) as device:
        yield device


@pytest.mark.parametrize(("operation", "direction", "field", "limit"), SITES)
def test_at_the_limit_and_beyond(device, operation, direction, field, limit):
    least, most = extension.cuda.limits[limit]
    small = dict.fromkeys(LIMITED[operation], 8)
    inside, outside = {**small, field: most}, {**small, field: most + 1}
    assert _refusal(operation, direction, inside) is None
    _launch(operation, direction, inside)
    reason = f"{limit} {most + 1}; the cuda backend computes {least} to {most}"
    assert _refusal(operation, direction, outside) == reason
    with pytest.raises(ValueError, match=f"{limit}: expected {least} to {most}, got {most + 1}"):
        _launch(operation, direction, outside)


@pytest.mark.parametrize(
    ("operation", "direction", "field", "limit"), [s for s in SITES if s[3] != "size"]
)
def test_nothing_is_refused(device, operation, direction, field, limit):
    sizes = {**dict.fromkeys(LIMITED[operation], 8), field: 0}
    assert _refusal(operation, direction, sizes).startswith(f"{limit} 0; the cuda backend")
    with pytest.raises(ValueError, match=f"{limit}: expected 1 to"):
        _launch(operation, direction, sizes)


def test_every_check_is_known():
    """No kernel checks a size in another way."""
    found, others = set(), []
    for path in (cuda_driver.ROOT / "csrc").rglob("*.cu*"):
        text = path.read_text()
        folder = path.parent.name
        limits = re.findall(r"BF_LIMIT\(k(\w+), (?:p\.)?(\w+)\)", text)
        found |= {
            (folder, field, re.sub(r"(?<!^)([A-Z])", r"_\1", k).lower()) for k, field in limits
        }
        assert len(limits) == text.count("BF_LIMIT(")
        others += re.findall(r"BF_CHECK\((.*?),", text)
    assert sorted(others) == ["!p.gpu.used"] * 2 + ["p.count"]
    expected = {
        (operation, field, limit)
        for operation, fields in LIMITED.items()
        if fields is not LINEAR and not operation.endswith("_layernorm")
        for field, limit in fields.items()
    }
    shared = {
        ("product", field, limit) for field, limit in LINEAR.items()
    }  # of what ends in a product
    assert found == expected | shared | {("product", "n", "features")}


def test_rows_too_wide_are_refused_and_not_an_error_of_the_kernel():
    width = extension.cuda.limits["features"][1] + 1
    x, parameter = torch.randn(2, 8), torch.ones(width)
    weight, residual = torch.randn(width, 8), torch.randn(2, width)
    reason = f"features {width}; the cuda backend computes 1 to {width - 1}"
    with dispatch.use_backend("cuda"):
        with pytest.raises(UnsupportedError, match=reason):
            ops.linear_layernorm(x, weight, parameter, residual, parameter, parameter, eps=1e-12)
        with pytest.raises(UnsupportedError, match=reason):
            ops.gelu_layernorm(x, weight, parameter, parameter, parameter, eps=1e-12)
