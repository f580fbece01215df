"""Packed batches: tokens, lengths, the way back, gradients, and the operations that torch.compile sees."""

from __future__ import annotations

import pytest
import torch

import bertfast.core.heads  # noqa: F401  registers bertfast::labelled
from bertfast import extension
from bertfast.core.batch import (
    first_rows,
    pack,
    pack_rows,
    row_a_sequence,
    sequence_positions,
    take,
    unpack,
)
from harness import seeds

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


def test_rows_of_ids():
    batch = pack_rows([[5, 6, 7], [], [8, 9]], "cpu")
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.token_type_ids.tolist() == [0] * 5
    assert batch.cu_seqlens.tolist() == [0, 3, 3, 5]
    assert (batch.max_seqlen, batch.batch, batch.length, batch.indices) == (3, 1, 5, None)
    assert sequence_positions(batch.cu_seqlens, 5).equal(batch.position_ids)
    laid_out = unpack(torch.ones(5, 1), row_a_sequence(batch)).squeeze(2)
    assert laid_out.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert pack_rows([], "cpu").tokens == 0


def test_pack_rows_for_a_gpu(monkeypatch):
    """One array goes over, from pinned memory, and nobody waits for it. The GPU is played by the CPU."""
    rows, sent = [[5, 6, 7], [], [8, 9]], []
    expected = pack_rows(rows, "cpu")

    def pin(tensor):
        sent.append("pinned")
        return tensor

    def to(tensor, device, non_blocking=False):
        sent.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch = pack_rows(rows, "cuda")
    assert sent == ["pinned", ("cuda", True)]
    for part, other in zip(batch, expected, strict=True):
        assert torch.equal(part, other) if isinstance(part, torch.Tensor) else part == other
    assert batch.position_ids.data_ptr() % 16 == batch.input_ids.data_ptr() % 16 == 0


def test_tokens_positions_and_segments():
    ids = torch.arange(16).view(4, 4)
    batch = pack(MASK, 4, 4, "cpu", input_ids=ids.int(), token_type_ids=ids[:1])
    assert (batch.input_ids.tolist(), batch.input_ids.dtype) == (INDICES, torch.int64)
    assert batch.position_ids.tolist() == [i % 4 for i in INDICES]  # columns, also on the left
    assert batch.token_type_ids.tolist() == [i % 4 for i in INDICES]
    assert batch.tokens == 8
    given = pack(MASK, 4, 4, "cpu", inputs_embeds=torch.ones(4, 4, 2), position_ids=ids)
    assert (given.input_ids, given.inputs_embeds.shape) == (None, (8, 2))
    assert given.position_ids.tolist() == INDICES
    assert given.token_type_ids.tolist() == [0] * 8


def test_take_and_unpack():
    packed = pack(MASK, 4, 4, "cpu")
    values = torch.randn(4, 4, 3)
    rows = take(values, packed)
    assert rows.equal(values.flatten(0, 1)[INDICES])
    assert unpack(rows + 0, packed).equal(values * MASK[..., None])
    assert unpack(rows + 1, packed).equal((values + 1) * MASK[..., None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_unpack_many_rows(dtype, threads):
    torch.set_num_threads(threads)
    mask = torch.rand(6, 500, generator=seeds.generator(1)) < 0.6
    packed, other = pack(mask, 6, 500, "cpu"), pack(mask[:, :1] & False, 6, 1, "cpu")
    rows = (torch.randn(packed.tokens, 77, generator=seeds.generator(2)) + 1).to(dtype)
    for x in (rows, rows.repeat(1, 2)[:, ::2]):  # of any strides
        expected = x.new_zeros(3000, 77)
        expected[mask.flatten()] = x
        assert unpack(x, packed).equal(expected.view(6, 500, 77))
    assert unpack(rows[:0], other).equal(torch.zeros(6, 1, 77, dtype=dtype))
    assert unpack(rows[:, :0], packed).shape == (6, 500, 0)


@pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))
def test_a_place_outside_is_refused():
    for place in (-1, 3):
        with pytest.raises(ValueError, match="a place is no row of the output"):
            extension.scatter_rows(torch.ones(1, 2), torch.tensor([place]), 3)


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
        (ops.labelled, (torch.tensor([3, -100, 5]),)),
    ):
        torch.library.opcheck(operation.default, arguments)
    grad = torch.randn(4, 3)
    for function in (ops.first_rows, first_rows):
        (got,) = torch.autograd.grad(function(x, starts), x, grad)
        assert got[[0, 2, 4]].equal(grad[[0, 1, 3]])
        assert got.count_nonzero() == 9
