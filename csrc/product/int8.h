// Products with weights in int8: x is rounded to 8 bits on its way into a block, group of k by
// group of k of each row; a group's sums are exact in int32, and the epilogue gets the whole in
// fp32.
//
// A group's scale in a row of x is its largest magnitude / 127, outlier columns left out, so that
// its bits depend on nothing but the row. kFold activations stand in a word of 32 bits, which one
// instruction multiplies with as many numbers of each of kLanes columns. Sums of 255 * 127 * k fit
// for any k below 2^16. A row that holds inf or NaN gives NaN; a group whose largest magnitude is
// below 2^-100 counts as zeros.
#pragma once
#include "common/ranges.h"
#include "product/gemm.h"
#include "product/int8_weight.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bf::BF_ISA {
namespace {

// What one word holds, and acc[lane] += sum over a word's k of activation * weight[lane].
#if defined(__AVX512VNNI__)
constexpr int kFold = 4, kOffset = 128;  // the instruction takes activations without a sign
using Activation = std::uint8_t;
using WeightWords = I;
BF_INLINE WeightWords load_words(const std::int8_t* p) {
  WeightWords v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
BF_INLINE I dot(I acc, I word, WeightWords w) {
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)word, (__m512i)w);
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kFold = 4, kOffset = 0;
using Activation = std::int8_t;
using WeightWords = int8x16_t;
BF_INLINE WeightWords load_words(const std::int8_t* p) { return vld1q_s8(p); }
BF_INLINE I dot(I acc, I word, WeightWords w) {
  return (I)vdotq_s32((int32x4_t)acc, (int8x16_t)word, w);
}
#elif defined(__x86_64__)  // pairs of 16 bits: nothing saturates, as it would in vpmaddubsw
constexpr int kFold = 2, kOffset = 0;
using Activation = std::int16_t;
typedef std::int8_t WeightBytes __attribute__((vector_size(2 * kLanes)));
typedef std::int16_t WeightWords __attribute__((vector_size(4 * kLanes)));
BF_INLINE WeightWords load_words(const std::int8_t* p) {
  WeightBytes v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, WeightWords);
}
BF_INLINE I dot(I acc, I word, WeightWords w) {
#if defined(__AVX512F__)
  return acc + (I)_mm512_madd_epi16((__m512i)word, (__m512i)w);
#elif defined(__AVX2__)
  return acc + (I)_mm256_madd_epi16((__m256i)word, (__m256i)w);
#else
  return acc + (I)_mm_madd_epi16((__m128i)word, (__m128i)w);
#endif
}
#else
constexpr int kFold = 1, kOffset = 0;
using Activation = std::int32_t;
typedef std::int8_t WeightBytes __attribute__((vector_size(kLanes)));
using WeightWords = I;
BF_INLINE WeightWords load_words(const std::int8_t* p) {
  WeightBytes v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, I);
}
BF_INLINE I dot(I acc, I word, WeightWords w) { return acc + word * w; }
#endif

BF_INLINE long words(long k) { return ceil_div(k, kFold); }

// The nearest integers, halves to even.
BF_INLINE I to_nearest(F x) {
#if defined(__AVX512F__)
  return (I)_mm512_maskz_cvtps_epi32(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (I)_mm256_cvtps_epi32((__m256)x);
#elif defined(__x86_64__)
  return (I)_mm_cvtps_epi32((__m128)x);
#elif defined(__aarch64__)
  return (I)vcvtnq_s32_f32((float32x4_t)x);
#else
  return (I)(x + 0x1.8p23f) - 0x4b400000;
#endif
}

// A tile of rows: words one after the other, the rows' side by side in each.
struct Int8Tile {
  const std::int32_t* a;
  const float* scale;    // [groups][MR]
  const float* outlier;  // [outliers][MR]
};
// Which panel of a weight is multiplied, and the one that is fetched into L2 meanwhile.
struct Int8Panel {
  const Int8Weight& weight;
  long index, columns;  // columns: of all panels
  const std::int8_t* next;
};

// What the outlier columns add.
template <int MR>
BF_INLINE void int8_outliers(const Int8Tile& tile, const Int8Panel& panel, float* c) {
  constexpr int NV = kNR / kLanes;
  const Int8Weight& w = panel.weight;
  F y[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) y[r][v] = load(c + r * kNR + v * kLanes);
  const float* o = w.outlier_weight + panel.index * w.outliers * kNR;
  for (long j = 0; j < w.outliers; ++j, o += kNR) {
    F ov[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) ov[v] = load(o + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) y[r][v] += splat(tile.outlier[j * MR + r]) * ov[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * kNR + v * kLanes, y[r][v]);
}

template <int MR>
static void int8_micro(long count, const Int8Tile& tile, const Int8Panel& panel, float* c) {
  constexpr int NV = kNR / kLanes, kBytes = kNR * kFold;
  const Int8Weight& w = panel.weight;
  const std::int8_t* b = w.panels + panel.index * count * kBytes;
  const std::int8_t* ahead = panel.next;
  const std::int32_t *a = tile.a, *start = w.start + panel.index * kNR;
  const float *scale = tile.scale, *columns = w.scale + panel.index * kNR;
  std::memset(c, 0, 4 * MR * kNR);  // each group is added alike, so that each rounds alike
  for (long done = 0, group = w.group / kFold; done < count; done += group) {
    I sum[MR][NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      I first = {};
      if (kOffset) std::memcpy(&first, start + v * kLanes, sizeof first);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) sum[r][v] = first;
    }
    const long left = count - done < group ? count - done : group;
    for (long k = 0; k < left; ++k, b += kBytes, ahead += kBytes, a += MR) {
      WeightWords bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = load_words(b + v * kLanes * kFold);
#pragma GCC unroll 4
      for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(ahead + line, 0, 2);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[r][v] = dot(sum[r][v], a[r] - I{}, bv[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const F column = load(columns + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        float* to = c + r * kNR + v * kLanes;
        store(to, load(to) + __builtin_convertvector(sum[r][v], F) * scale[r] * column);
      }
    }
    start += panel.columns, columns += panel.columns, scale += MR;
  }
  if (w.outliers > 0) int8_outliers<MR>(tile, panel, c);
}

using Int8Micro = void (*)(long, const Int8Tile&, const Int8Panel&, float*);
static Int8Micro int8_micro_of(int rows) {
#define BF_MICRO(R) int8_micro<(R <= kMR ? R : kMR)>
  static constexpr Int8Micro table[] = {BF_MICRO(1), BF_MICRO(2),  BF_MICRO(3),  BF_MICRO(4),
                                        BF_MICRO(5), BF_MICRO(6),  BF_MICRO(7),  BF_MICRO(8),
                                        BF_MICRO(9), BF_MICRO(10), BF_MICRO(11), BF_MICRO(12)};
#undef BF_MICRO
  static_assert(kMR <= 12);
  return table[rows - 1];
}

// What `count` numbers of a row are multiplied by to be rounded, and what that is multiplied by.
struct Int8Scale {
  float inverse, scale;
};
static inline Int8Scale int8_scale(const float* x, long count) {
  I most = {};
  for_lanes(count, [&](long i, int m) {
    const I bits = (I)vabs(load_some(x + i, m));  // in order as the numbers are, inf and NaN last
    most = bits > most ? bits : most;
  });
  std::int32_t top = 0;
  for (int i = 0; i < kLanes; ++i) top = most[i] > top ? most[i] : top;
  if (top >= 0x7f800000) return {0, __builtin_nanf("")};
  if (top < 0x0d800000) return {0, 0};
  float largest;
  std::memcpy(&largest, &top, sizeof largest);
  return {127.0f / largest, largest / 127.0f};
}

// What a thread holds: a block of rows, rounded, tile by tile.
struct Int8Block {
  std::int32_t* a;
  float *scale, *outlier, *c;
  float* row;         // [words * kFold]: one in fp32, its outlier columns as zeros
  Activation* small;  // the same, rounded
  long first = -1, rows = 0;

  template <class T>
  void take(const Rows<T>& x, const Int8Weight& w, long first_row, long count) {
    if (first == first_row) return;
    first = first_row, rows = count;
    const Tiles tiles(rows);
    const long groups = ceil_div(x.k, w.group);
    const T* from = x.data + first * x.stride;
    for (long tile = 0, done = 0; tile < tiles.count; ++tile) {
      const int height = tiles.rows(tile);
      for (int r = 0; r < height; ++r, from += x.stride)
        take_row(from, x.k, w, height, a + done * words(x.k) + r, scale + done * groups + r,
                 outlier + done * w.outliers + r);
      done += height;
    }
  }

  // What belongs to the row stands `height` apart.
  template <class T>
  void take_row(const T* x, long k, const Int8Weight& w, long height, std::int32_t* to,
                float* scales, float* outliers) {
    const long padded = words(k) * kFold;
    convert_row(x, row, k);
    for (long i = k; i < padded; ++i) row[i] = 0;
    for (long j = 0; j < w.outliers; ++j) {
      outliers[j * height] = row[w.outlier[j]];
      row[w.outlier[j]] = 0;
    }
    for (long begin = 0; begin < padded; begin += w.group, scales += height) {
      const long count = padded - begin < w.group ? padded - begin : w.group;
      const Int8Scale s = int8_scale(row + begin, count);
      *scales = s.scale;
      round_group(row + begin, count, s.inverse);
      for (long i = 0; i < count / kFold; ++i, to += height)
        std::memcpy(to, small + i * kFold, sizeof *to);
    }
  }

  // Nothing is read of numbers that are multiplied by 0: they may be NaN.
  void round_group(const float* x, long count, float inverse) {
    typedef Activation V __attribute__((vector_size(kLanes * sizeof(Activation))));
    for_lanes(count, [&](long i, int m) {
      const I q = inverse > 0 ? to_nearest(load_some(x + i, m) * inverse) : I{};
      const V v = __builtin_convertvector(q + kOffset, V);
      std::memcpy(small + i, &v, m * sizeof(Activation));
    });
  }
};

// x * weights^T of `count` weights [n, k], handed over as `product` in linear.h does, tile by tile.
template <class T, class Epilogue>
static void int8_product(const Rows<T>& x, const void* const* weights, long n, long count,
                         int threads, Epilogue epilogue) {
  const auto weight = [=](long p) -> const Int8Weight& {  // that of a panel
    return *static_cast<const Int8Weight*>(weights[p / panels(n)]);
  };
  const long each = panels(n), all = each * count, outliers = weight(0).outliers,
             groups = ceil_div(x.k, weight(0).group);
  const long w = words(x.k);
  const RowBlocks cut = row_blocks(x.count, 4 * w);
  const long rows = cut.rows, blocks = cut.count;
  const long per_chunk = panels_a_task(all, blocks, threads), chunks = ceil_div(all, per_chunk);
  Int8Block* mine;
  Range* ranges;
  const auto lay_out = [&](Carver carver) {
    ranges = carver.take<Range>(threads);
    mine = carver.take<Int8Block>(threads);
    for (int i = 0; i < threads; ++i) {
      Int8Block block;
      block.a = carver.take<std::int32_t>(rows * w);
      block.scale = carver.take<float>(rows * groups);
      block.outlier = carver.take<float>(rows * outliers);
      block.c = carver.take<float>(kMR * kNR);
      block.row = carver.take<float>(w * kFold);
      block.small = carver.take<Activation>(w * kFold);
      if (carver.base) mine[i] = block;
    }
    return carver.used;
  };
  const long bytes = lay_out({});
  lay_out({static_cast<char*>(scratch(bytes)), 0});
  // One panel for the rows that a block holds; q is the panel that comes next.
  const auto one = [&](const Int8Block& block, long first, long p, long q) {
    const Tiles tiles(block.rows);
    Int8Panel panel{weight(p), p % each, each * kNR, weight(q).panels + q % each * w * kNR * kFold};
    long row = 0;
    for (long tile = 0; tile < tiles.count; ++tile) {
      const int height = tiles.rows(tile);
      const Int8Tile part{block.a + row * w, block.scale + row * groups,
                          block.outlier + row * outliers};
      int8_micro_of(height)(w, part, panel, block.c);
      panel.next = panel.weight.panels + panel.index * w * kNR * kFold;  // it is there by now
      epilogue(block.c, kNR, first + row, height, p);
      row += height;
    }
  };
  if (x.count <= kFewRows && threads > 1) {  // as in linear.h
    parallel_ranges(ranges, threads, all, [&](long p, long then, int thread) {
      mine[thread].take(x, weight(0), 0, x.count);
      one(mine[thread], 0, p, then < 0 || then >= all ? 0 : then);
    });
    return;
  }
  parallel_tasks(threads, blocks * chunks, [&](long task, int thread) {
    Int8Block& block = mine[thread];
    const long first = task / chunks * rows, begin = task % chunks * per_chunk;
    const long end = begin + per_chunk < all ? begin + per_chunk : all;
    block.take(x, weight(0), first, x.count - first < rows ? x.count - first : rows);
    for (long p = begin; p < end; ++p) one(block, first, p, p + 1 < end ? p + 1 : begin);
  });
}

}  // namespace
}  // namespace bf::BF_ISA
