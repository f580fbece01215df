// Products of bf16 on the dot instruction: gemm.h and linear.h on pairs of k (pair.h) in the place
// of numbers in fp32. So a panel is [k/2][kNR] pairs, a block of K has twice as many numbers, and
// an odd k is filled up with a zero. What lies in pairs is read as it stands; else (an odd k,
// stride or address) a copy in pairs is made on the way.
#pragma once
#include "product/pack.h"

namespace bf::BF_ISA {
namespace {

#if defined(__AVX512BF16__)

// Of one panel of a weight, `rows` (<= kLanes) from src and kLanes pairs of k: dst[pair][kNR].
// Whole: neither the rows nor the elements of a row end before.
template <bool kWhole, class S>
BF_INLINE void turn_pairs(const S* src, long stride, long rows, long elements, Pair* dst) {
  F v[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r)
    v[r] = kWhole     ? load_pairs(src + r * stride)
           : r < rows ? load_pairs(src + r * stride, elements)
                      : F{};
  transpose(v);
  const long pairs = kWhole || elements >= 2 * kLanes ? kLanes : pairs_of(elements);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (i < pairs) std::memcpy(dst + i * kNR, v + i, sizeof(F));
}

// One panel of a weight [rows, elements] in pairs: dst[pair][kNR]; bf16, or fp32 to be rounded.
template <class S>
static void pack_pairs(const S* src, long stride, long rows, long elements, Pair* dst) {
  for (int first = 0; first < kNR; first += kLanes) {
    const long left = rows - first;
    for (long k = 0; k < elements; k += 2 * kLanes) {
      const S* from = src + first * stride + k;
      Pair* to = dst + k / 2 * kNR + first;
      if (left >= kLanes && elements - k >= 2 * kLanes)
        turn_pairs<true>(from, stride, left, elements - k, to);
      else
        turn_pairs<false>(from, stride, left, elements - k, to);
    }
  }
}

template <class S>
static void copy_pairs(const S* src, long elements, Pair* dst) {
  for (; elements >= 2 * kLanes; elements -= 2 * kLanes, src += 2 * kLanes, dst += kLanes) {
    const F v = load_pairs(src);
    std::memcpy(dst, &v, sizeof v);
  }
  if (elements > 0) {
    const F v = load_pairs(src, elements);
    std::memcpy(dst, &v, pairs_of(elements) * sizeof(Pair));
  }
}

BF_INLINE bool in_pairs(const void* data, long stride, long k) {
  return reinterpret_cast<std::uintptr_t>(data) % sizeof(Pair) == 0 && stride % 2 == 0 &&
         k % 2 == 0;
}

// As PlainPanels of linear.h, of weights that lie as S: bf16, or float to be rounded.
template <class S, class Weights>
struct PlainPairs {
  static constexpr bool kPlain = true;
  Weights weights;
  long each, elements;  // panels of one weight, its k

  long count() const { return each * weights.count; }
  const S* at(long p, long k0) const {
    return static_cast<const S*>(weights.data[p / each]) + p % each * kNR * stride(p) + 2 * k0;
  }
  long stride(long p) const { return weights.stride[p / each]; }
  long columns(long p) const { return weights.n - p % each * kNR; }
  long left(long k0, long kc) const {
    return elements - 2 * k0 < 2 * kc ? elements - 2 * k0 : 2 * kc;
  }
  const Pair* block(long p, long k0, long kc, float* buffer) const {
    Pair* to = reinterpret_cast<Pair*>(buffer);
    pack_pairs(at(p, k0), stride(p), columns(p), left(k0, kc), to);
    return to;
  }
  Fetch fetch(long p, long k0, long) const {
    const auto* from = reinterpret_cast<const char*>(at(p, k0));
    constexpr long size = sizeof(S);
    return {from, stride(p) * size, 8 * size, kNR / 4};
  }
  const float* rows(long p, long k0, long kc, float* buffer, long* row_stride) const {
    if constexpr (sizeof(S) == sizeof(bf16)) {
      if (columns(p) >= kNR && in_pairs(at(p, k0), stride(p), elements)) {
        *row_stride = stride(p) / 2;
        return reinterpret_cast<const float*>(at(p, k0));
      }
    }
    *row_stride = kc;
    for (long r = 0; r < kNR; ++r) {
      Pair* to = reinterpret_cast<Pair*>(buffer + r * kc);
      if (r < columns(p))
        copy_pairs(at(p, k0) + r * stride(p), left(k0, kc), to);
      else
        std::memset(to, 0, kc * sizeof(Pair));
    }
    return buffer;
  }
};

// The rows in pairs: themselves, or a copy in scratch.
static Rows<Pair> rows_in_pairs(const Rows<bf16>& x) {
  const long k = pairs_of(x.k);
  if (in_pairs(nullptr, x.stride, x.k))
    return {reinterpret_cast<const Pair*>(x.data), x.stride / 2, x.count, k};
  Pair* copy = static_cast<Pair*>(scratch(x.count * k * sizeof(Pair), Slot::kRows));
  for (long r = 0; r < x.count; ++r) copy_pairs(x.data + r * x.stride, x.k, copy + r * k);
  return {copy, k, x.count, k};
}

// Calls run(rows, panels) with those that panels_product takes; Prepacked is its type for pairs.
template <class Prepacked, class Weights, class Run>
static void with_pairs(const Rows<bf16>& x, const Weights& weights, Run run) {
  const long each = panels(weights.n);
  const Rows<Pair> rows = rows_in_pairs(x);
  if (weights.stride[0] == 0)
    run(rows, Prepacked{weights, each, rows.k});
  else if (weights.rounded)
    run(rows, PlainPairs<float, Weights>{weights, each, x.k});
  else
    run(rows, PlainPairs<bf16, Weights>{weights, each, x.k});
}

#endif

}  // namespace
}  // namespace bf::BF_ISA
