// Packing of a row-major matrix into panels: dst[panel][k][kNR] from src[row][k], rows past `rows`
// as zeros.
#pragma once
#include "product/gemm.h"

namespace bf::BF_ISA {
namespace {

// One panel; TS -> TD converts (fp32 panels of half rows for attention), equal types copy bits.
template <class TS, class TD>
static void pack_panel(const TS* src, long stride, long rows, long k, TD* dst) {
  if (rows > kNR) rows = kNR;
  long done = 0;
#if !defined(__clang__)
  if constexpr (sizeof(TD) == sizeof(float)) {
    const auto turn = [&](const TS* from, TD* to, long height) __attribute__((always_inline)) {
      F v[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) v[r] = r < height ? load(from + r * stride) : F{};
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + i * kNR, v[i]);
    };
    for (int first = 0; first < kNR; first += kLanes) {
      const TS* from = src + first * stride;
      TD* to = dst + first;
      for (done = 0; done + kLanes <= k; done += kLanes)
        if (rows - first >= kLanes)
          turn(from + done, to + done * kNR, kLanes);
        else
          turn(from + done, to + done * kNR, rows - first);
    }
  }
#endif
  for (long c = done; c < k; ++c)
    for (int r = 0; r < kNR; ++r) {
      if constexpr (sizeof(TD) == sizeof(TS)) {
        dst[c * kNR + r] = r < rows ? src[r * stride + c] : TD{};
      } else {
        dst[c * kNR + r] = r < rows ? load_n(src + r * stride + c, 1)[0] : 0.0f;
      }
    }
}

// What rounding to T makes of numbers in fp32.
template <class T>
static void round_to(float* x, long count) {
  if constexpr (sizeof(T) < sizeof(float))
    for_lanes(count, [&](long i, int m) {
      store_some(x + i, from_bits(to_bits(load_some(x + i, m), T{}), T{}), m);
    });
}

// pack_panel of a weight in fp32 that counts as rounded to T.
template <class T>
static void pack_rounded(const float* src, long stride, long rows, long k, float* dst) {
  pack_panel(src, stride, rows, k, dst);
  round_to<T>(dst, k * kNR);
}

// The other direction: dst[panel][row][kNR] from src[row][column] in fp32; columns past `columns`
// as zeros. `panels` of them from column 0, `dst_rows` apart (the rows of a whole panel, of which
// these may be a part).
template <class T>
static void pack_columns(const T* src, long stride, long rows, long columns, float* dst,
                         long dst_rows) {
  for (long row = 0; row < rows; ++row)
    for (long column = 0; column < columns; column += kNR) {
      float* to = dst + column * dst_rows + row * kNR;
      const T* from = src + row * stride + column;
      for (long i = 0; i < kNR; i += kLanes) {
        const long left = columns - column - i;
        store(to + i, left >= kLanes ? load(from + i)
                      : left > 0     ? load_n(from + i, static_cast<int>(left))
                                     : F{});
      }
    }
}

}  // namespace
}  // namespace bf::BF_ISA
