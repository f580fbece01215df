// The second stage of sums over rows (or over the splits of a product): `count` partial rows of
// fp32 that a first kernel left in the workspace are added in their order and rounded once, to the
// launch's dtype or not at all. A block owns 256 16-byte groups of the result; where there are many
// partial rows, 8 groups of threads take a run of them each, and the 8 sums are added in order.
#pragma once
#include "common/gelu.cuh"
#include "common/launch.cuh"
#include "common/vector.cuh"

namespace bf::cuda {
namespace {

constexpr int kMaxSums = 9, kSumThreads = 256, kSumRuns = 8, kManyRows = 16;

struct ColumnSum {
  const float* from;  // [count, size], rows `stride` apart, a multiple of 4, 16-byte aligned
  long stride;
  int count;
  void* to;  // [size]
  long size;
  bool fp32 = false;          // `to` is, whatever the launch's dtype
  const void* pre = nullptr;  // [size] in it, or null: the sum goes back through GELU
};
struct ColumnSums {
  ColumnSum sums[kMaxSums];
  int blocks[kMaxSums];  // of each
  bool vector[kMaxSums];
  int count;

  void add(const ColumnSum& sum) {
    if (sum.to && sum.size) sums[count++] = sum;
  }
};

// Elements of a row of partial sums with their padding.
inline long padded(long size) { return ceil_div(size, 4) * 4; }

template <class T>
__global__ void __launch_bounds__(kSumThreads) add_columns(ColumnSums p) {
  __shared__ float runs[kSumRuns][kSumThreads / kSumRuns][kGroup<T>];
  int block = blockIdx.x;
  ColumnSum sum = p.sums[0];
  bool vector = p.vector[0];
#pragma unroll
  for (int i = 1, first = p.blocks[0]; i < kMaxSums; ++i) {
    if (i < p.count && static_cast<int>(blockIdx.x) >= first) {
      sum = p.sums[i], vector = p.vector[i];
      block = static_cast<int>(blockIdx.x) - first;
    }
    if (i < p.count) first += p.blocks[i];
  }
  const bool many = sum.count > kManyRows;
  const int width = many ? kSumThreads / kSumRuns : kSumThreads;
  const int lane = static_cast<int>(threadIdx.x) % width;
  const int run = static_cast<int>(threadIdx.x) / width;
  const long first = (static_cast<long>(block) * width + lane) * kGroup<T>;
  const long left = sum.size - first;
  const int each = many ? static_cast<int>(ceil_div(sum.count, kSumRuns)) : sum.count;
  float total[kGroup<T>] = {};
  if (left > 0)
    for (int row = run * each; row < min(sum.count, (run + 1) * each); ++row)
      add_group(total, sum.from + row * sum.stride + first, left, left >= kGroup<T>);
  if (many) {
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) runs[run][lane][e] = total[e];
    __syncthreads();
    if (run > 0) return;
#pragma unroll
    for (int other = 1; other < kSumRuns; ++other)
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) total[e] += runs[other][lane][e];
  }
  if (left <= 0) return;
  vector = vector && left >= kGroup<T>;
  if (sum.pre) through_gelu(total, static_cast<const T*>(sum.pre) + first, left, vector);
  if (sum.fp32)
    store_group(static_cast<float*>(sum.to) + first, total, left, vector);
  else
    store_group(static_cast<T*>(sum.to) + first, total, left, vector);
}

template <class T>
void launch_column_sums(ColumnSums& p, const Gpu& gpu) {
  int blocks = 0;
  for (int i = 0; i < p.count; ++i) {
    const long width = p.sums[i].count > kManyRows ? kSumThreads / kSumRuns : kSumThreads;
    p.blocks[i] = static_cast<int>(ceil_div(p.sums[i].size, width * kGroup<T>));
    p.vector[i] = is_vector(p.sums[i].to, 0) && is_vector(p.sums[i].pre, 0);
    blocks += p.blocks[i];
  }
  BF_LAUNCH(add_columns<T>, blocks, kSumThreads, 0, gpu, p);
}

}  // namespace
}  // namespace bf::cuda
