// LayerNorm of rows held in registers, forward and backward, for the kernels that make a row on the
// way in or use it on the way out.
//
// A row of n elements belongs to one warp (n <= 1024) or to the whole block (n <= 8192); a thread
// holds every 32nd or 256th of its 16-byte groups in fp32. Mean, then squared deviations: two
// passes over registers. T is the narrowest type of a row's tensors and cuts it into groups; R, T
// or float, is LN's own: of its parameters and of what it gives. Backward, with x = (z - mean) rstd
// and g = dout weight: dz = rstd (g - mean(g) - x mean(g x)); the columns' sums of dout x and of
// dout are kept in registers over all rows of a block, added over its warps in their order and left
// in the workspace for column_sums.cuh. Elements beyond n are zeros and are never stored.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/column_sums.cuh"
#include "common/launch.cuh"
#include "common/limits.h"
#include "common/philox.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

namespace bf::cuda {
namespace {

constexpr int kRowThreads = 256, kRowWarps = kRowThreads / kWarp, kRowValues = 32;
constexpr long kWarpRow = kRowValues * kWarp;
static_assert(kFeatures.most == kRowValues * kRowThreads, "a block's registers hold a row");

// Launches KERNEL<TYPES, warps> with one warp or all of a block's to a row, as n needs.
#define BF_LAUNCH_ROWS(KERNEL, TYPES, N, BLOCKS, SHARED, GPU, ...)                            \
  do {                                                                                        \
    const unsigned blocks = static_cast<unsigned>(BLOCKS);                                    \
    if ((N) <= kWarpRow)                                                                      \
      BF_LAUNCH((KERNEL<BF_UNPACK TYPES, 1>), blocks, kRowThreads, SHARED, GPU, __VA_ARGS__); \
    else                                                                                      \
      BF_LAUNCH((KERNEL<BF_UNPACK TYPES, kRowWarps>), blocks, kRowThreads, SHARED, GPU,       \
                __VA_ARGS__);                                                                 \
  } while (0)
#define BF_UNPACK(...) __VA_ARGS__

// A thread's part of a row that belongs to `warps` warps (1 or kRowWarps).
template <class T, int warps>
struct Row {
  static constexpr int kGroups = kRowValues / kGroup<T>;
  using Values = float[kGroups][kGroup<T>];

  int n;
  bool vector;  // 16-byte accesses are possible

  // Of the rows that a block holds at a time, the thread's, and how many they are.
  static constexpr int kRows = kRowWarps / warps;
  __device__ static __forceinline__ int index() {
    return static_cast<int>(threadIdx.x) / (warps * kWarp);
  }
  __device__ static __forceinline__ int first(int i) {
    return (i * warps * kWarp + static_cast<int>(threadIdx.x) % (warps * kWarp)) * kGroup<T>;
  }
  // Calls body(i, first element, how many are left, whether a 16-byte access is possible).
  template <class Body>
  __device__ __forceinline__ void for_each_group(Body body) const {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int at = first(i), left = n - at;
      if (left > 0) body(i, at, left, vector && left >= kGroup<T>);
    }
  }
};

// v = the parts of a product, `size` apart, added in their order, + bias.
template <class T>
__device__ __forceinline__ void add_parts(float (&v)[kGroup<T>], const float* parts, long size,
                                          int count, const T* bias, int left, bool vector) {
#pragma unroll
  for (int e = 0; e < kGroup<T>; ++e) v[e] = 0.0f;
#pragma unroll 1
  for (int part = 0; part < count; ++part) add_group(v, parts + part * size, left, vector);
  add_group(v, bias, left, vector);
}

// What `normalise` does to a group before it is stored: nothing.
struct StoreAsIs {
  template <class Values>
  __device__ __forceinline__ void operator()(Values&, int) const {}
};

// z holds a row; out = finish((z - mean) rstd weight + bias), finish(group, first feature) in
// place. mean and rstd are written to where they are not null. What a lane stores of `out` depends
// on what all lanes of the row have in z, so `out` may lie over memory that z was read from.
template <class T, int warps, class R, class Finish = StoreAsIs>
__device__ __forceinline__ void normalise(const Row<T, warps>& row,
                                          const typename Row<T, warps>::Values& z, const R* weight,
                                          const R* bias, float eps, R* out, float* mean_out,
                                          float* rstd_out, Finish finish = {}) {
  __shared__ float scratch[2][kRowWarps];
  float sum = 0, squares = 0;
  row.for_each_group([&](int i, int, int, bool) {
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) sum += z[i][e];
  });
  const float mean = block_sum<warps>(sum, scratch[0]) / static_cast<float>(row.n);
  row.for_each_group([&](int i, int, int left, bool) {
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) {
      const float d = z[i][e] - mean;
      squares += e < left ? d * d : 0.0f;
    }
  });
  const float variance = block_sum<warps>(squares, scratch[1]) / static_cast<float>(row.n);
  const float rstd = 1.0f / sqrtf(variance + eps);
  row.for_each_group([&](int i, int at, int left, bool vector) {
    float w[kGroup<T>], b[kGroup<T>], v[kGroup<T>];
    load_group(w, weight + at, left, vector);
    load_group(b, bias + at, left, vector);
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) v[e] = fmaf((z[i][e] - mean) * rstd, w[e], b[e]);
    finish(v, at);
    store_group(out + at, v, left, vector);
  });
  if (Row<T, warps>::first(0) == 0) {
    if (mean_out) *mean_out = mean;
    if (rstd_out) *rstd_out = rstd;
  }
}

// Dropout of a group of features from `first` on, a multiple of the group's width (4 or 8).
template <int width>
__device__ __forceinline__ void drop(const TokenDropout& d, float (&v)[width], int first) {
  if (!d.on) return;
  const std::uint32_t group = static_cast<std::uint32_t>(first) / kPhiloxGroup;
  const std::uint32_t keep =
      philox_keep(philox(d.seed, group, d.position, 0, d.row), d.threshold) >> first % kPhiloxGroup;
#pragma unroll
  for (int e = 0; e < width; ++e) v[e] = keep >> e & 1u ? v[e] * d.scale : 0.0f;
}

// What a kernel of rows is given for backward.
template <class Op>
struct RowsBwd {
  Op op;
  float* sums;  // [blocks, 2, stride]: of dout x, then of dout
  long stride;
  void* dy;  // what goes on to other kernels, or null
  bool vector;
};

// Blocks that hold all rows at a time, and those of backward, each of which walks over rows.
inline long row_blocks(long rows, long n) {
  return n <= kWarpRow ? ceil_div(rows, kRowWarps) : rows;
}
inline int layernorm_bwd_blocks(long rows, long n) {
  return static_cast<int>(std::min<long>(row_blocks(rows, n), multiprocessors()));
}
inline std::size_t layernorm_bwd_shared(long n) {
  return n <= kWarpRow ? 2 * kWarpRow * sizeof(float) : 0;
}

// The sums of a block's warps, which own the same columns; lane after lane of an element, so that
// no bank is met twice.
template <class T, int warps>
__device__ __forceinline__ void store_sums(float* sums, long stride, const Row<T, warps>& row,
                                           const typename Row<T, warps>::Values& dweight,
                                           const typename Row<T, warps>::Values& dbias,
                                           float* shared) {
  constexpr int kWidth = kGroup<T>;
  float* to = sums + blockIdx.x * 2 * stride;
  if constexpr (warps > 1) {
    row.for_each_group([&](int i, int at, int left, bool) {
      store_group(to + at, dweight[i], left, left >= kWidth);
      store_group(to + stride + at, dbias[i], left, left >= kWidth);
    });
  } else {
    const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll 1
    for (int turn = 0; turn < kRowWarps; ++turn) {
      if (warp == turn)
        row.for_each_group([&](int i, int, int, bool) {
#pragma unroll
          for (int e = 0; e < kWidth; ++e) {
            float* at = shared + (i * kWidth + e) * kWarp + lane;
            at[0] = turn ? at[0] + dweight[i][e] : dweight[i][e];
            at[kWarpRow] = turn ? at[kWarpRow] + dbias[i][e] : dbias[i][e];
          }
        });
      __syncthreads();
    }
    for (int task = warp; task < 2 * Row<T, warps>::kGroups; task += kRowWarps) {
      const int i = task / 2, which = task % 2;
      const int at = (i * kWarp + lane) * kWidth, left = row.n - at;
      if (left <= 0) continue;
      float v[kWidth];
#pragma unroll
      for (int e = 0; e < kWidth; ++e)
        v[e] = shared[which * kWarpRow + (i * kWidth + e) * kWarp + lane];
      store_group(to + which * stride + at, v, left, left >= kWidth);
    }
  }
}

// The whole backward of LN for the rows of a block. source(row) gives a functor (v, first, left,
// vector) that fills in a group of what was normalised; gradient(row) the same of dout; target(row)
// one that receives the group's dz.
template <class T, class R, int warps, class Op, class Source, class Gradient, class Target>
__device__ __forceinline__ void layernorm_backward(const RowsBwd<Op>& p, float* shared,
                                                   Source source, Gradient gradient,
                                                   Target target) {
  using Part = Row<T, warps>;
  constexpr int kWidth = kGroup<T>;
  __shared__ float scratch[2][kRowWarps];
  const Part part{static_cast<int>(p.op.n), p.vector};
  const R* weight = static_cast<const R*>(p.op.ln_weight);
  typename Part::Values dweight = {}, dbias = {};
#pragma unroll 1
  for (long row = static_cast<long>(blockIdx.x) * Part::kRows + Part::index(); row < p.op.rows;
       row += static_cast<long>(gridDim.x) * Part::kRows) {
    typename Part::Values x, g;
    const float mean = p.op.mean[row], rstd = p.op.rstd[row];
    float sum = 0, sum_x = 0;
    const auto values = source(row);
    const auto dout = gradient(row);
    part.for_each_group([&](int i, int at, int left, bool vector) {
      float w[kWidth];
      values(x[i], at, left, vector);
      dout(g[i], at, left, vector);
      load_group(w, weight + at, left, vector);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        x[i][e] = (x[i][e] - mean) * rstd;
        if (e < left) dweight[i][e] += g[i][e] * x[i][e], dbias[i][e] += g[i][e];
        g[i][e] = e < left ? g[i][e] * w[e] : 0.0f;
        sum += g[i][e];
        sum_x += e < left ? g[i][e] * x[i][e] : 0.0f;
      }
    });
    const float mean_g = block_sum<warps>(sum, scratch[0]) / static_cast<float>(part.n);
    const float mean_gx = block_sum<warps>(sum_x, scratch[1]) / static_cast<float>(part.n);
    const auto store = target(row);
    part.for_each_group([&](int i, int at, int left, bool vector) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) g[i][e] = (g[i][e] - mean_g - x[i][e] * mean_gx) * rstd;
      store(g[i], at, left, vector);
    });
  }
  store_sums<T, warps>(p.sums, p.stride, part, dweight, dbias, shared);
}

}  // namespace
}  // namespace bf::cuda
