// The product core: C[rows, columns] += A[rows, K] * W[columns, K]^T on packed weights.
//
// A packed weight is a run of panels of kNR output columns; a panel holds, for each k, its kNR
// values side by side (columns past N are zeros). The microkernel keeps a kMR x kNR tile of C in
// registers while k runs. K is cut into equal blocks of at most kKC: a panel's block stays in L1
// while the rows of a task pass over it, the rows' block in L2, and the rounding error grows with
// the block, not with K, as the blocks' sums are added. Every element of C is the same sum in the
// same order whatever the tile that holds it, so a row's result does not depend on how many rows or
// threads there are.
#pragma once
#include <type_traits>

#include "common/parallel.h"
#include "common/simd.h"

namespace bf {
namespace BF_ISA {
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

BF_INLINE long panels(long n) { return (n + kNR - 1) / kNR; }
BF_INLINE long packed_elements(long n, long k) { return panels(n) * kNR * k; }

// How the left operand lies: rows one after the other (k contiguous), or k one after the other
// (rows contiguous).
enum class Left { kRows, kColumns };

// What the next block of the right operand is fetched with while this one is multiplied: `lines`
// cache lines every four k.
struct Fetch {
  const char* from;
  long lines;
};

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
      const F av = splat(L == Left::kRows ? row[r / 3][(r % 3) * lda + k] : a[k * lda + r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += av * bv[v];
    }
  };
  long k = 0;
  for (; k + 4 <= kc; k += 4) {
    for (long i = 0; i < fetch.lines; ++i) __builtin_prefetch(fetch.from + 64 * i, 0, 2);
    fetch.from += 64 * fetch.lines;
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

template <class TW, Left L = Left::kRows>
static Micro<TW> micro_of(int rows) {
#define BF_MICRO(R) micro<L, (R <= kMR ? R : kMR), kNR, TW>
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
  explicit Tiles(long rows)
      : count(ceil_div(rows, kMR)),
        height(static_cast<int>(rows / count)),
        higher(static_cast<int>(rows % count)) {}
  int rows(long tile) const { return height + (tile < higher); }
};

// K is cut into blocks of equal size, at most kKC.
BF_INLINE long k_block(long k) { return ceil_div(k, ceil_div(k, kKC)); }

// c[rows, kNR] = (or +=) a[rows, kc] * b[kc, kNR]; tile_at(r) is where the tile of row r begins,
// lda (0: the tile's height) the stride of what is not contiguous in it. While the tiles run,
// `next` is fetched: the block of b that comes after this one.
template <Left L, class TW, class TileAt>
BF_INLINE void tiles_product(TileAt tile_at, long lda, long rows, long kc, const TW* b,
                             const TW* next, float* c, long ldc, bool accumulate) {
  const Tiles tiles(rows);
  const Micro<TW> tall = micro_of<TW, L>(tiles.height < kMR ? tiles.height + 1 : kMR),
                  low = micro_of<TW, L>(tiles.height);
  const long bytes = kc * kNR * static_cast<long>(sizeof(TW)), steps = tiles.count * (kc / 4);
  const long lines = steps > 0 ? ceil_div(bytes, 64 * steps) : 0;
  const char* fetch = reinterpret_cast<const char*>(next);
  long r = 0;
  for (long tile = 0; tile < tiles.count; ++tile) {
    const int height = tiles.rows(tile);
    (tile < tiles.higher ? tall : low)(
        kc, tile_at(r), lda ? lda : height, b, c + r * ldc, ldc, accumulate,
        Fetch{fetch, fetch < reinterpret_cast<const char*>(next) + bytes ? lines : 0});
    fetch += 64 * lines * (kc / 4);
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
                     b + kc * kNR, c, ldc, accumulate || k0 > 0);
  }
}

// Row-major activations of element type T.
template <class T>
struct Rows {
  const T* data;
  long stride, count, k;
};

// Rows in fp32, tile by tile, k after k, the rows of a tile side by side: read in order whatever
// the stride of x was (rows a multiple of 4096 bytes apart fall into one set of L1). `to` has
// kLanes elements to spare.
template <class T>
static void pack_rows(const Rows<T>& x, long first, long rows, float* to) {
  const Tiles tiles(rows);
  const T* from = x.data + first * x.stride;
  for (long tile = 0; tile < tiles.count; ++tile) {
    const int height = tiles.rows(tile);
    long k = 0;
#if !defined(__clang__)
    constexpr int kGroups = (kMR + kLanes - 1) / kLanes;
    for (; k + kLanes <= x.k; k += kLanes) {
      F v[kGroups][kLanes];
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          const int row = g * kLanes + r;
          v[g][r] = row < height ? load(from + row * x.stride + k) : F{};
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
      for (int r = 0; r < height; ++r) to[k * height + r] = load_n(from + r * x.stride + k, 1)[0];
    from += height * x.stride;
    to += height * x.k;
  }
}

// How rows are cut into blocks: a block of K of the activations and `c_columns` of output fit half
// of L2.
struct RowBlocks {
  long rows, count;
};
inline RowBlocks row_blocks(long rows, long c_columns, int threads) {
  long most = l2_bytes() / 2 / (4 * (kKC + c_columns));
  most = most < 2 * kMR ? 2 * kMR : most > 20 * kMR ? 20 * kMR : most;
  long count = ceil_div(rows, most);
  if (rows >= threads * 2 * kMR) count = round_up(count, threads);  // equal work for every thread
  const long block = ceil_div(rows, count);
  return {block, ceil_div(rows, block)};
}

// A block of rows, packed block of K by block of K.
template <class T>
static void pack_row_block(const Rows<T>& x, long first, long rows, float* to) {
  const long block = k_block(x.k);
  for (long k0 = 0; k0 < x.k; k0 += block)
    pack_rows(Rows<T>{x.data + k0, x.stride, x.count, x.k - k0 < block ? x.k - k0 : block}, first,
              rows, to + k0 * rows);
}

// c[rows, panels begin .. end] (row stride ldc) = a (packed rows) * weight^T. A block of K of all
// panels before the next one: the weight is read once for all the rows.
template <class TW, class PanelOf>
static void block_product(const float* a, long rows, long k, PanelOf panel_of, long begin, long end,
                          float* c, long ldc) {
  const long block = k_block(k);
  for (long k0 = 0; k0 < k; k0 += block) {
    const long kc = k - k0 < block ? k - k0 : block;
    for (long p = begin; p < end; ++p) {
      const TW* b = panel_of(p) + k0 * kNR;
      const TW* next = p + 1 < end ? panel_of(p + 1) + k0 * kNR : panel_of(begin) + (k0 + kc) * kNR;
      tiles_product<Left::kColumns>([=](long r) { return a + k0 * rows + r * kc; }, 0, rows, kc, b,
                                    next, c + (p - begin) * kNR, ldc, k0 > 0);
    }
  }
}

constexpr long kGroup = 8;  // panels

// c = x * weight^T for all panels; epilogue(c, row stride, first row, rows, p) gets each panel p
// while it is hot.
template <class T, class PanelOf, class Epilogue>
static void product(const Rows<T>& x, long panel_count, PanelOf panel_of, int threads,
                    Epilogue epilogue) {
  if (x.count == 0) return;
  using TW = std::remove_const_t<std::remove_pointer_t<decltype(panel_of(0))>>;
  constexpr long ldc = kGroup * kNR;
  const RowBlocks blocks = row_blocks(x.count, ldc, threads);
  long chunks =
      threads == 1
          ? 1
          : ceil_div(4 * threads, blocks.count);  // few rows: the columns are shared out instead
  const long per_chunk = ceil_div(panel_count, chunks < panel_count ? chunks : panel_count);
  chunks = ceil_div(panel_count, per_chunk);
  const long per_thread = round_up(blocks.rows * (ldc + x.k) + kLanes, 16);
  float* memory = static_cast<float*>(scratch(4 * per_thread * threads));
  parallel_tasks(threads, blocks.count * chunks, [&](long task, int thread) {
    float* c = memory + thread * per_thread;
    float* a = c + blocks.rows * ldc;
    const long first = task / chunks * blocks.rows, begin = task % chunks * per_chunk;
    const long rows = x.count - first < blocks.rows ? x.count - first : blocks.rows;
    const long end = begin + per_chunk < panel_count ? begin + per_chunk : panel_count;
    pack_row_block(x, first, rows, a);
    for (long group = begin; group < end; group += kGroup) {
      const long stop = group + kGroup < end ? group + kGroup : end;
      block_product<TW>(a, rows, x.k, panel_of, group, stop, c, ldc);
      for (long p = group; p < stop; ++p) epilogue(c + (p - group) * kNR, ldc, first, rows, p);
    }
  });
}

// The same for epilogues that need whole rows: finish(z, row) gets z[n] = x[row] * weight^T in fp32
// and may overwrite it. With few rows for each thread the columns are shared out first, and the
// rows are finished in a second pass.
template <class T, class Finish>
static void product_whole_rows(const Rows<T>& x, const T* packed, long n, int threads,
                               Finish finish) {
  if (x.count == 0) return;
  const long ldz = panels(n) * kNR;
  const auto panel_of = [&](long p) { return packed + p * kNR * x.k; };
  if (threads > 1 && x.count < threads * 2 * kMR) {
    float* z = static_cast<float*>(scratch(4 * x.count * ldz, Slot::kOperand));
    product(x, panels(n), panel_of, threads,
            [&](const float* c, long ldc, long first, long rows, long p) {
              for (long r = 0; r < rows; ++r)
                std::memcpy(z + (first + r) * ldz + p * kNR, c + r * ldc, 4 * kNR);
            });
    parallel_tasks(threads, x.count, [&](long row, int) { finish(z + row * ldz, row); });
    return;
  }
  const RowBlocks blocks = row_blocks(x.count, ldz, threads);
  const long per_thread = round_up(blocks.rows * (ldz + x.k) + kLanes, 16);
  float* memory = static_cast<float*>(scratch(4 * per_thread * threads));
  parallel_tasks(threads, blocks.count, [&](long task, int thread) {
    float* z = memory + thread * per_thread;
    float* a = z + blocks.rows * ldz;
    const long first = task * blocks.rows;
    const long rows = x.count - first < blocks.rows ? x.count - first : blocks.rows;
    pack_row_block(x, first, rows, a);
    block_product<T>(a, rows, x.k, panel_of, 0, panels(n), z, ldz);
    for (long r = 0; r < rows; ++r) finish(z + r * ldz, first + r);
  });
}

}  // namespace
}  // namespace BF_ISA
}  // namespace bf
