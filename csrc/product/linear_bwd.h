// Gradients of y = x weight^T + bias, for one weight or for several that read the same x (their
// rows follow one another): dx = dy weight, dweight = dy^T x, dbias = column sums of dy. The right
// operand of each product is packed in fp32; dweight reads dy column by column, from a copy of a
// block of columns that stays in L2. Sums over tokens run in order of the tokens.
#pragma once
#include "product/linear.h"

namespace bf::BF_ISA {
namespace {

constexpr long kMaxWeights = 3;

template <class T>
struct LinearBwd {
  const float* dy;               // [rows, weights * n], contiguous
  Rows<T> x;                     // [rows, k]
  const T* weight[kMaxWeights];  // [n, k], row strides weight_stride
  long weight_stride[kMaxWeights];
  T* dx;                    // [rows, k] or null
  T* dweight[kMaxWeights];  // [n, k] or null
  T* dbias[kMaxWeights];    // [n] or null
  long n, weights;
  int threads;
};

constexpr long kPackRows = 64;

// Contiguous rows in fp32: the data itself, or a converted copy in scratch.
template <class T>
static const float* fp32_rows(const Rows<T>& x, int threads) {
  if constexpr (sizeof(T) == sizeof(float)) {
    (void)threads;
    return x.data;
  } else {
    float* copy = static_cast<float*>(scratch(4 * x.count * x.k, Slot::kRows));
    parallel_tasks(threads, x.count, [&](long row, int) {
      convert_row(x.data + row * x.stride, copy + row * x.k, x.k);
    });
    return copy;
  }
}

template <class T>
static void linear_bwd_input(const LinearBwd<T>& p) {
  const long k = p.x.k, all = p.weights * p.n, per_weight = ceil_div(p.n, kPackRows);
  float* packed = static_cast<float*>(scratch(4 * packed_elements(k, all), Slot::kOperand));
  parallel_tasks(p.threads, p.weights * per_weight, [&](long task, int) {
    const long w = task / per_weight, first = task % per_weight * kPackRows;
    const long rows = p.n - first < kPackRows ? p.n - first : kPackRows;
    pack_columns(p.weight[w] + first * p.weight_stride[w], p.weight_stride[w], rows, k,
                 packed + (w * p.n + first) * kNR, all);
  });
  product(Rows<float>{p.dy, all, p.x.count, all}, Weights{{packed}, {}, k, 1, false}, p.threads,
          [&](const float* c, long ldc, long first, long rows, long panel) {
            const long column = panel * kNR, columns = k - column < kNR ? k - column : kNR;
            for (long r = 0; r < rows; ++r)
              for_lanes(columns, [&](long i, int m) {
                store_some(p.dx + (first + r) * k + column + i, load(c + r * ldc + i), m);
              });
          });
}

// Columns [first, first + width) of dy, one after the other in memory for each token.
static inline void copy_columns(const float* dy, long stride, long rows, long first, long width,
                                float* to) {
  for (long t = 0; t < rows; ++t) std::memcpy(to + t * width, dy + t * stride + first, 4 * width);
}

template <class T>
static void sum_columns(const float* block, long rows, long width,
                        T* out) {  // 32 tokens at a time, then the sums
  for (long i = 0; i < width; i += kLanes) {
    const int m = static_cast<int>(width - i < kLanes ? width - i : kLanes);
    F total = {};
    for (long first = 0; first < rows; first += 32) {
      F sum = {};
      for (long t = first; t < rows && t < first + 32; ++t)
        sum += load_some(block + t * width + i, m);
      total += sum;
    }
    store_some(out + i, total, m);
  }
}

template <class T>
static void linear_bwd_weight(const LinearBwd<T>& p) {
  constexpr long kBlock = 4 * kMR;
  const long k = p.x.k, rows = p.x.count, all = p.weights * p.n, per_weight = ceil_div(p.n, kBlock);
  float* packed = static_cast<float*>(scratch(4 * packed_elements(k, rows), Slot::kOperand));
  parallel_tasks(p.threads, ceil_div(rows, kPackRows), [&](long task, int) {
    const long first = task * kPackRows,
               count = rows - first < kPackRows ? rows - first : kPackRows;
    pack_columns(p.x.data + first * p.x.stride, p.x.stride, count, k, packed + first * kNR, rows);
  });
  const long blocks = p.weights * per_weight;
  long chunks = ceil_div(4 * p.threads, blocks);
  if (chunks > panels(k)) chunks = panels(k);
  const long per_chunk = ceil_div(panels(k), chunks),
             per_thread = round_up(kBlock * (rows + kNR), 16);
  float* memory = static_cast<float*>(scratch(4 * per_thread * p.threads));
  parallel_tasks(p.threads, blocks * chunks, [&](long task, int thread) {
    const long w = task / chunks / per_weight, first = task / chunks % per_weight * kBlock,
               chunk = task % chunks;
    const long width = p.n - first < kBlock ? p.n - first : kBlock;
    float* block = memory + thread * per_thread;
    float* c = block + kBlock * rows;
    copy_columns(p.dy, all, rows, w * p.n + first, width, block);
    if (chunk == 0 && p.dbias[w]) sum_columns(block, rows, width, p.dbias[w] + first);
    for (long panel = chunk * per_chunk;
         p.dweight[w] && panel < panels(k) && panel < (chunk + 1) * per_chunk; ++panel) {
      const long column = panel * kNR, columns = k - column < kNR ? k - column : kNR;
      panel_product<Left::kColumns>(block, width, width, rows, packed + panel * kNR * rows, c, kNR);
      for (long r = 0; r < width; ++r)
        for_lanes(columns, [&](long i, int m) {
          store_some(p.dweight[w] + (first + r) * k + column + i, load(c + r * kNR + i), m);
        });
    }
  });
}

// With no tokens the gradients of the weights are the caller's zeros.
template <class T>
static void linear_bwd(const LinearBwd<T>& p) {
  if (p.x.count == 0) return;
  if (p.dx) linear_bwd_input(p);
  bool weights = false;
  for (long w = 0; w < p.weights; ++w) weights |= p.dweight[w] || p.dbias[w];
  if (weights) linear_bwd_weight(p);
}

// From the parameters of an operation.
template <class T, class Params>
static void linear_bwd(const Params& p, const float* dy) {
  LinearBwd<T> q = {};
  q.dy = dy, q.x = {static_cast<const T*>(p.x), p.x_stride, p.rows, p.k};
  q.dx = static_cast<T*>(p.dx), q.n = p.n, q.threads = p.threads;
  q.weights = sizeof(p.weight) / sizeof(void*);
  for (long w = 0; w < q.weights; ++w) {
    q.weight[w] = static_cast<const T*>(nth(p.weight, w));
    q.weight_stride[w] = nth(p.weight_stride, w);
    q.dweight[w] = static_cast<T*>(nth(p.dweight, w));
    q.dbias[w] = static_cast<T*>(nth(p.dbias, w));
  }
  linear_bwd(q);
}

}  // namespace
}  // namespace bf::BF_ISA
