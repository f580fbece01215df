// The operands of gradients in bf16 on the dot instruction: pairs of neighbours along what is
// summed, which are rows here: of the weights for dx, tokens for dweight. dy counts as rounded.
#pragma once
#include "product/dot.h"

namespace bf::BF_ISA {
namespace {

#if defined(__AVX512BF16__)

// kLanes pairs (even[i], odd[i]) of numbers that are bf16 in fp32.
BF_INLINE F pairs_across(F even, F odd) { return (F)((U)odd | (U)even >> 16); }
BF_INLINE F rounded(F x) { return from_bits(to_bits(x, bf16{}), bf16{}); }

// pack_columns (pack.h) of pairs: dst[panel][pair][kNR] of the pairs [first, last) of `rows` rows,
// of `pairs_of(rows)` in a whole panel; row(i) is where row i begins.
template <class Row>
static void pack_column_pairs(Row row, long rows, long first, long last, long columns, Pair* dst) {
  const long all = pairs_of(rows);
  for (long pair = first; pair < last; ++pair) {
    const bf16 *even = row(2 * pair), *odd = 2 * pair + 1 < rows ? row(2 * pair + 1) : nullptr;
    for (long column = 0; column < panels(columns) * kNR; column += kLanes) {
      const long left = columns - column;
      const int count = static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes);
      const F low = count ? load_some(even + column, count) : F{};
      const F high = count && odd ? load_some(odd + column, count) : F{};
      const F v = pairs_across(low, high);
      Pair* to = dst + column / kNR * kNR * all + pair * kNR + column % kNR;
      std::memcpy(to, &v, sizeof v);
    }
  }
}

// Columns [first, first + width) of dy, rounded: to[pair of tokens][width].
static inline void copy_column_pairs(const float* dy, long stride, long rows, long first,
                                     long width, Pair* to) {
  for (long t = 0; t < rows; t += 2, to += width) {
    const float *even = dy + t * stride + first, *odd = even + stride;
    for_lanes(width, [&](long i, int m) {
      const F high = t + 1 < rows ? rounded(load_some(odd + i, m)) : F{};
      const F v = pairs_across(rounded(load_some(even + i, m)), high);
      std::memcpy(to + i, &v, m * sizeof(Pair));
    });
  }
}

// The rows of dy, rounded, in pairs of columns.
static Rows<Pair> rounded_pairs(const float* dy, long rows, long columns, int threads) {
  const long k = pairs_of(columns);
  Pair* copy = static_cast<Pair*>(scratch(rows * k * sizeof(Pair), Slot::kPairs));
  parallel_tasks(threads, rows,
                 [&](long row, int) { copy_pairs(dy + row * columns, columns, copy + row * k); });
  return {copy, k, rows, k};
}

#endif

}  // namespace
}  // namespace bf::BF_ISA
