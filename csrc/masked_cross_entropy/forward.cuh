// Forward: a block owns 64 labelled rows and one chunk of the vocabulary, which it walks in tiles.
// The maximum and the sum of exp so far stand in shared memory, for each row and each warp along
// the columns; the 8 or 16 lanes that read a row of a tile merge theirs first. A second kernel
// merges the chunks in order.
#pragma once
#include "masked_cross_entropy/rows.cuh"

namespace bf::cuda {
namespace {

constexpr int kChunk = 1024, kMergeThreads = 128;

// sum = sum of 2^(logit - max), logits in powers of two.
struct Partial {
  float max, sum;

  __device__ __forceinline__ void merge(const Partial& other) {
    const float most = fmaxf(max, other.max), base = finite_base(most);
    sum = sum * power2(max - base) + other.sum * power2(other.max - base);
    max = most;
  }
  template <int n>
  __device__ __forceinline__ void add(const float (&logits)[n]) {
    float most = max;
#pragma unroll
    for (int e = 0; e < n; ++e) most = fmaxf(most, logits[e]);
    const float base = finite_base(most);
    sum *= power2(max - base);
#pragma unroll
    for (int e = 0; e < n; ++e) sum += power2(logits[e] - base);
    max = most;
  }
};

// A row's parts: one for each chunk and each warp along the columns.
inline long partials(long vocabulary) {
  return ceil_div(vocabulary, kChunk) * ProductTile::kWarpsN;
}

template <class T, bool fma>
__global__ void __launch_bounds__(ProductTile::kThreads, ProductTile::kBlocks)
    sum_logits(const MaskedCrossEntropyFwd p, const LogitOperands from, Partial* partial,
               bool vector) {
  constexpr int kLanes = ProductTile::kWarpN / kGroup<T>;  // of a row
  constexpr int kSlots = ProductTile::kWarpsN;
  static_assert(kSlots * ProductTile::kM == ProductTile::kThreads, "a thread, a row's part");
  extern __shared__ __align__(128) char shared[];
  __shared__ Partial held[kSlots][ProductTile::kM];
  const int count = static_cast<int>(*p.count), row = blockIdx.x * ProductTile::kM;
  if (row >= count) return;
  Partial& mine = held[threadIdx.x / ProductTile::kM][threadIdx.x % ProductTile::kM];
  mine = {-INFINITY, 0.0f};

  const long vocabulary = p.vocabulary, begin = static_cast<long>(blockIdx.y) * kChunk;
  const long end = begin + kChunk < vocabulary ? begin + kChunk : vocabulary;
  for (long column = begin; column < end; column += ProductTile::kN) {
    Core<T, ProductTile, true, true, false, fma> core;
    logit_tile<T, fma>(core, shared, from, count, row, static_cast<int>(column));
    core.for_each_group(shared, [&](float (&logits)[kGroup<T>], int r, int c) {
      const long first = column + c;
      add_bias<T>(logits, p.bias, first, vocabulary, vector);
      const long label = row + r < count ? p.labels[row + r] - first : -1;
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) {
        if (label == e) p.logit[row + r] = logits[e];
        logits[e] = first + e < end ? logits[e] * kLog2E : -INFINITY;
      }
      Partial part{-INFINITY, 0.0f};
      part.add(logits);
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2)
        part.merge({__shfl_xor_sync(kAllLanes, part.max, step),
                    __shfl_xor_sync(kAllLanes, part.sum, step)});
      if (threadIdx.x % kLanes == 0) held[c / ProductTile::kWarpN][r].merge(part);
    });
    __syncthreads();  // shared memory is free for the next tile
  }
  const int r = row + threadIdx.x % ProductTile::kM;
  const long slot = blockIdx.y * kSlots + threadIdx.x / ProductTile::kM;
  if (r < count) partial[slot * p.labelled + r] = mine;
}

// A label outside the vocabulary gets a NaN: nobody found its logit.
__global__ void __launch_bounds__(kMergeThreads)
    merge_sums(const MaskedCrossEntropyFwd p, const Partial* partial, int parts) {
  const long row = static_cast<long>(blockIdx.x) * kMergeThreads + threadIdx.x;
  if (row >= p.labelled) return;
  if (row >= *p.count) {
    p.lse[row] = p.logit[row] = 0.0f;
    return;
  }
  Partial total = partial[row];
  for (int i = 1; i < parts; ++i) total.merge(partial[i * p.labelled + row]);
  p.lse[row] = total.max * kLn2 + logf(total.sum);
  if (p.labels[row] < 0 || p.labels[row] >= p.vocabulary) p.logit[row] = NAN;
}

template <class T, bool fma>
void launch_fwd(const MaskedCrossEntropyFwd& p, T* x, Partial* partial) {
  using Product = Core<T, ProductTile, true, true, false, fma>;
  launch_gather(p, x);
  const dim3 grid(static_cast<unsigned>(ceil_div(p.labelled, ProductTile::kM)),
                  static_cast<unsigned>(ceil_div(p.vocabulary, kChunk)));
  BF_LAUNCH((sum_logits<T, fma>), grid, ProductTile::kThreads, Product::kSharedBytes, p.gpu, p,
            logit_operands(p, static_cast<const T*>(x)), partial, is_vector(p.bias, 0));
  BF_LAUNCH(merge_sums, static_cast<unsigned>(ceil_div(p.labelled, kMergeThreads)), kMergeThreads,
            0, p.gpu, p, partial, static_cast<int>(partials(p.vocabulary)));
}

}  // namespace
}  // namespace bf::cuda
