// erf GELU and its derivative in fp32, the formulas of simd.h: absolute error at most
// 4 * 2^-23 * max(1, |x|), the tail falls to -0 without a wiggle.
#pragma once
#include "common/vector.cuh"

namespace bf::cuda {
namespace {

// exp(-x^2 / 2). The error of the argument grows with it, but the result shrinks faster; results
// below 2^-126 are 0.
__device__ __forceinline__ float normal_exp(float x) {
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * x * -0.721347520444481704f));
  return e;
}

// Phi(x), given e = exp(-x^2 / 2). Of z = |x| / sqrt 2, erfc(z) = t Q(t) exp(-z^2) with
// t = 1 / (1 + 0.37 z); Q is a degree 8 fit, relative error 7e-9 for z <= 6, smooth and positive
// beyond.
__device__ __forceinline__ float normal_cdf(float x, float e) {
  float t;  // within 1 ulp
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(fmaf(fabsf(x), 0.261629509f, 1.0f)));
  float q = 0.03239331229f;
  q = fmaf(q, t, -0.1587135889f);
  q = fmaf(q, t, 0.2583581135f);
  q = fmaf(q, t, -0.160211374f);
  q = fmaf(q, t, 0.1679475997f);
  q = fmaf(q, t, 0.04768466723f);
  q = fmaf(q, t, 0.1046296031f);
  q = fmaf(q, t, 0.1034906037f);
  q = fmaf(q, t, 0.1044210663f);
  const float tail = q * t * e;
  return x < 0.0f ? tail : 1.0f - tail;
}

__device__ __forceinline__ float gelu(float x) { return x * normal_cdf(x, normal_exp(x)); }

// d gelu / dx = Phi(x) + x phi(x); phi is 0 before x overflows its product.
__device__ __forceinline__ float gelu_slope(float x) {
  const float e = normal_exp(x);
  return normal_cdf(x, e) + (e > 0.0f ? x * e * 0.398942280f : 0.0f);
}

// A group of gradients of GELU's results, rounded to T as if they had been stored, times its slope
// at `pre`; `count` and `vector` as in load_group.
template <class T>
__device__ __forceinline__ void through_gelu(float (&v)[kGroup<T>], const T* pre, long count,
                                             bool vector) {
  float x[kGroup<T>];
  load_group(x, pre, count, vector);
#pragma unroll
  for (int i = 0; i < kGroup<T>; ++i) v[i] = to_float(from_float<T>(v[i])) * gelu_slope(x[i]);
}

}  // namespace
}  // namespace bf::cuda
