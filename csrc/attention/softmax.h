// Softmax of a tile of query rows, a block of keys at a time (Milakov and Gimelshein 2018): scores
// come in units of log 2, so that exp is 2^x; a row keeps its maximum and sum so far.
#pragma once
#include "product/gemm.h"

namespace bf::BF_ISA {
namespace {

// 2^x for x <= 0, within 0.7 ulp; results below 2^-126 are 0. A fit of degree 6 on [-1/2, 1/2].
BF_INLINE F vexp2(F x) {
  const F magic = splat(0x1.8p23f + 127);  // the low bits of `biased` are those of 2^n's exponent
  const F biased = x + magic, n = biased - magic, r = x - n;
  F p = splat(1.53533620e-4f);
  p = p * r + 1.33988746e-3f;
  p = p * r + 9.61843736e-3f;
  p = p * r + 5.55033247e-2f;
  p = p * r + 2.40226479e-1f;
  p = p * r + 6.93147203e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-126.0f), _CMP_NLT_UQ);
  return (F)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
  return select(x < -126.0f, F{}, p * (F)((U)biased << 23));  // any NaN stays one
#endif
}

struct RowStates {
  float max[kMR], sum[kMR];
  float rescale[kMR];  // by the last block: of what was added up before it
};

// scores [rows, ld] of `keys` keys become 2^(score - max), zeros up to whole vectors.
BF_INLINE void softmax_block(float* scores, long ld, int rows, long keys, bool first,
                             RowStates& state) {
  const float lowest = -__builtin_inff();
  const long whole = keys / kLanes * kLanes;
  I valid;
  for (int l = 0; l < kLanes; ++l) valid[l] = l < keys - whole ? -1 : 0;
  for (int r = 0; r < rows; ++r) {
    float* s = scores + r * ld;
    F most = splat(lowest), others = most;
    long i = 0;
    for (; i + 2 * kLanes <= whole; i += 2 * kLanes) {
      most = vmax(load(s + i), most);
      others = vmax(load(s + i + kLanes), others);
    }
    if (i < whole) others = vmax(load(s + i), others);
    if (whole < keys) {
      const F last = select(valid, load(s + whole), splat(lowest));
      store(s + whole, last);
      most = vmax(last, most);
    }
    const float max = max_lanes(vmax(most, others));
    if (first) {
      state.max[r] = max;
    } else {
      const float before = state.max[r];
      state.max[r] = max > before ? max : before;
      state.rescale[r] = vexp2(splat(before - state.max[r]))[0];
    }
  }
  for (int r = 0; r < rows; ++r) {
    float* s = scores + r * ld;
    const float max = state.max[r];
    F sum = {};
    for (long i = 0; i < keys; i += kLanes) {
      const F e = vexp2(load(s + i) - max);
      store(s + i, e);
      sum += e;
    }
    state.sum[r] = sum_lanes(sum) + (first ? 0.0f : state.sum[r] * state.rescale[r]);
  }
}

}  // namespace
}  // namespace bf::BF_ISA
