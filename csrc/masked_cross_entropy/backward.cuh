// Backward, slice by slice of the vocabulary: the slice's logits are computed again and leave
// d[r, v] = exp(logit - lse) - [v is the label] (unscaled, in the dtype) in the workspace, from
// which come the slice's rows of dweight and dbias, and what it adds to dx. Few rows: dx splits the
// slice among blocks, whose fp32 sums are added in order at the end. The scale of the loss enters
// at the stores, so that small probabilities do not vanish in fp16.
#pragma once
#include "masked_cross_entropy/rows.cuh"

namespace bf::cuda {
namespace {

constexpr long kSliceBytes = 64l << 20, kLeastSlice = 512;
constexpr int kMaxSplits = 32, kScatterThreads = 256;
// A row of dx is a sum over the whole vocabulary, in which the label's term outweighs the others:
// in exact fp32 it is summed in runs of so many columns, as rounding would add up otherwise.
constexpr int kExactRun = 256;

// How the work is cut, and where its parts lie in the workspace.
template <class T>
struct Plan {
  long slice;   // columns, a multiple of the tile's
  long width;   // k with room up to whole groups
  int splits;   // of a slice, for dx
  T* x;         // [labelled, width]
  T* d;         // [labelled, slice]
  float* sums;  // [splits, labelled, width]

  std::size_t lay_out(const MaskedCrossEntropyBwd& p, void* base) {
    const long columns = ceil_div(p.vocabulary, ProductTile::kN) * ProductTile::kN;
    slice = kSliceBytes / (p.labelled * static_cast<long>(sizeof(T)));
    slice = slice / ProductTile::kN * ProductTile::kN;
    slice = slice < kLeastSlice || p.gpu.invariant ? kLeastSlice : slice;
    slice = slice < columns ? slice : columns;
    width = padded_width<T>(p.k);
    const long blocks = ceil_div(p.labelled, ProductTile::kM) * ceil_div(p.k, ProductTile::kN);
    const long fill = 2 * multiprocessors() / blocks, depths = slice * sizeof(T) / kDepthBytes;
    const long most = depths / 8 < kMaxSplits ? depths / 8 : kMaxSplits;
    splits = static_cast<int>(fill < 1 ? 1 : fill < most ? fill : most < 1 ? 1 : most);
    if (p.gpu.invariant) splits = 1;
    Arena arena(base);
    x = arena.take<T>(p.labelled * width);
    d = arena.take<T>(p.labelled * slice);
    sums = p.dx ? arena.take<float>(splits * p.labelled * width) : nullptr;
    return arena.used();
  }
};

// d of the slice [begin, end).
template <class T, bool fma>
__global__ void __launch_bounds__(ProductTile::kThreads, ProductTile::kBlocks)
    logit_gradients(const MaskedCrossEntropyBwd p, const LogitOperands from, T* d, long stride,
                    long begin, long end, bool vector) {
  extern __shared__ __align__(128) char shared[];
  const int count = static_cast<int>(*p.count), row = blockIdx.x * ProductTile::kM;
  if (row >= count) return;
  const int column = blockIdx.y * ProductTile::kN;
  Core<T, ProductTile, true, true, false, fma> core;
  logit_tile<T, fma>(core, shared, from, count, row, static_cast<int>(begin) + column);
  core.for_each_group(shared, [&](float (&v)[kGroup<T>], int r, int c) {
    const long first = begin + column + c;
    if (row + r >= count) return;
    add_bias<T>(v, p.bias, first, p.vocabulary, vector);
    const float lse = p.lse[row + r] * kLog2E;
    const long label = p.labels[row + r] - first;
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) {
      v[e] = power2(fmaf(v[e], kLog2E, -lse)) - (label == e ? 1.0f : 0.0f);
      if (first + e >= end) v[e] = 0.0f;
    }
    store_group(d + (row + r) * stride + column + c, v, kGroup<T>, true);
  });
}

// Rows [begin, end) of dweight = d^T x and of dbias = column sums of d.
template <class T, bool fma>
__global__ void __launch_bounds__(ProductTile::kThreads, ProductTile::kBlocks)
    weight_gradients(const MaskedCrossEntropyBwd p, Operand d, Operand x, long begin, long end,
                     bool vector) {
  extern __shared__ __align__(128) char shared[];
  using Product = Core<T, ProductTile, false, false, true, fma>;
  d.rows = x.rows = static_cast<int>(*p.count);
  const int row = blockIdx.x * ProductTile::kM, column = blockIdx.y * ProductTile::kN;
  const int depths = static_cast<int>(ceil_div(d.rows, Product::kDepth));
  Product core;
  core.accumulate(
      shared, [&](int) { return d; }, [&](int) { return x; }, row, column, depths > 0 ? depths : 1,
      0, depths, column == 0);
  const float scale = *p.scale;
  if (p.dbias && column == 0 && ProductTile::first_column() == 0)
    core.math.for_each_sum([&](int r, float sum) {
      const long word = begin + row + ProductTile::first_row() + r;
      if (word < end) static_cast<T*>(p.dbias)[word] = from_float<T>(sum * scale);
    });
  if (!p.dweight) return;
  core.for_each_group(shared, [&](float (&v)[kGroup<T>], int r, int c) {
    const long word = begin + row + r, left = p.k - column - c;
    if (word >= end || left <= 0) return;
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) v[e] *= scale;
    store_group(static_cast<T*>(p.dweight) + word * p.k + column + c, v, left,
                vector && left >= kGroup<T>);
  });
}

// Adds d times the slice's rows of the weight to dx, the depths of one split to the sums of that
// split; exact fp32 in runs of depths. The first run of the first slice writes.
template <class T, bool fma>
__global__ void __launch_bounds__(ProductTile::kThreads, ProductTile::kBlocks)
    row_gradients(const MaskedCrossEntropyBwd p, Operand d, const Operand weight, float* sums,
                  long width, bool add) {
  extern __shared__ __align__(128) char shared[];
  using Product = Core<T, ProductTile, true, false, false, fma>;
  d.rows = static_cast<int>(*p.count);
  const int row = blockIdx.x * ProductTile::kM, column = blockIdx.y * ProductTile::kN;
  if (row >= d.rows) return;
  const int depths = static_cast<int>(ceil_div(weight.rows, Product::kDepth));
  const int each = static_cast<int>(ceil_div(depths, gridDim.z));
  const int first = min(static_cast<int>(blockIdx.z) * each, depths);
  const int last = min(first + each, depths);
  constexpr int kRun = fma ? kExactRun / Product::kDepth : 1 << 30;
  int begin = first;
  do {  // once where the split has no depths: its sums are zeros
    Product core;
    core.accumulate(
        shared, [&](int) { return d; }, [&](int) { return weight; }, row, column, depths, begin,
        last - begin < kRun ? last : begin + kRun);
    core.for_each_group(shared, [&](float (&v)[kGroup<T>], int r, int c) {
      if (row + r >= d.rows || column + c >= width) return;
      float* to = sums + (blockIdx.z * p.labelled + row + r) * width + column + c;
      add_group(v, to, 0, add || begin > first);
      store_group(to, v, kGroup<T>, true);
    });
    if constexpr (fma) __syncthreads();  // shared memory is free for the next run
    begin += kRun;
  } while (begin < last);
}

// dx[rows[r]] = scale times the sums of the splits; 0 for rows without a label.
template <class T>
__global__ void __launch_bounds__(kScatterThreads)
    scatter_rows(const MaskedCrossEntropyBwd p, const float* sums, long width, int splits,
                 bool vector) {
  const long row = blockIdx.x;
  const bool labelled = row < *p.count;
  const float scale = *p.scale;
  T* to = static_cast<T*>(p.dx) + p.rows[row] * p.k;
  for (long i = threadIdx.x * kGroup<T>; i < p.k; i += kScatterThreads * kGroup<T>) {
    float total[kGroup<T>] = {};
    for (int split = 0; labelled && split < splits; ++split) {
      float v[kGroup<T>];
      load_group(v, sums + (split * p.labelled + row) * width + i, kGroup<T>, true);
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) total[e] += v[e] * scale;
    }
    store_group(to + i, total, p.k - i, vector && p.k - i >= kGroup<T>);
  }
}

template <class T, bool fma>
void launch_slice(const MaskedCrossEntropyBwd& p, const Plan<T>& plan, long begin, long end) {
  constexpr int kThreads = ProductTile::kThreads, kM = ProductTile::kM, kN = ProductTile::kN;
  const LogitOperands from = logit_operands(p, static_cast<const T*>(plan.x));
  const int columns = static_cast<int>(end - begin), k = static_cast<int>(p.k);
  const auto blocks = [](long extent, long tile) {
    return static_cast<unsigned>(ceil_div(extent, tile));
  };
  const unsigned rows = blocks(p.labelled, kM), across = blocks(p.k, kN);
  const Operand d{plan.d, plan.slice, 0, columns, true};
  Operand weight = from.weight;
  weight.data = static_cast<const T*>(p.weight) + begin * p.weight_stride;
  weight.rows = columns;
  const bool vector = is_vector(p.dweight, p.k * sizeof(T));

  BF_LAUNCH((logit_gradients<T, fma>), dim3(rows, blocks(columns, kN)), kThreads,
            (Core<T, ProductTile, true, true, false, fma>::kSharedBytes), p.gpu, p, from, plan.d,
            plan.slice, begin, end, is_vector(p.bias, 0));
  if (p.dweight || p.dbias)
    BF_LAUNCH((weight_gradients<T, fma>), dim3(blocks(columns, kM), p.dweight ? across : 1),
              kThreads, (Core<T, ProductTile, false, false, true, fma>::kSharedBytes), p.gpu, p, d,
              Operand{plan.x, plan.width, 0, k, true}, begin, end, vector);
  if (p.dx)
    BF_LAUNCH((row_gradients<T, fma>), dim3(rows, across, plan.splits), kThreads,
              (Core<T, ProductTile, true, false, false, fma>::kSharedBytes), p.gpu, p, d, weight,
              plan.sums, plan.width, begin > 0);
}

template <class T, bool fma>
void launch_bwd(const MaskedCrossEntropyBwd& p) {
  Plan<T> plan;
  plan.lay_out(p, p.gpu.workspace);
  launch_gather(p, plan.x);
  for (long begin = 0; begin < p.vocabulary; begin += plan.slice) {
    const long end = begin + plan.slice < p.vocabulary ? begin + plan.slice : p.vocabulary;
    launch_slice<T, fma>(p, plan, begin, end);
  }
  if (p.dx)
    BF_LAUNCH(scatter_rows<T>, static_cast<unsigned>(p.labelled), kScatterThreads, 0, p.gpu, p,
              plan.sums, plan.width, plan.splits, is_vector(p.dx, p.k * sizeof(T)));
}

}  // namespace
}  // namespace bf::cuda
