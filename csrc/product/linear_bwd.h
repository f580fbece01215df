// Gradients of y = x weight^T + bias, for one weight or for several that read the same x (their
// rows follow one another): dx = dy weight, dweight = dy^T x, dbias = column sums of dy. The right
// operand of each product is packed in fp32, or in pairs where bf16 has a dot instruction (which
// takes dy rounded); dweight reads dy column by column, from a copy of a block of columns that
// stays in L2. Sums over tokens run in order of the tokens.
#pragma once
#include "product/dot_bwd.h"
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

// Columns [first, first + width) of dy, one after the other in memory for each token.
static inline void copy_columns(const float* dy, long stride, long rows, long first, long width,
                                float* to) {
  for (long t = 0; t < rows; ++t) std::memcpy(to + t * width, dy + t * stride + first, 4 * width);
}

// How the operands of both products lie: numbers in fp32, one for each step of what is summed.
template <class T>
struct Operands {
  using Number = float;
  static long steps(long summed) { return summed; }
  static Rows<float> rows(const float* dy, long rows, long columns, int) {
    return {dy, columns, rows, columns};
  }
  template <class Row>
  static void pack(Row row, long rows, long first, long last, long columns, float* dst) {
    for (long i = first; i < last; ++i) pack_columns(row(i), 0, 1, columns, dst + i * kNR, rows);
  }
  // Columns of dy as left operand of dweight; returns where they lie in fp32.
  static Rows<float> copy(const float* dy, long stride, long rows, long first, long width,
                          float* to) {
    copy_columns(dy, stride, rows, first, width, to);
    return {to, width, rows, width};
  }
};
#if defined(__AVX512BF16__)
template <>
struct Operands<bf16> {
  using Number = Pair;
  static long steps(long summed) { return pairs_of(summed); }
  static Rows<Pair> rows(const float* dy, long rows, long columns, int threads) {
    return rounded_pairs(dy, rows, columns, threads);
  }
  template <class Row>
  static void pack(Row row, long rows, long first, long last, long columns, Pair* dst) {
    pack_column_pairs(row, rows, first, last, columns, dst);
  }
  static Rows<float> copy(const float* dy, long stride, long rows, long first, long width,
                          Pair* to) {
    copy_column_pairs(dy, stride, rows, first, width, to);
    return {dy + first, stride, rows, width};
  }
};
#endif

// The right operand of a product: of `rows` that are summed, row(i) [columns]; packed in scratch.
template <class T, class Row>
static auto* packed_rows(Row row, long rows, long columns, int threads) {
  using Number = typename Operands<T>::Number;
  const long steps = Operands<T>::steps(rows);
  auto* packed = static_cast<Number*>(
      scratch(sizeof(Number) * packed_elements(columns, steps), Slot::kOperand));
  parallel_tasks(threads, ceil_div(steps, kPackRows), [&](long task, int) {
    const long first = task * kPackRows, left = steps - first;
    Operands<T>::pack(row, rows, first, first + (left < kPackRows ? left : kPackRows), columns,
                      packed);
  });
  return packed;
}

template <class T>
static void linear_bwd_input(const LinearBwd<T>& p) {
  const long k = p.x.k, all = p.weights * p.n;
  const auto row = [&](long i) { return p.weight[i / p.n] + i % p.n * p.weight_stride[i / p.n]; };
  const auto* packed = packed_rows<T>(row, all, k, p.threads);
  const auto dy = Operands<T>::rows(p.dy, p.x.count, all, p.threads);
  const PrepackedPanels<typename Operands<T>::Number> right{Weights{{packed}, {}, k, 1, false},
                                                            panels(k), dy.k};
  panels_product(dy, right, p.threads,
                 [&](const float* c, long ldc, long first, long rows, long panel) {
                   const long column = panel * kNR, columns = k - column < kNR ? k - column : kNR;
                   for (long r = 0; r < rows; ++r)
                     for_lanes(columns, [&](long i, int m) {
                       store_some(p.dx + (first + r) * k + column + i, load(c + r * ldc + i), m);
                     });
                 });
}

// Sums over rows: of 32 tokens at a time, then of these sums.
template <class T>
static void sum_columns(const Rows<float>& x, T* out) {
  for (long i = 0; i < x.k; i += kLanes) {
    const int m = static_cast<int>(x.k - i < kLanes ? x.k - i : kLanes);
    F total = {};
    for (long first = 0; first < x.count; first += 32) {
      F sum = {};
      for (long t = first; t < x.count && t < first + 32; ++t)
        sum += load_some(x.data + t * x.stride + i, m);
      total += sum;
    }
    store_some(out + i, total, m);
  }
}

template <class T>
static void linear_bwd_weight(const LinearBwd<T>& p) {
  using Number = typename Operands<T>::Number;
  constexpr long kBlock = 4 * kMR;
  const long k = p.x.k, rows = p.x.count, all = p.weights * p.n, per_weight = ceil_div(p.n, kBlock),
             steps = Operands<T>::steps(rows);
  const auto row = [&](long i) { return p.x.data + i * p.x.stride; };
  const Number* packed = packed_rows<T>(row, rows, k, p.threads);
  const long blocks = p.weights * per_weight;
  long chunks = ceil_div(4 * p.threads, blocks);
  if (chunks > panels(k)) chunks = panels(k);
  const long per_chunk = ceil_div(panels(k), chunks),
             per_thread = round_up(kBlock * (steps + kNR), 16);
  float* memory = static_cast<float*>(scratch(4 * per_thread * p.threads));
  parallel_tasks(p.threads, blocks * chunks, [&](long task, int thread) {
    const long w = task / chunks / per_weight, first = task / chunks % per_weight * kBlock,
               chunk = task % chunks, column = w * p.n + first;
    const long width = p.n - first < kBlock ? p.n - first : kBlock;
    float* block = memory + thread * per_thread;
    float* c = block + kBlock * steps;
    const Rows<float> columns_of_dy =
        Operands<T>::copy(p.dy, all, rows, column, width, reinterpret_cast<Number*>(block));
    if (chunk == 0 && p.dbias[w]) sum_columns(columns_of_dy, p.dbias[w] + first);
    if (!p.dweight[w]) return;
    for (long panel = chunk * per_chunk; panel < panels(k) && panel < (chunk + 1) * per_chunk;
         ++panel) {
      const long from = panel * kNR, columns = k - from < kNR ? k - from : kNR;
      panel_product<Left::kColumns>(block, width, width, steps, packed + from * steps, c, kNR);
      for (long r = 0; r < width; ++r)
        for_lanes(columns, [&](long i, int m) {
          store_some(p.dweight[w] + (first + r) * k + from + i, load(c + r * kNR + i), m);
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
