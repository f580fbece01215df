// What forward and backward share: the tile of the products, the labelled rows gathered into one
// matrix, logits with their bias.
#pragma once
#include "common/exp.cuh"
#include "common/limits.h"
#include "masked_cross_entropy/op.h"
#include "product/gemm.cuh"

namespace bf::cuda {
namespace {

using ProductTile = Tile<64, 128, 32, 64, 2>;
static_assert(kColumns.most == 65535L * ProductTile::kN, "tiles are a grid's second dimension");

// Rows of k elements with room up to whole 16-byte groups, which are zeros.
template <class T>
long padded_width(long k) {
  return ceil_div(k, kGroup<T>) * kGroup<T>;
}

// to[r] = x[rows[r]] for the first count rows: a warp each.
template <class T>
__global__ void __launch_bounds__(kWarp)
    gather_rows(const T* x, long x_stride, long k, const std::int64_t* rows,
                const std::int64_t* count, T* to, long stride, bool vector) {
  const long row = blockIdx.x;
  if (row >= *count) return;
  const T* from = x + rows[row] * x_stride;
  for (long i = threadIdx.x * kGroup<T>; i < k; i += kWarp * kGroup<T>) {
    float values[kGroup<T>];
    load_group(values, from + i, k - i, vector);
    store_group(to + row * stride + i, values, kGroup<T>, true);
  }
}

template <class T, class P>
void launch_gather(const P& p, T* to) {
  const bool vector = is_vector(p.x, p.k * sizeof(T)) && is_vector(p.x, p.x_stride * sizeof(T));
  BF_LAUNCH(gather_rows<T>, static_cast<unsigned>(p.labelled), kWarp, 0, p.gpu,
            static_cast<const T*>(p.x), p.x_stride, p.k, p.rows, p.count, to, padded_width<T>(p.k),
            vector);
}

// Both operands of the logits: the gathered rows and the weight, along k.
struct LogitOperands {
  Operand x, weight;
};
template <class T, class P>
LogitOperands logit_operands(const P& p, const T* x) {
  const int k = static_cast<int>(p.k);
  const bool vector = is_vector(p.weight, p.weight_stride * sizeof(T));
  return {{x, padded_width<T>(p.k), 0, k, true},
          {p.weight, p.weight_stride, static_cast<int>(p.vocabulary), k, vector}};
}

// The tile at (row, column) of the logits without their bias; rows from `count` on are zeros.
template <class T, bool fma>
__device__ __forceinline__ void logit_tile(Core<T, ProductTile, true, true, false, fma>& core,
                                           char* shared, LogitOperands from, int count, int row,
                                           int column) {
  from.x.rows = count;
  const int depths = static_cast<int>(ceil_div(from.x.columns, core.kDepth));
  core.accumulate(
      shared, [&](int) { return from.x; }, [&](int) { return from.weight; }, row, column, depths, 0,
      depths);
}

template <class T>
__device__ __forceinline__ void add_bias(float (&logits)[kGroup<T>], const void* bias, long column,
                                         long vocabulary, bool vector) {
  if (!bias) return;
  const long left = vocabulary - column;
  add_group(logits, static_cast<const T*>(bias) + column, left, vector && left >= kGroup<T>);
}

}  // namespace
}  // namespace bf::cuda
