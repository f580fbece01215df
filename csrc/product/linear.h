// x weight^T for the operations: x in blocks of rows, the weight as it lies or prepacked. Every way
// adds up in the order of gemm.h, so all of them give the same bits.
#pragma once
#include "common/fields.h"
#include "common/ranges.h"
#include "product/dot.h"
#include "product/int8.h"
#include "product/pack.h"

namespace bf::BF_ISA {
namespace {

// Up to three weights [n, k] that read the same x; row strides in elements, 0: prepacked, kInt8:
// each is an Int8Weight. `rounded`: they lie in fp32, and count as rounded to the half that x has.
struct Weights {
  const void* data[3];
  long stride[3];
  long n, count;
  bool rounded;
};

template <class Params>
static Weights weights_of(const Params& p) {
  Weights all{{}, {}, p.n, sizeof(p.weight) / sizeof(void*), p.weight_dtype != p.dtype};
  for (long w = 0; w < all.count; ++w)
    all.data[w] = nth(p.weight, w), all.stride[w] = nth(p.weight_stride, w);
  return all;
}

// Prepacked: panel after panel, in the dtype of the weight.
template <class T>
struct PrepackedPanels {
  static constexpr bool kPlain = false;
  Weights weights;
  long each, k;  // panels of one weight

  long count() const { return each * weights.count; }
  const T* at(long p, long k0) const {
    return static_cast<const T*>(weights.data[p / each]) + p % each * kNR * k + k0 * kNR;
  }
  const T* block(long p, long k0, long, float*) const { return at(p, k0); }
  Fetch fetch(long p, long k0, long kc) const { return fetch_of(at(p, k0), kc); }
};

// As the weights lie. A block of a panel is turned into `buffer` [kNR * kKC] on the way.
template <class T>
struct PlainPanels {
  static constexpr bool kPlain = true;
  Weights weights;
  long each, k;

  long count() const { return each * weights.count; }
  template <class Stored = T>
  const Stored* at(long p, long k0) const {
    return static_cast<const Stored*>(weights.data[p / each]) + p % each * kNR * stride(p) + k0;
  }
  long stride(long p) const { return weights.stride[p / each]; }
  long columns(long p) const { return weights.n - p % each * kNR; }
  const float* block(long p, long k0, long kc, float* buffer) const {
    if (weights.rounded)
      pack_rounded<T>(at<float>(p, k0), stride(p), columns(p), kc, buffer);
    else
      pack_panel(at(p, k0), stride(p), columns(p), kc, buffer);
    return buffer;
  }
  Fetch fetch(long p, long k0, long) const {
    return weights.rounded ? fetch_of(at<float>(p, k0), stride(p)) : fetch_of(at(p, k0), stride(p));
  }

  // Whether kNR whole rows may be read as they are.
  bool whole(long p) const { return columns(p) >= kNR && !weights.rounded; }
  // Where kNR whole rows of the block lie in fp32: in the weight itself, or copied to `buffer`.
  const float* rows(long p, long k0, long kc, float* buffer, long* row_stride) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (columns(p) >= kNR) {
        *row_stride = stride(p);
        return at(p, k0);
      }
    }
    *row_stride = kc;
    for (long r = 0; r < kNR; ++r) {
      float* to = buffer + r * kc;
      if (r >= columns(p)) {
        std::memset(to, 0, 4 * kc);
      } else if (weights.rounded) {
        convert_row(at<float>(p, k0) + r * stride(p), to, kc);
        round_to<T>(to, kc);
      } else {
        convert_row(at(p, k0) + r * stride(p), to, kc);
      }
    }
    return buffer;
  }
};

#if !defined(__clang__)
// acc += a v of the tile's rows; where Number is bf16, v holds pairs that are widened here.
template <int MR, class Number>
BF_INLINE void add_step(F acc[MR], const float* a, F v) {
  constexpr bool kWiden = std::is_same_v<Number, bf16>;
  using Sum = std::conditional_t<kWiden, float, Number>;
  const F even = kWiden ? (F)((U)v << 16) : v, odd = (F)((U)v & 0xffff0000u);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) acc[r] = multiply_add(spread(a[r], Sum{}), even, acc[r], Sum{});
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
    if (kWiden) acc[r] = multiply_add(spread(a[MR + r], Sum{}), odd, acc[r], Sum{});
}

// The tile of gemm.h for few rows of a (packed, one tile) and kNR rows of the weight as they lie:
// kLanes of them are turned at a time, 32 bits of each in a lane, and used at once. All of `next`
// is fetched.
template <int MR, class Number>
static void turning_micro(long kc, const float* a, const Number* w, long stride, float* c, long ldc,
                          bool accumulate, Fetch next) {
  constexpr int kIn32 = sizeof(float) / sizeof(Number);
  for (long first = 0; first < kNR; first += kLanes) {
    F acc[MR];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) acc[r] = F{};
    const Number* from = w + first * stride;
    const char* ahead = next.from + first * next.stride;
    long k = 0;
    for (; k + kIn32 * kLanes <= kc; k += kIn32 * kLanes) {
      F v[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) std::memcpy(v + r, from + r * stride + k, sizeof(F));
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        __builtin_prefetch(ahead + r * next.stride + k / 4 * next.step, 0, 2);
      transpose_blocks(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (i % 4 == 0) transpose_inside(v + i);
        add_step<MR, Number>(acc, a + (k + kIn32 * i) * MR, v[i]);
      }
    }
    for (; k < kc; ++k) {
      using One = std::conditional_t<kIn32 == 1, Number, float>;
      F v;
      for (int r = 0; r < kLanes; ++r) v[r] = load_n(from + r * stride + k, 1)[0];
      add_step<MR, One>(acc, a + k * MR, v);
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      float* to = c + r * ldc + first;
      store(to, accumulate ? load(to) + acc[r] : acc[r]);
    }
  }
}

template <class Number>
static void few_rows_product(int rows, long kc, const float* a, const Number* w, long stride,
                             float* c, long ldc, bool accumulate, Fetch next) {
  using Kernel = void (*)(long, const float*, const Number*, long, float*, long, bool, Fetch);
#define BF_MICRO(R) turning_micro<(R <= kMR ? R : kMR), Number>
  static constexpr Kernel table[] = {BF_MICRO(1),  BF_MICRO(2),  BF_MICRO(3),  BF_MICRO(4),
                                     BF_MICRO(5),  BF_MICRO(6),  BF_MICRO(7),  BF_MICRO(8),
                                     BF_MICRO(9),  BF_MICRO(10), BF_MICRO(11), BF_MICRO(12),
                                     BF_MICRO(13), BF_MICRO(14), BF_MICRO(15), BF_MICRO(16)};
#undef BF_MICRO
  table[rows - 1](kc, a, w, stride, c, ldc, accumulate, next);
}
// to[row][i] = sums[i][row], [kNR, kLanes]; rows of `to` are ldc apart.
static void turn_sums(const float* sums, long rows, float* to, long ldc) {
  for (long first = 0; first < kNR; first += kLanes) {
    F v[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = load(sums + (first + i) * kLanes);
    transpose(v);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r)
      if (r < rows) store(to + r * ldc + first, v[r]);
  }
}
constexpr bool kTurns = true;
#else
constexpr bool kTurns = false;
template <class Number>
static void few_rows_product(int, long, const float*, const Number*, long, float*, long, bool,
                             Fetch) {}
static void turn_sums(const float*, long, float*, long) {}
#endif

constexpr long kGroup = 8;  // panels

// What a thread holds: a block of rows, packed block of K by block of K, the output of a group of
// panels, and a block of a panel.
template <class T, class Panels>
struct Block {
  using Number = std::conditional_t<std::is_same_v<T, Pair>, Pair, float>;  // of the tiles
  Rows<T> x;
  Panels panels;
  bool few;  // the rows are one tile, and the weight is read as it lies
  long first = -1, rows = 0, height = 0;  // height: rows in `a`, the last ones zeros
  float *a, *c, *buffer;

  static constexpr long ldc = kGroup * kNR;

  void take(long first_row, long count) {
    if (first == first_row) return;
    first = first_row, rows = count;
    height = in_lanes() ? kLanes : rows;
    const Tiles tiles(height, few ? kFewRows : kMR);
    const long block = k_block(x.k);
    for (long k0 = 0; k0 < x.k; k0 += block)
      pack_rows(Rows<T>{x.data + k0, x.stride, x.count, x.k - k0 < block ? x.k - k0 : block}, first,
                tiles, a + k0 * height);
  }

  // c[rows, panels begin .. end] = x * weight^T. A block of K of all panels before the next one:
  // the weight is read once for all the rows. `then` is likely to be asked for next.
  void multiply(long begin, long end, long then) {
    const long block = k_block(x.k);
    for (long k0 = 0; k0 < x.k; k0 += block) {
      const long kc = x.k - k0 < block ? x.k - k0 : block;
      for (long p = begin; p < end; ++p) {
        const Fetch next = p + 1 < end ? panels.fetch(p + 1, k0, kc)
                           : k0 + kc < x.k
                               ? panels.fetch(begin, k0 + kc, kc)
                               : panels.fetch(then < panels.count() ? then : 0, 0, block);
        tile(p, k0, kc, c + (p - begin) * kNR, next);
      }
    }
  }

  void tile(long p, long k0, long kc, float* to, Fetch next) {
    const float* from = a + k0 * height;
    if constexpr (Panels::kPlain) {
      if (few) {
        if constexpr (std::is_same_v<T, bf16>) {  // widened in registers
          if (!in_lanes() && panels.whole(p))
            return few_rows_product(static_cast<int>(rows), kc, from, panels.at(p, k0),
                                    panels.stride(p), to, ldc, k0 > 0, next);
        }
        long stride;
        const float* w = panels.rows(p, k0, kc, buffer, &stride);
        if (in_lanes())
          lanes_product(kc, from, w, stride, to, k0, next);
        else
          few_rows_product(static_cast<int>(rows), kc, from, reinterpret_cast<const Number*>(w),
                           stride, to, ldc, k0 > 0, next);
        return;
      }
    }
    const auto tile_at = [=](long r) { return from + r * kc; };
    if constexpr (!Panels::kPlain && sizeof(T) < sizeof(float)) {
      if (rows > kMR) {  // widened once for all tiles
        convert_row(panels.at(p, k0), buffer, kc * kNR);
        return tiles_product<Left::kColumns>(tile_at, 0, rows, kc, buffer, next, to, ldc, k0 > 0);
      }
    }
    tiles_product<Left::kColumns>(tile_at, 0, rows, kc, panels.block(p, k0, kc, buffer), next, to,
                                  ldc, k0 > 0);
  }

  bool in_lanes() const { return few && rows > kMR; }

  // The rows of a in the lanes of a vector, the weight's numbers one by one: nearly kLanes rows
  // take less time so than with the weight turned.
  void lanes_product(long kc, const float* from, const float* w, long stride, float* to, long k0,
                     Fetch next) {
    float* sums = buffer + kNR * kKC;  // [kNR, kLanes]
    tiles_product<Left::kRows, kLanes>([=](long r) { return w + r * stride; }, stride, kNR, kc,
                                       reinterpret_cast<const Number*>(from), next, sums, kLanes,
                                       k0 > 0);
    if (k0 + kc < x.k) return;
    turn_sums(sums, rows, to, ldc);
  }
};

template <class T, class Panels, class Epilogue>
static void panels_product(const Rows<T>& x, const Panels& panels, int threads, Epilogue epilogue) {
  using Mine = Block<T, Panels>;
  const RowBlocks blocks = row_blocks(x.count, 4 * (kKC + Mine::ldc));
  const bool few = Panels::kPlain && kTurns && x.count <= kFewRows;
  const long count = panels.count(), per_chunk = panels_a_task(count, blocks.count, threads);
  const long chunks = ceil_div(count, per_chunk);
  Mine* mine;
  Range* ranges;
  const auto lay_out = [&](Carver carver) {
    ranges = carver.take<Range>(threads);
    mine = carver.take<Mine>(threads);
    for (int i = 0; i < threads; ++i) {
      float* a = carver.take<float>((few ? kFewRows : blocks.rows) * x.k + kLanes);
      float* c = carver.take<float>(blocks.rows * Mine::ldc);
      float* buffer = carver.take<float>(kNR * (kKC + kLanes));
      if (carver.base) mine[i] = {x, panels, few, -1, 0, 0, a, c, buffer};
    }
    return carver.used;
  };
  const long bytes = lay_out({});
  lay_out({static_cast<char*>(scratch(bytes)), 0});
  const auto some = [&](Mine& block, long first, long rows, long begin, long end, long then) {
    block.multiply(begin, end, then);
    for (long p = begin; p < end; ++p)
      epilogue(block.c + (p - begin) * kNR, Mine::ldc, first, rows, p);
  };
  if (x.count <= kFewRows && threads > 1) {  // the weight is what takes the time: read it in order
    parallel_ranges(ranges, threads, count, [&](long p, long then, int thread) {
      mine[thread].take(0, x.count);
      some(mine[thread], 0, x.count, p, p + 1, then < 0 ? 0 : then);
    });
    return;
  }
  parallel_tasks(threads, blocks.count * chunks, [&](long task, int thread) {
    Mine& block = mine[thread];
    const long first = task / chunks * blocks.rows, begin = task % chunks * per_chunk;
    const long rows = x.count - first < blocks.rows ? x.count - first : blocks.rows;
    const long end = begin + per_chunk < count ? begin + per_chunk : count;
    block.take(first, rows);
    const long step = few ? 1 : kGroup;  // few rows: each row of the weight is read to its end
    for (long group = begin; group < end; group += step) {
      const long stop = group + step < end ? group + step : end;
      some(block, first, rows, group, stop, stop);
    }
  });
}

template <class T, class Epilogue>
static void float_product(const Rows<T>& x, const Weights& weights, int threads,
                          Epilogue epilogue) {
  const long each = panels(weights.n);
  if (weights.stride[0] == 0)
    panels_product(x, PrepackedPanels<T>{weights, each, x.k}, threads, epilogue);
  else
    panels_product(x, PlainPanels<T>{weights, each, x.k}, threads, epilogue);
}
#if defined(__AVX512BF16__)
template <class Epilogue>
static void float_product(const Rows<bf16>& x, const Weights& weights, int threads,
                          Epilogue epilogue) {
  with_pairs<PrepackedPanels<Pair>>(x, weights, [&](const auto& rows, const auto& panels) {
    panels_product(rows, panels, threads, epilogue);
  });
}
#endif

// x * weights^T; epilogue(c, row stride, first row, rows, p) gets each panel p, of all weights one
// after the other, while it is hot.
template <class T, class Epilogue>
static void product(const Rows<T>& x, const Weights& weights, int threads, Epilogue epilogue) {
  if (x.count == 0) return;
  if (weights.stride[0] == kInt8)
    int8_product(x, weights.data, weights.n, weights.count, threads, epilogue);
  else
    float_product(x, weights, threads, epilogue);
}

// The same for epilogues that need whole rows: finish(z, row) gets z[n] = x[row] * weight^T in fp32
// and may overwrite it. Rows are taken kSlab at a time, which bounds the memory.
template <class T, class Finish>
static void product_whole_rows(const Rows<T>& x, const Weights& weight, int threads,
                               Finish finish) {
  if (x.count == 0) return;
  constexpr long kSlab = 80 * kMR;
  const long ldz = panels(weight.n) * kNR, slab = ceil_div(x.count, ceil_div(x.count, kSlab));
  float* z = static_cast<float*>(scratch(4 * slab * ldz, Slot::kOperand));
  for (long first = 0; first < x.count; first += slab) {
    const long count = x.count - first < slab ? x.count - first : slab;
    const Rows<T> some{x.data + first * x.stride, x.stride, count, x.k};
    product(some, weight, threads, [&](const float* c, long ldc, long row, long rows, long p) {
      for (long r = 0; r < rows; ++r)
        std::memcpy(z + (row + r) * ldz + p * kNR, c + r * ldc, 4 * kNR);
    });
    parallel_tasks(threads, count, [&](long row, int) { finish(z + row * ldz, first + row); });
  }
}

}  // namespace
}  // namespace bf::BF_ISA
