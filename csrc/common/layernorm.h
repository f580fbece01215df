// LayerNorm of one row that lies in fp32, two passes (mean, then squared deviations), sums in one
// fixed order.
#pragma once
#include "common/parallel.h"
#include "common/simd.h"

namespace bf::BF_ISA {
namespace {

template <class Term>
BF_INLINE float sum_row(long n, Term term) {  // four accumulators hide the latency of the adds
  F acc[4] = {};
  long i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) acc[j] += term(i + j * kLanes);
  for (; i + kLanes <= n; i += kLanes) acc[0] += term(i);
  float tail = 0;
  for (; i < n; ++i) tail += term(i, 0);
  return sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3])) + tail;
}

struct SumOf {
  const float* z;
  BF_INLINE_MEMBER F operator()(long i) const { return load(z + i); }
  BF_INLINE_MEMBER float operator()(long i, int) const { return z[i]; }
};
struct SquaredDeviation {
  const float* z;
  float mean;
  BF_INLINE_MEMBER F operator()(long i) const {
    const F d = load(z + i) - mean;
    return d * d;
  }
  BF_INLINE_MEMBER float operator()(long i, int) const { return (z[i] - mean) * (z[i] - mean); }
};

// out[n] = (z - mean) * rstd * weight + bias; mean and rstd are written where the pointers are not
// null.
template <class T, class TOut>
static void layernorm_row(const float* z, long n, const T* weight, const T* bias, float eps,
                          TOut* out, float* mean_out, float* rstd_out) {
  const float mean = sum_row(n, SumOf{z}) / static_cast<float>(n);
  const float variance = sum_row(n, SquaredDeviation{z, mean}) / static_cast<float>(n);
  const float rstd = 1.0f / __builtin_sqrtf(variance + eps);
  for_lanes(n, [&](long i, int m) {
    const F x = (load_some(z + i, m) - mean) * rstd;
    store_some(out + i, x * load_some(weight + i, m) + load_some(bias + i, m), m);
  });
  if (mean_out) *mean_out = mean;
  if (rstd_out) *rstd_out = rstd;
}

// Backward of one row from its saved statistics. z(i, m) and dout(i, m) give m elements from i.
// With x = (z - mean) rstd and g = dout weight: dz = rstd (g - mean(g) - x mean(g x)); dout x and
// dout are added to the row block's column sums.
template <class T, class Z, class Dout>
static void layernorm_bwd_row(Z z, Dout dout, long n, const T* weight, float mean, float rstd,
                              float* dz, float* dweight, float* dbias) {
  F sum = {}, sum_x = {};
  for_lanes(n, [&](long i, int m) {  // lanes past n add nothing: dout is 0 there
    const F d = dout(i, m), x = (z(i, m) - mean) * rstd, g = d * load_some(weight + i, m);
    sum += g;
    sum_x += g * x;
    store_some(dweight + i, load_some(dweight + i, m) + d * x, m);
    store_some(dbias + i, load_some(dbias + i, m) + d, m);
  });
  const float mean_g = sum_lanes(sum) / static_cast<float>(n),
              mean_gx = sum_lanes(sum_x) / static_cast<float>(n);
  for_lanes(n, [&](long i, int m) {
    const F x = (z(i, m) - mean) * rstd, g = dout(i, m) * load_some(weight + i, m);
    store_some(dz + i, (g - mean_g - x * mean_gx) * rstd, m);
  });
}

// Two-stage column sums: row(t, sums) adds row t to the `width` sums of its block of rows; the
// blocks are then added in order and handed to finish(i, m, sums from i). Blocks have a fixed size,
// so the result does not depend on the threads.
template <class Row, class Finish>
static void column_sums(long rows, long width, int threads, Row row, Finish finish) {
  constexpr long kBlock = 32, kColumns = 8 * kLanes;
  const long blocks = ceil_div(rows, kBlock), stride = round_up(width, 16);
  float* sums = static_cast<float*>(scratch(4 * stride * (blocks + 1), Slot::kSums));
  parallel_tasks(threads, blocks, [&](long block, int) {
    float* mine = sums + block * stride;
    std::memset(mine, 0, 4 * stride);
    for (long t = block * kBlock; t < rows && t < (block + 1) * kBlock; ++t) row(t, mine);
  });
  parallel_tasks(threads, ceil_div(width, kColumns), [&](long task, int) {
    const long end = (task + 1) * kColumns < width ? (task + 1) * kColumns : width;
    for (long i = task * kColumns; i < end; i += kLanes) {
      F total = {};
      for (long block = 0; block < blocks; ++block) total += load(sums + block * stride + i);
      finish(i, static_cast<int>(end - i < kLanes ? end - i : kLanes), total);
    }
  });
}

// Writes the column sums of layernorm_bwd_row (weights first, biases from `stride`) to dweight and
// dbias [n].
template <class T, class Row>
static void layernorm_bwd(long rows, long n, int threads, T* dweight, T* dbias, Row row) {
  const long stride = round_up(n, kLanes);
  column_sums(
      rows, 2 * stride, threads, [&](long t, float* sums) { row(t, sums, sums + stride); },
      [&](long i, int, F total) {
        const long at = i < stride ? i : i - stride;
        if (at < n)
          store_some((i < stride ? dweight : dbias) + at, total,
                     static_cast<int>(n - at < kLanes ? n - at : kLanes));
      });
}

}  // namespace
}  // namespace bf::BF_ISA
