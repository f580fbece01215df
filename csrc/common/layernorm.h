// LayerNorm of one row that lies in fp32, two passes (mean, then squared deviations), sums in one fixed order.
#pragma once
#include "common/simd.h"

namespace bf {
namespace BF_ISA {
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

// out[n] = (z - mean) * rstd * weight + bias; mean and rstd are written where the pointers are not null.
template <class T, class TOut>
static void layernorm_row(const float* z, long n, const T* weight, const T* bias, float eps, TOut* out, float* mean_out,
                          float* rstd_out) {
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

}  // namespace
}  // namespace BF_ISA
}  // namespace bf
