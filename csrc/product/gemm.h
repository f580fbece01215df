// The product core: C[rows, columns] += A[rows, K] * W[columns, K]^T on panels of the weight.
//
// A panel is kNR output columns; it holds, for each k, its kNR values side by side (columns past N
// are zeros). The microkernel keeps a kMR x kNR tile of C in
// registers while k runs. K is cut into equal blocks of at most kKC: a panel's block stays in L1
// while the rows of a task pass over it, the rows' block in L2, and the rounding error grows with
// the block, not with K, as the blocks' sums are added. Every element of C is the same sum in the
// same order whatever the tile that holds it, so a row's result does not depend on how many rows or
// threads there are. Where bf16 has a dot instruction, its numbers here are pairs along k (pair.h).
#pragma once
#include <type_traits>

#include "common/parallel.h"
#include "common/simd.h"
#include "product/pair.h"

namespace bf::BF_ISA {
namespace {

#if defined(BF_WIDE_TILE)  // the AVX-512 tile at AVX2 width: for tests on machines without AVX-512
constexpr int kMR = 12, kNR = 32, kKC = 192;
#elif defined(__AVX512F__)
constexpr int kMR = 12, kNR = 32, kKC = 192;
#elif defined(__AVX2__)
constexpr int kMR = 6, kNR = 16, kKC = 192;
#elif defined(__aarch64__)
constexpr int kMR = 6, kNR = 16, kKC = 192;
#else
constexpr int kMR = 4, kNR = 8, kKC = 192;
#endif

// Of so few rows one tile is made where the weight is read as it lies.
constexpr int kFewRows = kLanes > kMR ? kLanes : kMR;

BF_INLINE long panels(long n) { return (n + kNR - 1) / kNR; }
BF_INLINE long packed_elements(long n, long k) { return panels(n) * kNR * k; }

// How the left operand lies: rows one after the other (k contiguous), or k one after the other
// (rows contiguous).
enum class Left { kRows, kColumns };

// What is fetched into L2 while a tile runs: `fours` times four of the kNR rows of the block of the
// right operand that comes next. Each fourth step of k takes another row of a four, so that a line
// of 16 numbers is asked for once.
struct Fetch {
  const char* from;
  long stride, step;  // bytes to the next row, and of four k in a row
  long fours;
};
template <class T>
BF_INLINE Fetch fetch_of(const T* from, long stride) {
  constexpr long size = sizeof(T);
  return {reinterpret_cast<const char*>(from), stride * size, 4 * size, kNR / 4};
}

// One tile: c[MR, NR] (row stride ldc) = or += a[MR, kc] * b[kc, NR]; lda is the stride of what is
// not contiguous in a.
template <Left L, int MR, int NR, class TW>
static void micro(long kc, const float* a, long lda, const TW* b, float* c, long ldc,
                  bool accumulate, Fetch fetch) {
  constexpr int W = kLanes, NV = NR / W;
  static_assert(NR % W == 0);
  F acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = F{};
  const float* row[(MR + 2) / 3];  // a pointer serves three rows: base, base + lda, base + 2 lda
#pragma GCC unroll 16
  for (int r = 0; r < MR; r += 3) row[r / 3] = a + r * lda;
  const auto step = [&](long k) __attribute__((always_inline)) {
    F bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + k * NR + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const F av = spread(L == Left::kRows ? row[r / 3][(r % 3) * lda + k] : a[k * lda + r], TW{});
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = multiply_add(av, bv[v], acc[r][v], TW{});
    }
  };
  long k = 0;
  for (; k + 4 <= kc; k += 4) {
    const char* line = fetch.from + k / 4 % 4 * fetch.stride + k / 4 * fetch.step;
    for (long i = 0; i < fetch.fours; ++i, line += 4 * fetch.stride) __builtin_prefetch(line, 0, 2);
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) step(k + u);
  }
  for (; k < kc; ++k) step(k);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* to = c + r * ldc + v * W;
      store(to, accumulate ? load(to) + acc[r][v] : acc[r][v]);
    }
}

template <class TW>
using Micro = void (*)(long, const float*, long, const TW*, float*, long, bool, Fetch);

template <class TW, Left L = Left::kRows, int NR = kNR>
static Micro<TW> micro_of(int rows) {
#define BF_MICRO(R) micro<L, (R <= kMR ? R : kMR), NR, TW>
  static constexpr Micro<TW> table[] = {BF_MICRO(1), BF_MICRO(2),  BF_MICRO(3),  BF_MICRO(4),
                                        BF_MICRO(5), BF_MICRO(6),  BF_MICRO(7),  BF_MICRO(8),
                                        BF_MICRO(9), BF_MICRO(10), BF_MICRO(11), BF_MICRO(12)};
#undef BF_MICRO
  static_assert(kMR <= 12);
  return table[rows - 1];
}

// Rows are cut into tiles of nearly equal height, the higher ones first.
struct Tiles {
  long count;
  int height, higher;  // `higher` tiles of height + 1, the others of height
  explicit Tiles(long rows, long most = kMR)
      : count(ceil_div(rows, most)),
        height(static_cast<int>(rows / count)),
        higher(static_cast<int>(rows % count)) {}
  int rows(long tile) const { return height + (tile < higher); }
};

// K is cut into blocks of equal size, at most kKC.
BF_INLINE long k_block(long k) { return ceil_div(k, ceil_div(k, kKC)); }

// c[rows, NR] = (or +=) a[rows, kc] * b[kc, NR]; tile_at(r) is where the tile of row r begins,
// lda (0: the tile's height) the stride of what is not contiguous in it. The tiles share out what
// is to be fetched.
template <Left L, int NR = kNR, class TW, class TileAt>
BF_INLINE void tiles_product(TileAt tile_at, long lda, long rows, long kc, const TW* b, Fetch next,
                             float* c, long ldc, bool accumulate) {
  const Tiles tiles(rows);
  const Micro<TW> tall = micro_of<TW, L, NR>(tiles.height < kMR ? tiles.height + 1 : kMR),
                  low = micro_of<TW, L, NR>(tiles.height);
  const long share = ceil_div(next.fours, tiles.count);
  long r = 0;
  for (long tile = 0; tile < tiles.count; ++tile) {
    const int height = tiles.rows(tile);
    Fetch fetch = next;
    fetch.fours = next.fours < share ? next.fours : share;
    (tile < tiles.higher ? tall : low)(kc, tile_at(r), lda ? lda : height, b, c + r * ldc, ldc,
                                       accumulate, fetch);
    next.from += 4 * fetch.fours * next.stride;
    next.fours -= fetch.fours;
    r += height;
  }
}

// c[rows, kNR] = (or +=) a[rows, k] * panel[k, kNR], the left operand as it lies.
template <Left L = Left::kRows, class TW>
static void panel_product(const float* a, long lda, long rows, long k, const TW* panel, float* c,
                          long ldc, bool accumulate = false) {
  const long row_stride = L == Left::kRows ? lda : 1, k_stride = L == Left::kRows ? 1 : lda,
             block = k_block(k);
  for (long k0 = 0; k0 < k; k0 += block) {
    const long kc = k - k0 < block ? k - k0 : block;
    const TW* b = panel + k0 * kNR;
    tiles_product<L>([=](long r) { return a + r * row_stride + k0 * k_stride; }, lda, rows, kc, b,
                     fetch_of(b + kc * kNR, kc), c, ldc, accumulate || k0 > 0);
  }
}

// How rows are cut into blocks: what a thread holds of a block, `bytes` a row, fits half of L2.
struct RowBlocks {
  long rows, count;
};
inline RowBlocks row_blocks(long rows, long bytes) {
  long most = l2_bytes() / 2 / bytes;
  most = most < 2 * kMR ? 2 * kMR : most > 20 * kMR ? 20 * kMR : most;
  const long block = ceil_div(rows, ceil_div(rows, most));
  return {block, ceil_div(rows, block)};
}

// How many of `count` panels a task takes: all, but with few blocks of rows columns are shared out.
inline long panels_a_task(long count, long blocks, int threads) {
  long tasks = 1;
  if (threads > 1 && blocks < 4 * threads) tasks = round_up(ceil_div(4 * threads, blocks), threads);
  return ceil_div(count, tasks < count ? tasks : count);
}

// Row-major activations of element type T.
template <class T>
struct Rows {
  const T* data;
  long stride, count, k;
};

// Rows in fp32, tile by tile, k after k, the rows of a tile side by side, rows past x.count as
// zeros: read in order whatever the stride of x was (rows a multiple of 4096 bytes apart fall into
// one set of L1). `to` has kLanes elements to spare.
template <class T>
static void pack_rows(const Rows<T>& x, long first, const Tiles& tiles, float* to) {
  const T* from = x.data + first * x.stride;
  for (long tile = 0; tile < tiles.count; ++tile) {
    const int height = tiles.rows(tile);
    const long left = x.count - first, real = left < height ? left : height;
    long k = 0;
#if !defined(__clang__)
    constexpr int kGroups = (kFewRows + kLanes - 1) / kLanes;
    for (; k + kLanes <= x.k; k += kLanes) {
      F v[kGroups][kLanes];
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          const int row = g * kLanes + r;
          v[g][r] = row < real ? load(from + row * x.stride + k) : F{};
        }
        transpose(v[g]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kLanes;
           ++i)  // in order: the next store overwrites what this one wrote too much
        for (int g = 0; g * kLanes < height; ++g)
          store(to + (k + i) * height + g * kLanes, v[g][i]);
    }
#endif
    for (; k < x.k; ++k)
      for (int r = 0; r < height; ++r)
        to[k * height + r] = r < real ? load_n(from + r * x.stride + k, 1)[0] : 0.0f;
    first += height;
    from += height * x.stride;
    to += height * x.k;
  }
}

}  // namespace
}  // namespace bf::BF_ISA
