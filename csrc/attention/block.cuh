// What the kernels of attention share beside the tiles: which rows a block owns, and dropout's bits
// in the layout of the products.
#pragma once
#include "attention/op.h"
#include "attention/tile.cuh"
#include "common/exp.cuh"
#include "common/launch.cuh"
#include "common/philox.cuh"

namespace bf::cuda {
namespace {

// Rows [first, first + kBlock) of a sequence; none where first >= length.
struct Work {
  int sequence, length, first;
  long start;
};

// Flat work list over ragged sequences: the blocks of sequence b take the ids cu_seqlens[b] /
// kBlock
// + b onwards. Those of different sequences are disjoint, as ceil(length / kBlock) <= end / kBlock
// - start / kBlock + 1, and tokens / kBlock + sequences ids are enough; surplus ids own no rows.
__device__ __forceinline__ Work find_work(const std::int32_t* cu_seqlens, int sequences, int id) {
  if (sequences == 0) return {0, 0, 0, 0};
  const int low = last_of(sequences, [&](int b) { return cu_seqlens[b] / kBlock + b <= id; });
  const int start = cu_seqlens[low];
  return {low, cu_seqlens[low + 1] - start, (id - start / kBlock - low) * kBlock, start};
}

inline dim3 work_grid(long tokens, long sequences, long heads) {
  const long blocks = tokens / kBlock + (sequences > 0 ? sequences : 1);
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(heads));
}

// Tokens that belong to no sequence (a pack with spare capacity) are shared out by id: this block's
// are [first, end).
struct Spare {
  long first, end;
};
__device__ __forceinline__ Spare find_spare(const std::int32_t* cu_seqlens, long sequences,
                                            long tokens, long id) {
  const long used = cu_seqlens[sequences], first = id * kBlock, end = first + kBlock;
  return {first > used ? first : used, end < tokens ? end : tokens};
}

struct DropoutBits {
  std::uint64_t seed;
  std::uint32_t threshold, head, row;

  // Which of a warp's 16 x 16 elements are kept: bit 4 u + e is element e of the lane in the u-th
  // 16 x 8 block. Rows are queries from `row0` and columns keys from `column0`, or the other way
  // round. Every lane makes one call, for 8 keys of one query, and passes the bits on.
  template <bool rows_are_keys>
  __device__ __forceinline__ unsigned of(int row0, int column0) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    unsigned bits = 0;
    if constexpr (rows_are_keys) {
      const unsigned keep = call(row0 + lane / 8 % 2 * 8, column0 + lane / 16 * 8 + lane % 8);
      unsigned mine = 0;  // bit l: what lane l found of the keys g and g + 8
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const unsigned all = __ballot_sync(kAllLanes, keep >> e & 1);
        if (e == g) mine = all;
      }
#pragma unroll
      for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          bits |= (mine >> (16 * u + 8 * half + 2 * t) & 3) << (4 * u + 2 * half);
    } else {
      const unsigned keep = call(column0 + lane / 16 * 8, row0 + lane % 16);
#pragma unroll
      for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const unsigned all = __shfl_sync(kAllLanes, keep, 16 * u + 8 * half + g);
          bits |= (all >> (2 * t) & 3) << (4 * u + 2 * half);
        }
    }
    return bits;
  }

 private:
  __device__ __forceinline__ unsigned call(int key, int query) const {
    return philox_keep(philox(seed, key / kPhiloxGroup, query, head, row), threshold);
  }
};

__device__ __forceinline__ DropoutBits dropout_bits(const Dropout& d, int head, int sequence) {
  if (!d.seed) return {};
  return {*d.seed, d.threshold, static_cast<std::uint32_t>(head), counter_row(d, sequence)};
}

// Columns from `end` on never count.
template <int N>
__device__ __forceinline__ void mask_columns(float (&scores)[N / 8][4], int end) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < N / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (n * 8 + 2 * t + e % 2 >= end) scores[n][e] = -INFINITY;
}

// The rows of one head: element 0 of `data` is that of token 0.
template <class T, class P>
__device__ __forceinline__ Rows<T> head_rows(P* data, long stride, long token, long slot, int size,
                                             bool vector) {
  return {static_cast<T*>(data) + token * stride + slot * size, stride, size, vector};
}

}  // namespace
}  // namespace bf::cuda
