// Two bf16 neighbours along k in 32 bits, which is what a step of k is to the dot instruction of
// AVX512-BF16. The code of gemm.h moves pairs as it moves fp32, in vectors F of bits, and
// multiplies them by `multiply_add`. The instruction adds both products to the sum in fp32, nearest
// even, whatever the caller's floating-point mode; it takes subnormal numbers and sums as 0.
#pragma once
#include "common/simd.h"

namespace bf::BF_ISA {
namespace {

struct Pair {
  bf16 even, odd;
};
BF_INLINE long pairs_of(long elements) { return (elements + 1) / 2; }

// One number T, which lies where an fp32 may, in every lane.
template <class T>
BF_INLINE F spread(float x, T) {
  return splat(x);
}
// sum + a b, of vectors of the numbers T.
template <class T>
BF_INLINE F multiply_add(F a, F b, F sum, T) {
  return sum + a * b;
}

#if defined(__AVX512BF16__)
BF_INLINE F spread(float x, Pair) {  // as integers: Zen 4 is slower with the other broadcast
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (F)(bits - I{});
}
BF_INLINE F multiply_add(F a, F b, F sum, Pair) {
  return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

BF_INLINE F load(const Pair* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// kLanes pairs of what lies as bf16, or in fp32 and counts as rounded.
BF_INLINE F load_pairs(const bf16* p) { return load(reinterpret_cast<const Pair*>(p)); }
BF_INLINE F load_pairs(const float* p) {
  const H halves[2] = {to_bits(load(p), bf16{}), to_bits(load(p + kLanes), bf16{})};
  return load(reinterpret_cast<const Pair*>(halves));
}
// The same of a row that ends after `elements`; zeros behind.
template <class S>
BF_INLINE F load_pairs(const S* p, long elements) {
  if (elements >= 2 * kLanes) return load_pairs(p);
  S buffer[2 * kLanes] = {};
  if (elements > 0) std::memcpy(buffer, p, elements * sizeof(S));
  return load_pairs(buffer);
}
#endif

}  // namespace
}  // namespace bf::BF_ISA
