// exp as a power of two, as the softmax of attention and of the cross entropy use it.
#pragma once

namespace bf::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// 2^x; below 2^-126 it is 0.
__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What maxima of logits are taken from before they are raised: a row that is all -inf so far must
// give exp(-inf) = 0, not NaN.
__device__ __forceinline__ float finite_base(float max) { return max == -INFINITY ? 0.0f : max; }

}  // namespace
}  // namespace bf::cuda
