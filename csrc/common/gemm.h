// The product core: C[rows, columns] += A[rows, K] * W[columns, K]^T on packed weights.
//
// A packed weight is a run of panels of kNR output columns; a panel holds, for each k, its kNR
// values side by side (columns past N are zeros). The microkernel keeps a kMR x kNR tile of C in
// registers while k runs. K is cut into equal blocks of at most kKC: a panel's block stays in L1
// while the rows of a task pass over it (the rows stay in L2), and the rounding error grows with
// the block, not with K, as the blocks' sums are added. Every element of C is the same sum in the
// same order whatever the tile that holds it, so a row's result does not depend on how many rows or
// threads there are.
#pragma once
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

// One tile: c[MR, NR] (row stride ldc) = or += a[MR, kc] * b[kc, NR]; lda is the stride of what is
// not contiguous in a.
template <Left L, int MR, int NR, class TW>
static void micro(long kc, const float* a, long lda, const TW* b, float* c, long ldc,
                  bool accumulate) {
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
#pragma GCC unroll 4
  for (long k = 0; k < kc; ++k) {
    F bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + k * NR + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const F av = splat(L == Left::kRows ? row[r / 3][(r % 3) * lda + k] : a[k * lda + r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += av * bv[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* to = c + r * ldc + v * W;
      store(to, accumulate ? load(to) + acc[r][v] : acc[r][v]);
    }
}

template <class TW>
using Micro = void (*)(long, const float*, long, const TW*, float*, long, bool);

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

// c[rows, kNR] = (or +=) a[rows, k] * panel[k, kNR]; the rows are cut into tiles of nearly equal
// height.
template <Left L = Left::kRows, class TW>
static void panel_product(const float* a, long lda, long rows, long k, const TW* panel, float* c,
                          long ldc, bool accumulate = false) {
  const long tiles = ceil_div(rows, kMR);
  const int height = static_cast<int>(rows / tiles), higher = static_cast<int>(rows % tiles);
  const Micro<TW> tall = micro_of<TW, L>(height < kMR ? height + 1 : kMR),
                  low = micro_of<TW, L>(height);
  const long row_stride = L == Left::kRows ? lda : 1, k_stride = L == Left::kRows ? 1 : lda;
  const long block = ceil_div(k, ceil_div(k, kKC));
  for (long k0 = 0; k0 < k; k0 += block) {
    const long kc = k - k0 < block ? k - k0 : block;
    long r = 0;
    for (long tile = 0; tile < tiles; ++tile) {
      (tile < higher ? tall : low)(kc, a + r * row_stride + k0 * k_stride, lda, panel + k0 * kNR,
                                   c + r * ldc, ldc, accumulate || k0 > 0);
      r += height + (tile < higher);
    }
  }
}

// Row-major activations of element type T.
template <class T>
struct Rows {
  const T* data;
  long stride, count, k;
};

// Rows [first, first + count) in fp32: the data itself, or a converted copy in `buffer`.
template <class T>
static const float* rows_fp32(const Rows<T>& x, long first, long count, float* buffer, long* lda) {
  if constexpr (sizeof(T) == sizeof(float)) {
    *lda = x.stride;
    return x.data + first * x.stride;
  } else {
    for (long r = 0; r < count; ++r)
      convert_row(x.data + (first + r) * x.stride, buffer + r * x.k, x.k);
    *lda = x.k;
    return buffer;
  }
}

// How T rows are cut into blocks: a block's activations and its `c_columns` of output fit half of
// L2.
struct RowBlocks {
  long rows, count;
};
inline RowBlocks row_blocks(long rows, long k, long c_columns, int threads) {
  long most = l2_bytes() / 2 / (4 * (k + c_columns)) / kMR * kMR;
  most = most < 2 * kMR ? 2 * kMR : most > 20 * kMR ? 20 * kMR : most;
  long count = ceil_div(rows, most);
  if (rows >= threads * 2 * kMR) count = round_up(count, threads);  // equal work for every thread
  const long block = round_up(ceil_div(rows, count), kMR);
  return {block, ceil_div(rows, block)};
}

// For each panel p < panel_count: c = x * weight(p)^T, handed to epilogue(c, row stride, first row,
// rows, p) while it is hot.
template <class T, class PanelOf, class Epilogue>
static void product(const Rows<T>& x, long panel_count, PanelOf panel_of, int threads,
                    Epilogue epilogue) {
  if (x.count == 0) return;
  const RowBlocks blocks = row_blocks(x.count, x.k, kNR, threads);
  long chunks =
      ceil_div(4 * threads, blocks.count);  // few rows: the columns are shared out instead
  if (threads == 1) chunks = 1;
  if (chunks > panel_count) chunks = panel_count;
  const long per_chunk = ceil_div(panel_count, chunks);
  chunks = ceil_div(panel_count, per_chunk);
  const long converted = sizeof(T) == sizeof(float) ? 0 : blocks.rows * x.k;
  const long per_thread = round_up(blocks.rows * kNR + converted, 16);
  float* memory = static_cast<float*>(scratch(4 * per_thread * threads));
  parallel_tasks(threads, blocks.count * chunks, [&](long task, int thread) {
    float* c = memory + thread * per_thread;
    const long first = task / chunks * blocks.rows, begin = task % chunks * per_chunk;
    const long rows = x.count - first < blocks.rows ? x.count - first : blocks.rows;
    const long end = begin + per_chunk < panel_count ? begin + per_chunk : panel_count;
    long lda;
    const float* a = rows_fp32(x, first, rows, c + blocks.rows * kNR, &lda);
    for (long p = begin; p < end; ++p) {
      panel_product(a, lda, rows, x.k, panel_of(p), c, kNR);
      epilogue(c, first, rows, p);
    }
  });
}

// The same for epilogues that need whole rows: finish(z, row) gets z[n] = x[row] * weight^T in fp32
// and may overwrite it. With fewer row blocks than threads the columns are shared out first, and
// the rows are finished in a second pass.
template <class T, class Finish>
static void product_whole_rows(const Rows<T>& x, const T* packed, long n, int threads,
                               Finish finish) {
  if (x.count == 0) return;
  const long ldz = panels(n) * kNR;
  if (threads > 1 && x.count < threads * 2 * kMR) {
    float* z = static_cast<float*>(scratch(4 * x.count * ldz, Slot::kOperand));
    product(
        x, panels(n), [&](long p) { return packed + p * kNR * x.k; }, threads,
        [&](const float* c, long first, long rows, long p) {
          for (long r = 0; r < rows; ++r)
            std::memcpy(z + (first + r) * ldz + p * kNR, c + r * kNR, 4 * kNR);
        });
    parallel_tasks(threads, x.count, [&](long row, int) { finish(z + row * ldz, row); });
    return;
  }
  const RowBlocks blocks = row_blocks(x.count, x.k, ldz, threads);
  const long converted = sizeof(T) == sizeof(float) ? 0 : blocks.rows * x.k;
  const long per_thread = round_up(blocks.rows * ldz + converted, 16);
  float* memory = static_cast<float*>(scratch(4 * per_thread * threads));
  parallel_tasks(threads, blocks.count, [&](long task, int thread) {
    float* z = memory + thread * per_thread;
    const long first = task * blocks.rows;
    const long rows = x.count - first < blocks.rows ? x.count - first : blocks.rows;
    long lda;
    const float* a = rows_fp32(x, first, rows, z + blocks.rows * ldz, &lda);
    for (long p = 0; p < panels(n); ++p)
      panel_product(a, lda, rows, x.k, packed + p * kNR * x.k, z + p * kNR, ldz);
    for (long r = 0; r < rows; ++r) finish(z + r * ldz, first + r);
  });
}

}  // namespace
}  // namespace BF_ISA
}  // namespace bf
