"""What each shipped Triton kernel may cost. A budget changes by editing this table, with the reason.

A kernel without a line of its own has the default: one resident warp, nine tenths of the bytes in 16-byte accesses.
Spills and stack are zero for all of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """Fields:
    warps: that must fit on a multiprocessor at once.
    wide: of the bytes that one pass over the kernel's text moves, the least share in accesses of 16 bytes a lane. The
        text has each access once, however often it runs; what is moved when it runs is gated in test_bytes.py.
    why: the reason where it is not the default.
    """

    warps: int = 1
    wide: float = 0.9
    why: str = ""


DEFAULT = Budget()
_WORDS = "beside the rows a few words are read once: "

# (kernel's name, or the start of it, and of the census's case) -> Budget; the longest that fits counts.
BUDGETS: dict[tuple[str, str], Budget] = {
    ("_attention_fwd", "head32"): Budget(8, 0.88, _WORDS + "cu_seqlens, seed; lse is written"),
    ("_attention_fwd", "head32-tiny-ids"): Budget(8, 0.86, _WORDS + "the example's id, too"),
    ("_attention_fwd", "head64"): Budget(8, 0.9, "eight warps hide the exponentials' latency"),
    ("_attention_bwd", ""): Budget(1, 0.84, _WORDS + "cu_seqlens, seed, lse and delta"),
    ("_attention_bwd_keys", "head32-tiny"): Budget(
        1, 0.72, "short tiles: the same words weigh more"
    ),
    ("_attention_bwd_keys", "head32-tiny-ids"): Budget(1, 0.7, "and the example's id"),
    ("_layernorm_fwd", ""): Budget(1, 0.79, _WORDS + "cu_seqlens, seed, statistics"),
    ("_layernorm_bwd", ""): Budget(1, 0.77, _WORDS + "cu_seqlens, seed, statistics"),
    ("_layernorm_fwd", "minilm"): Budget(
        1, 0.56, "a narrow row's gain and shift have 4 elements a lane; the rows have 8"
    ),
    ("_layernorm_bwd", "minilm"): Budget(
        1, 0.54, "a narrow row's gain and sums have 4 elements a lane; the rows have 8"
    ),
    ("_embedding_fwd", ""): Budget(1, 0.66, _WORDS + "three indices, cu_seqlens, seed, statistics"),
    ("_embedding_bwd", ""): Budget(1, 0.59, _WORDS + "three indices, cu_seqlens, seed, statistics"),
    ("_embedding_", ""): Budget(1, 0.76, _WORDS + "the order and the words of a run"),
    ("_column_sums", ""): Budget(1, 0.88, "three results of few words behind one loop"),
    ("_column_sums", "mixed"): Budget(
        1, 0.83, "three results of few words behind one loop, two of them in float32"
    ),
    ("_cross_entropy_spans", ""): Budget(1, 0.53, _WORDS + "bias, label, and the sums of a span"),
    ("_cross_entropy_dlogits", ""): Budget(1, 0.59, _WORDS + "bias, label, lse, loss's gradient"),
    ("_cross_entropy_gather", ""): Budget(1, 0.85, _WORDS + "the row's number"),
    ("_cross_entropy_list", ""): Budget(1, 0.47, "numbers of the labelled rows, a word a row"),
    ("_cross_entropy_combine", ""): Budget(1, 0.0, "three numbers a span and row, no rows"),
    ("_cross_entropy_loss", ""): Budget(1, 0.0, "a number a row, no rows"),
}
_NEWER_TF32 = (
    "wgmma and tcgen05 take tf32 along the depth only: Triton turns the others over as it reads"
)
# The same for products of tf32 on sm_90 and sm_100, by the kernel's name.
NEWER_TF32 = {
    "_linear_bwd": Budget(1, 0.37, _NEWER_TF32),
    "_cross_entropy_gradients": Budget(1, 0.5, _NEWER_TF32),
}

# Launches of one layer, memsets counted.
LAUNCHES_FORWARD = 7
LAUNCHES_BOTH = {
    "triton": 20,
    "cuda": 23,
}  # cuda: sums that were cut among blocks are added by a launch more
LAUNCHES_DETERMINISTIC = 28

# Host time of twelve layers, forward and forward + backward, as a share of what transformers' take. Measured .05 to .08
# and .15 to .25; operation by operation .4 and .8. Padded: from ids and mask on, where theirs begin at the layers.
HOST_TIME = {
    "forward": 0.2,
    "replayed": 0.2,
    "padded replayed": 0.2,
    "both": 0.4,
    "both replayed": 0.4,
}

# Distinct bytes that an operation touches, against the formula of its fused design.
BYTES = 1.05


def budget(kernel: str, case: str, dtype: str, arch: int) -> Budget:
    """The budget of a kernel in a case of the census."""
    if dtype == "tf32" and arch in (90, 100):
        for name, found in NEWER_TF32.items():
            if kernel.startswith(name):
                return found
    fitting = [key for key in BUDGETS if kernel.startswith(key[0]) and case.startswith(key[1])]
    return BUDGETS[max(fitting, key=lambda key: (len(key[0]), len(key[1])))] if fitting else DEFAULT


# (operation, direction) -> (what it may touch of the formula, why it is more)
BYTES_MORE: dict[tuple[str, str], tuple[float, str]] = {
    ("masked_cross_entropy", "backward"): (
        1.75,
        "a slice of the logits' gradient is written once and read by dx and by dweight: computed twice, it would cost "
        "a third product; the slice stays in L2",
    ),
}


def bytes_allowed(operation: str, direction: str) -> float:
    """The share of the formula's bytes that the kernels of an operation may touch."""
    return BYTES_MORE.get((operation, direction), (BYTES, ""))[0]


# Of the bytes that an operation's kernels move when they run, the least share in accesses of 16 bytes.
WIDE = 0.95
# (backend, operation, direction[, case]) -> (share, why it is less)
_FEW = "of a row of 256 features gain, shift and their sums have 2 or 4 elements a lane; the rows have 8"
_HALF = (
    "; of a row in bf16 beside rows in float32 a lane moves 8 bytes: 4 elements, as of the others"
)
WIDE_LESS: dict[tuple[str, ...], tuple[float, str]] = {
    ("triton", "embedding", "forward"): (0.75, _FEW),
    ("triton", "embedding", "backward"): (
        0.7,
        _FEW + ", and the order of the words is sorted through",
    ),
    ("triton", "linear_layernorm", "forward"): (0.94, _FEW),
    ("triton", "linear_layernorm", "forward", "mixed"): (0.93, _FEW + _HALF),
    ("triton", "gelu_layernorm", "forward"): (0.91, _FEW),
    ("triton", "gelu_layernorm", "forward", "mixed"): (0.87, _FEW + _HALF),
}


def wide_share(backend: str, operation: str, direction: str, case: str) -> float:
    """The least share of bytes that are moved 16 at a time."""
    key = (backend, operation, direction)
    return WIDE_LESS.get((*key, case), WIDE_LESS.get(key, (WIDE, "")))[0]


class CudaBudget(NamedTuple):
    """Fields:
    products: whether tensor-core instructions must be there, or must not.
    blocks: that must fit on a multiprocessor at once. why: the reason.
    reads: of 16 bytes that a thread must have on their way at once.
    """

    products: bool = False
    blocks: int = 2
    why: str = "one block computes while the other waits for memory"
    reads: int = 0


class LoopBudget(NamedTuple):
    """Fields:
    issued: the most instructions for each tensor-core instruction in a turn of a hot loop; loops.py says what counts.
    loops: hot loops of the kernel, one a layout of the operands.
    """

    issued: float
    loops: int = 1


# part of the mangled name -> CudaBudget; the longest that fits counts.
_LARGE = "64 KiB of stages, or of rows: one fits into the 99 KiB of a block on small cards, two on sm_80 and sm_90"
_ROWS = "16 warps that hold whole rows, and their sums, in registers"
_FMA = CudaBudget(
    False, why="strict fp32 has no tensor cores; two blocks hide the memory's latency"
)
CUDA_BUDGETS: dict[str, CudaBudget] = {
    "_tilesI": CudaBudget(True),
    "_tilesI6__halfNS1_4TileILi128": CudaBudget(True, 1, _LARGE),
    "_tilesI13__nv_bfloat16NS1_4TileILi128": CudaBudget(True, 1, _LARGE),
    "_tilesIfNS1_4TileILi128": CudaBudget(True, 1, _LARGE),
    "_tilesIfNS1_4TileILi64ELi64ELi32ELi32ELi3EEELb1EEE": _FMA,
    "attention_fwd_kernel": CudaBudget(True),
    "attention_fwd_kernelI6__halfLi128": CudaBudget(True, 1, _LARGE),
    "attention_fwd_kernelI13__nv_bfloat16Li128": CudaBudget(True, 1, _LARGE),
    "attention_fwd_kernelIfLi128": CudaBudget(True, 1, _LARGE),
    "attention_bwd_kernel": CudaBudget(True, 1, _LARGE),
    "embedding_fwd_kernelI6__halfLi1": CudaBudget(reads=9),  # a row of 768 of three tables
    "embedding_fwd_kernelI13__nv_bfloat16Li1": CudaBudget(reads=9),
    "embedding_dz_kernel": CudaBudget(False, 1, _ROWS),
    "differentiate_rows": CudaBudget(False, 1, _ROWS),
    "sum_logitsI": CudaBudget(True),
    "logit_gradientsI": CudaBudget(True),
    "weight_gradientsI": CudaBudget(True),
    "row_gradientsI": CudaBudget(True),
    "sum_logitsIfLb1": _FMA,
    "logit_gradientsIfLb1": _FMA,
    "weight_gradientsIfLb1": _FMA,
    "row_gradientsIfLb1": _FMA,
}


def cuda_budget(kernel: str) -> CudaBudget:
    """The budget of a CUDA kernel."""
    fitting = [part for part in CUDA_BUDGETS if part in kernel]
    return CUDA_BUDGETS[max(fitting, key=len)] if fitting else CudaBudget()


# The same for hot loops, of elements of 16 bits. A product has 16 tensor-core instructions a turn with tiles of 64x64,
# 64 with 128x128. Attention's loop has the softmax too, whose share falls with the width of a head: of 411 instructions
# forward at 64 are 64 products, 224 softmax, 44 fragments and copies.
LOOP_BUDGETS: dict[str, LoopBudget] = {
    "forward_tilesI{16}NS1_4TileILi64": LoopBudget(4.5),
    "forward_tilesI{16}NS1_4TileILi128": LoopBudget(2.5),
    "backward_tilesI{16}NS1_4TileILi64": LoopBudget(4.5, 2),
    "backward_tilesI{16}NS1_4TileILi128": LoopBudget(2.5, 2),
    "sum_logitsI{16}": LoopBudget(3.2),
    "logit_gradientsI{16}": LoopBudget(3.2),
    "weight_gradientsI{16}": LoopBudget(3.2),
    "row_gradientsI{16}": LoopBudget(3.2),
    "attention_fwd_kernelI{16}Li32": LoopBudget(10.4),
    "attention_fwd_kernelI{16}Li64": LoopBudget(6.7),
    "attention_fwd_kernelI{16}Li128": LoopBudget(4.7),
    "attention_bwd_kernelI{16}Li32ELb0": LoopBudget(8.1),
    "attention_bwd_kernelI{16}Li64ELb0": LoopBudget(5.2),
    "attention_bwd_kernelI{16}Li128ELb0": LoopBudget(4.2),
    "attention_bwd_kernelI{16}Li32ELb1": LoopBudget(9.0),
    "attention_bwd_kernelI{16}Li64ELb1": LoopBudget(5.5),
    "attention_bwd_kernelI{16}Li128ELb1": LoopBudget(4.3),
}

# What a warp issues in a turn of Triton's attention forward in bf16, 16 queries by 64 keys, where tiles are whole and
# nothing is dropped. Measured 348, 305; with every tile masked, and scale and shift apart, it was 488 and 412.
TURNS: dict[tuple[int, str], int] = {
    (80, "head64-long"): 365,
    (90, "head64-long"): 320,
}


def loop_budget(kernel: str) -> LoopBudget | None:
    """The budget of a CUDA kernel's hot loops; None without products of 16-bit elements."""
    for type_ in ("6__half", "13__nv_bfloat16"):
        for part, found in LOOP_BUDGETS.items():
            if part.replace("{16}", type_) in kernel:
                return found
    return None
