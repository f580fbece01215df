// Vectors by the compiler's own vector types, one source for every instruction set.
// This header is compiled once for each set (BF_ISA names it). Everything here has internal
// linkage: a shared inline function could be merged with one that was compiled for another set.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/dtype.h"

#ifndef BF_ISA
#error "kernel units are compiled with -DBF_ISA=<instruction set>"
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define BF_INLINE static inline __attribute__((always_inline))
#define BF_INLINE_MEMBER inline __attribute__((always_inline))

namespace bf::BF_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <int W>
struct Simd {
  typedef float F __attribute__((vector_size(4 * W)));
  typedef std::int32_t I __attribute__((vector_size(4 * W)));
  typedef std::uint32_t U __attribute__((vector_size(4 * W)));
  typedef std::uint16_t H __attribute__((vector_size(2 * W)));
};
using F = Simd<kLanes>::F;
using I = Simd<kLanes>::I;
using U = Simd<kLanes>::U;
using H = Simd<kLanes>::H;

BF_INLINE F splat(float x) { return x - F{}; }  // x - 0 is x, also for -0; x + 0 is not
BF_INLINE F select(I mask, F a, F b) { return (F)((mask & (I)a) | (~mask & (I)b)); }
BF_INLINE F vmax(F a, F b) { return a > b ? a : b; }
BF_INLINE F vmin(F a, F b) { return a < b ? a : b; }
BF_INLINE F vabs(F a) { return (F)((I)a & 0x7fffffff); }

// ---- half precision ----
BF_INLINE F from_bits(H h, bf16) { return (F)(__builtin_convertvector(h, U) << 16); }
BF_INLINE H to_bits(F x, bf16) {  // nearest even; a NaN stays a NaN
  U u = (U)x;
  U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  U quiet = (u >> 16) | 0x40;
  U nan = (U)((u & 0x7fffffff) > 0x7f800000u);
  return __builtin_convertvector((nan & quiet) | (~nan & rounded), H);
}

#if defined(__F16C__) && defined(__AVX512F__)
// (The masked forms: gcc 12 warns of an uninitialised register in the plain ones.)
BF_INLINE F from_bits(H h, f16) { return (F)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h); }
BF_INLINE H to_bits(F x, f16) {
  return (H)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__)
BF_INLINE F from_bits(H h, f16) { return (F)_mm256_cvtph_ps((__m128i)h); }
BF_INLINE H to_bits(F x, f16) { return (H)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#else
// Rescaling by 2^112 makes subnormals right; the top exponent is inf or NaN.
BF_INLINE F from_bits(H h, f16) {
  U u = __builtin_convertvector(h, U), magnitude = u & 0x7fff;
  U special = (U)(magnitude > 0x7bffu);
  F scaled = (F)(magnitude << 13) * 0x1p112f;
  return (F)((U)scaled | (special & 0x7f800000u) | ((u & 0x8000) << 16));
}
// Adding a power of two 13 places up rounds to the ten bits of a half.
BF_INLINE H to_bits(F x, f16) {
  U u = (U)x, doubled = u << 1;
  F base = (vabs(x) * 0x1p112f) * 0x1p-110f;
  U bias = doubled & 0xff000000u;
  U low = (U)(bias < 0x71000000u);
  bias = (low & 0x71000000u) | (~low & bias);
  U sum = (U)((F)((bias >> 1) + 0x07800000u) + base);
  U half = ((sum >> 13) & 0x7c00) + (sum & 0xfff);
  U nan = (U)(doubled > 0xff000000u);
  return __builtin_convertvector(((u >> 16) & 0x8000) | (nan & 0x7e00) | (~nan & half), H);
}
#endif

// ---- memory ----
BF_INLINE F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
BF_INLINE F load(const T* p) {
  H h;
  std::memcpy(&h, p, sizeof h);
  return from_bits(h, T{});
}
BF_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
template <class T>
BF_INLINE void store(T* p, F v) {
  H h = to_bits(v, T{});
  std::memcpy(p, &h, sizeof h);
}
template <class T>
BF_INLINE F load_n(const T* p, int n) {  // n < kLanes elements, zeros behind
  T buffer[kLanes] = {};
  std::memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}
template <class T>
BF_INLINE void store_n(T* p, F v, int n) {
  T buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, n * sizeof(T));
}

// Calls body(i, n): n = kLanes for whole vectors, then once for what is left.
template <class Body>
BF_INLINE void for_lanes(long count, Body body) {
  long i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, kLanes);
  if (i < count) body(i, static_cast<int>(count - i));
}
template <class T>
BF_INLINE F load_some(const T* p, int n) {
  return n == kLanes ? load(p) : load_n(p, n);
}
template <class T>
BF_INLINE void store_some(T* p, F v, int n) {
  n == kLanes ? store(p, v) : store_n(p, v, n);
}

template <class T>
static void convert_row(const T* src, float* dst, long n) {
  for_lanes(n, [&](long i, int m) { store_some(dst + i, load_some(src + i, m), m); });
}

// ---- sums in one fixed order ----
// Lane i meets lane i + Half, until one is left. (The vector stays in its register: an address of
// it would send what the caller adds up through memory.)
template <int Half, class Join>
BF_INLINE float join_lanes(F v, Join join) {
#if defined(__clang__)
  for (int i = 0; i < Half; ++i) v[i] = join(v[i], v[i + Half]);
#else
  I other;
  for (int l = 0; l < kLanes; ++l) other[l] = l ^ Half;
  v = join(v, __builtin_shuffle(v, other));
#endif
  if constexpr (Half > 1)
    return join_lanes<Half / 2>(v, join);
  else
    return v[0];
}
BF_INLINE float sum_lanes(F v) {
  return join_lanes<kLanes / 2>(
      v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}
BF_INLINE float max_lanes(F v) {
  return join_lanes<kLanes / 2>(
      v, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

// ---- functions ----
// exp(x) for x <= 88, about 1 ulp; results below 2^-126 are 0. Cody-Waite reduction and a degree 6
// polynomial.
BF_INLINE F vexp(F x) {
  const F magic = splat(0x1.8p23f);
  F n = x * 1.44269504088896341f + magic;  // the low bits of n hold round(x / ln 2)
  U exponent = (U)n << 23;
  n -= magic;
  F r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  F p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  F y = (F)((U)p + exponent);
  return select(x != x, x, select(x < -87.33654f, F{}, y));  // any NaN stays one
}

// Phi(-u) for u >= 0, given e = exp(-u^2 / 2): erfc(z) = t Q(t) exp(-z^2), t = 1 / (1 + 0.37 z), z
// = u / sqrt 2. Q is a degree 8 fit, relative error 7e-9 for z <= 6; smooth and positive beyond, so
// the tail falls to 0 without a wiggle.
BF_INLINE F normal_tail(F u, F e) {
  F t = 1.0f / (1.0f + u * 0.261629509f);
  F q = splat(0.03239331229f);
  q = q * t - 0.1587135889f;
  q = q * t + 0.2583581135f;
  q = q * t - 0.160211374f;
  q = q * t + 0.1679475997f;
  q = q * t + 0.04768466723f;
  q = q * t + 0.1046296031f;
  q = q * t + 0.1034906037f;
  q = q * t + 0.1044210663f;
  return q * t * e;
}
BF_INLINE F normal_cdf(F x, F e) {
  F tail = normal_tail(vabs(x), e);
  return select(x < 0.0f, tail, 1.0f - tail);
}
BF_INLINE F vgelu(F x) { return x * normal_cdf(x, vexp(x * x * -0.5f)); }
// d gelu / dx = Phi(x) + x phi(x); phi is 0 before x overflows its product.
BF_INLINE F vgelu_slope(F x) {
  F e = vexp(x * x * -0.5f);
  return normal_cdf(x, e) + select(e > 0.0f, x * e * 0.398942280f, F{});
}

#if !defined(__clang__)
// One round of a transpose: of each two vectors S apart, what `low` and what `high` takes of both.
template <int S, int Count>
BF_INLINE void exchange(F* v, I low, I high) {
#pragma GCC unroll 16
  for (int pair = 0; pair < Count / 2; ++pair) {
    const int i = pair / S * 2 * S + pair % S;
    const F a = v[i], b = v[i + S];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + S] = __builtin_shuffle(a, b, high);
  }
}
// Transposes kLanes vectors in place in two steps: of blocks of 4 x 4, then inside the blocks of
// four vectors. Every shuffle is one instruction in every instruction set.
BF_INLINE void transpose_blocks(F v[kLanes]) {
  I even, odd;  // quarters of two vectors
  for (int l = 0; l < kLanes; ++l) {
    even[l] = l / 4 * 8 + l % 4;
    odd[l] = even[l] + 4;
  }
  if constexpr (kLanes > 4) exchange<4, kLanes>(v, even, odd);
  if constexpr (kLanes > 8) exchange<8, kLanes>(v, even, odd);
}
BF_INLINE void transpose_inside(F v[4]) {
  I low, high;  // halves of the quarters of two vectors, interleaved
  for (int l = 0; l < kLanes; ++l) {
    low[l] = l / 4 * 4 + l % 4 / 2 + l % 2 * kLanes;
    high[l] = low[l] + 2;
  }
  exchange<2, 4>(v, low, high);
  exchange<1, 4>(v, low, high);
}
BF_INLINE void transpose(F v[kLanes]) {
  transpose_blocks(v);
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) transpose_inside(v + i);
}
#endif

}  // namespace
}  // namespace bf::BF_ISA
