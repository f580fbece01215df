"""Dropout's bits: the published test vectors, an independent generator, counters, rates, and seeds."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch

import harness
from bertfast import dispatch, ops
from bertfast.ops import _philox
from bertfast.ops._seed import draw_seed

MASK = 0xFFFFFFFF


def philox_in_python(counter, key):
    """Philox-4x32-10 on Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK, (a >> 32) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def signed(low, high):
    return torch.tensor([((high << 32 | low) ^ (1 << 63)) - (1 << 63)])


@pytest.mark.parametrize(
    ("counter", "key", "words"),  # the known answers of the authors' Random123 library
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK,) * 4, (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, words):
    assert philox_in_python(counter, key) == list(words)
    got = _philox.philox(tuple(torch.tensor([c]) for c in counter), signed(*key))
    assert [word.item() for word in got] == list(words)


def expected_keep(seed, p, i, j, head, row):
    words = philox_in_python((i // 8, j, head, row), (seed & MASK, seed >> 32 & MASK))
    word = words[i % 8 // 2]
    return (word >> 16 if i % 2 else word & 0xFFFF) >= round(p * 65536)


@pytest.mark.parametrize("seed", [0, 5, -1, 0x0123456789ABCDEF, -(2**63)])
@pytest.mark.parametrize("ids", [None, (2**31 + 5, 1, -(2**40) - 7)])
def test_hidden_mask_is_the_definition(seed, ids):
    starts = [0, 3, 3, 8]
    cu_seqlens = torch.tensor(starts, dtype=torch.int32)
    given = None if ids is None else torch.tensor(ids)
    keep = _philox.hidden_keep(torch.tensor([seed]), 0.5, cu_seqlens, 8, 11, given)
    rows = [0, 0, 0, 2, 2, 2, 2, 2]
    for token, feature in itertools.product(range(8), range(11)):
        position, row = token - starts[rows[token]], rows[token]
        row = row if ids is None else ids[row] & MASK
        assert keep[token, feature] == expected_keep(seed, 0.5, feature, position, 0, row)


@pytest.mark.parametrize(("ids", "row"), [(None, 5), ([0] * 5 + [2**33 + 2**31 + 9], 2**31 + 9)])
def test_attention_mask_is_the_definition(ids, row):
    given = None if ids is None else torch.tensor(ids)
    keep = _philox.attention_keep(torch.tensor([77]), 0.3, 5, 2, 9, given)
    assert keep.shape == (2, 9, 9)
    for head, query, key in itertools.product(range(2), range(9), range(9)):
        assert keep[head, query, key] == expected_keep(77, 0.3, key, query, head, row)


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.37, 0.5, 0.9, 1.0])
def test_rate_and_scale(p):
    n = 1 << 18
    keep = _philox.hidden_keep(
        torch.tensor([9]), p, torch.tensor([0, 512], dtype=torch.int32), 512, 512
    )
    share = 1 - round(p * 65536) / 65536
    deviation = (share * (1 - share) / n) ** 0.5
    assert abs(keep.double().mean().item() - share) <= 5 * deviation
    assert _philox.keep_scale(p) == (1 / share if share else 0)
    for lag in (1, 8, 512):  # neighbours, the next call, the next token
        flat = keep.flatten().double() - share
        assert abs((flat[lag:] * flat[:-lag]).mean().item()) <= 5 * deviation**2 * n**0.5 + 1e-12


def test_masks_differ_between_seeds_rows_and_heads():
    keep = _philox.attention_keep(torch.tensor([1]), 0.5, 0, 2, 64)
    others = [
        _philox.attention_keep(torch.tensor([s]), 0.5, row, 2, 64)
        for s, row in ((2, 0), (1 << 32 | 1, 0), (1, 1))
    ]
    for other in (*others, keep.flip(0), keep.transpose(1, 2)):
        assert 0.4 < (keep == other).double().mean() < 0.6  # fair coins of 8,192: 18 deviations


def _layer(x, cu_seqlens, seed, residual):
    weight, ones, zeros = torch.eye(16), torch.ones(16), torch.zeros(16)
    out = ops.linear_layernorm(
        x, weight, zeros, residual, ones, zeros, eps=1e-5, p=0.3, seed=seed, cu_seqlens=cu_seqlens
    )
    qkv = torch.stack([out, out.flip(1), out * 2], dim=1).unflatten(2, (2, 8))
    return ops.attention(qkv, cu_seqlens, 9, p=0.3, seed=seed)


def test_mask_is_the_same_with_other_layouts(backend):
    """Packed, with all-padding rows added, and each sequence packed among others: the same numbers."""
    x, residual, seed = (
        torch.randn(11, 16),
        torch.randn(11, 16),
        torch.tensor([1234567890123456789]),
    )
    with dispatch.use_backend(backend), torch.no_grad():
        packed = _layer(x, torch.tensor([0, 7, 11], dtype=torch.int32), seed, residual)
        added = _layer(x, torch.tensor([0, 7, 11, 11, 11], dtype=torch.int32), seed, residual)
        first = _layer(x[:7], torch.tensor([0, 7], dtype=torch.int32), seed, residual[:7])
    assert torch.equal(packed, added)
    assert torch.equal(packed[:7], first)


@pytest.mark.parametrize("operation", ["embedding", "attention", "linear_layernorm"])
def test_ids_that_are_indices_change_no_bit(backend, operation):
    """Result and gradients, also where tokens lie behind the last sequence."""
    case = harness.Case("few", (5, 0, 4), 16, 16, heads=2, p=0.3)
    function = harness.public(operation)
    for starts in ([0, 5, 5, 9], [0, 5, 5]):
        found = []
        for ids in (None, torch.arange(len(starts) - 1)):
            given = {"cu_seqlens": torch.tensor(starts, dtype=torch.int32), "example_ids": ids}
            with dispatch.use_backend(backend):
                found.append(
                    harness.differentiate(
                        operation,
                        case,
                        torch.float32,
                        lambda given=given, **x: function(**x | given),
                    )
                )
        assert not harness.other_bits(*found)


LENGTHS, STARTS = (20, 0, 9), torch.tensor([0, 20, 20, 29], dtype=torch.int32)
SEED, P = torch.tensor([-1234567890123456789]), 0.3
IDS = [None, torch.tensor([2**31 + 5, 1, -(2**40) - 7])]


@pytest.mark.parametrize("ids", IDS)
def test_what_is_kept_of_hidden_states(backend, ids):
    """Ones go through dropout: what is not 0 behind it was kept, bit for bit the reference's mask."""
    features = 40
    keep = _philox.hidden_keep(SEED, P, STARTS, sum(LENGTHS), features, ids)
    zeros, ones, x = torch.zeros(features), torch.ones(features), torch.zeros(sum(LENGTHS), 8)
    residual, weight = torch.zeros(sum(LENGTHS), features), torch.zeros(features, 8)
    forward = torch.ops.bertfast.linear_layernorm_fwd.default
    rows = torch.zeros(sum(LENGTHS), dtype=torch.int64)
    with dispatch.use_backend(backend):
        _, z, *_ = forward(x, weight, ones, residual, ones, zeros, 1e-3, P, SEED, STARTS, ids, True)
        table = torch.randn(2, features)
        out = ops.embedding(
            rows, table, None, rows, table, rows, table, zeros, ones, eps=1e-3, p=P, seed=SEED, cu_seqlens=STARTS,
            example_ids=ids,
        )  # fmt: skip
    assert torch.equal(z != 0, keep)
    assert torch.equal(out != 0, keep)


@pytest.mark.parametrize("ids", IDS)
def test_what_is_kept_of_attention(backend, ids):
    """Equal logits, and each key's value a feature of its own: what is not 0 was kept."""
    heads, size = 2, 32
    qkv = torch.zeros(sum(LENGTHS), 3, heads, size)
    for start, length in zip(STARTS.tolist(), LENGTHS, strict=False):
        qkv[start : start + length, 2] = torch.eye(length, size)[:, None]
    with dispatch.use_backend(backend), torch.no_grad():
        out = ops.attention(qkv, STARTS, max(LENGTHS), p=P, seed=SEED, example_ids=ids)
    out = out.unflatten(1, (heads, size))
    for row, (start, length) in enumerate(zip(STARTS.tolist(), LENGTHS, strict=False)):
        keep = _philox.attention_keep(SEED, P, row, heads, length, ids)
        found = out[start : start + length, :, :length].transpose(0, 1)
        assert torch.equal(found != 0, keep)


@pytest.fixture(params=("cpu", "cuda", "triton", "reference"))
def backend(request):
    qkv, starts = torch.zeros(1, 3, 1, 8), torch.tensor([0, 1], dtype=torch.int32)
    given = (qkv, starts, 1, 1.0, 0.1, torch.tensor([1]), None, False)
    reason = harness.refuses("attention", request.param, *given)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def test_draw_seed_follows_torch_generator():
    harness.seeds.restart(3)
    first = [draw_seed("cpu") for _ in range(3)]
    harness.seeds.restart(3)
    again = [draw_seed(torch.device("cpu")) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({seed.item() for seed in first}) == 3
    assert first[0].dtype is torch.int64
    assert first[0].shape == (1,)
    harness.seeds.restart(3)
    compiled = torch.compile(
        lambda: (draw_seed("cpu"), draw_seed("cpu")),
        fullgraph=True,
        backend="aot_eager",
    )
    assert [seed.item() for seed in compiled()] == [seed.item() for seed in first[:2]]


def test_seed_op():
    seed = torch.zeros(1, dtype=torch.int64)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.bertfast.fill_seed_.default, (seed,), test_utils=checks)


def test_seeds_use_all_bits():
    harness.seeds.restart()
    seeds = numpy.array([draw_seed("cpu").item() for _ in range(200)]).view(numpy.uint64)
    assert int(numpy.bitwise_or.reduce(seeds)) == 2**64 - 1
    assert int(numpy.bitwise_and.reduce(seeds)) == 0
