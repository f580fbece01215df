"""Packing: indices, lengths, the way back, gradients, fixed capacity, and the operations that torch.compile sees."""

from __future__ import annotations

import pytest
import torch

from bertfast import ArgumentError
from bertfast.packing import first_rows, pack, pack_lengths, sequence_positions, take, unpack

MASK = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
INDICES, STARTS = [0, 1, 5, 7, 12, 13, 14, 15], [0, 2, 4, 4, 8]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32], ids=str)
def test_pack(dtype):
    packed = pack(MASK.to(dtype), 4, 4, "cpu")
    assert packed.indices.tolist() == INDICES
    assert packed.cu_seqlens.tolist() == STARTS
    assert (packed.indices.dtype, packed.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert (packed.max_seqlen, packed.batch, packed.length) == (4, 4, 4)
    strided = torch.stack([MASK, MASK], 2).to(dtype)[..., 0]
    assert pack(strided, 4, 4, "cpu").indices.equal(packed.indices)


def test_nothing_to_gather():
    for mask in (None, torch.ones(3, 5)):
        packed = pack(mask, 3, 5, "cpu")
        assert packed.indices is None
        assert packed.cu_seqlens.tolist() == [0, 5, 10, 15]
    packed = pack_lengths([3, 0, 2], "cpu")
    assert packed.indices is None
    assert packed.cu_seqlens.tolist() == [0, 3, 3, 5]
    assert (packed.max_seqlen, packed.batch, packed.length) == (3, 1, 5)
    assert sequence_positions(packed.cu_seqlens, 5).tolist() == [0, 1, 2, 0, 1]
    assert sequence_positions(pack_lengths([], "cpu").cu_seqlens, 0).tolist() == []


@pytest.mark.parametrize("capacity", [None, 8, 11])
def test_take_and_unpack(capacity):
    packed = pack(MASK, 4, 4, "cpu", capacity)
    values = torch.randn(4, 4, 3)
    rows = take(values, packed)
    assert rows[:8].equal(values.flatten(0, 1)[INDICES])
    assert (rows[8:] == 0).all()
    assert take(torch.arange(16).view(4, 4), packed)[:8].tolist() == INDICES
    assert unpack(rows + 0, packed).equal(values * MASK[..., None])
    assert unpack(rows + 1, packed).equal((values + 1) * MASK[..., None])
    assert packed.cu_seqlens.tolist() == STARTS


def test_capacity():
    with pytest.raises(ArgumentError, match="capacity: expected at least the 8 real tokens"):
        pack(MASK, 4, 4, "cpu", 7)
    with pytest.raises(ArgumentError, match="capacity"):
        pack(MASK, 4, 4, "cpu", -1)
    assert pack(None, 2, 3, "cpu", 6).indices.tolist() == list(range(6))
    mask = torch.ones(4, 4, device="meta")  # where reading a value on the host is an error
    packed = pack(mask, 4, 4, "meta", 8)
    assert unpack(take(torch.ones(4, 4, 3, device="meta"), packed), packed).shape == (4, 4, 3)
    assert pack(None, 4, 4, "meta").cu_seqlens.shape == (5,)
    with pytest.raises((RuntimeError, NotImplementedError)):
        pack(mask, 4, 4, "meta")


def test_first_rows():
    packed = pack(MASK, 4, 4, "cpu")
    x = torch.randn(8, 3)
    expected = torch.stack([x[0], x[2], torch.zeros(3), x[4]])
    assert first_rows(x, packed.cu_seqlens).equal(expected)
    empty = torch.zeros(3, dtype=torch.int32)
    assert first_rows(torch.ones(0, 3), empty).equal(torch.zeros(2, 3))


def test_gradients():
    packed = pack(MASK, 4, 4, "cpu")
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    values = torch.randn(4, 4, 3, dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpack(x, packed), (x,))
    assert torch.autograd.gradcheck(lambda x: first_rows(x, packed.cu_seqlens), (x,))
    assert torch.autograd.gradcheck(lambda v: take(v, packed), (values,))
    first_rows(empty, torch.zeros(3, dtype=torch.int32)).sum().backward()


def test_operations():
    x = torch.randn(8, 3, requires_grad=True)
    starts = torch.tensor(STARTS, dtype=torch.int32)
    ops = torch.ops.bertfast
    for operation, arguments in (
        (ops.pack, (MASK,)),
        (ops.unpack, (x, torch.tensor(INDICES), 16)),
        (ops.first_rows, (x, starts)),
        (ops.first_rows, (torch.ones(0, 3, requires_grad=True), torch.zeros(3, dtype=torch.int32))),
        (ops.first_rows_bwd, (torch.randn(4, 3), starts, 8)),
    ):
        torch.library.opcheck(operation.default, arguments)
    grad = torch.randn(4, 3)
    for function in (ops.first_rows, first_rows):
        (got,) = torch.autograd.grad(function(x, starts), x, grad)
        assert got[[0, 2, 4]].equal(grad[[0, 1, 3]])
        assert got.count_nonzero() == 9
