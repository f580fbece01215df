// A task is a chunk of the vocabulary: it packs the chunk's rows of the weight, passes every
// labelled row over it and keeps, per row, the maximum and the sum of exp. The chunks are then
// merged in order. Logits live in one tile only. What is multiplied lies as `Number`: in fp32, or
// in pairs where bf16 has a dot instruction, which then takes dlogits rounded.
#include <type_traits>

#include "masked_cross_entropy/op.h"
#include "product/linear_bwd.h"

namespace bf::BF_ISA {
namespace {

constexpr long kChunkPanels = 4;
constexpr long kRowBlock = 8 * kMR;

struct Partial {
  float max, sum;
};

// The columns past the vocabulary in the last panel never count.
BF_INLINE Partial merge_tile(Partial state, float* c, long columns) {
  for (long i = columns; i < kNR; ++i) c[i] = -__builtin_inff();
  F most = splat(state.max);
  for (long i = 0; i < kNR; i += kLanes) most = vmax(load(c + i), most);
  const float max = max_lanes(most);
  F sum = {};
  for (long i = 0; i < kNR; i += kLanes) sum += vexp(load(c + i) - max);
  const float old = state.sum > 0 ? state.sum * vexp(splat(state.max - max))[0] : 0.0f;
  return {max, old + sum_lanes(sum)};
}

template <class T>
using Number = typename Operands<T>::Number;

// A row of x as left operand.
template <class T>
static void put_row(const T* from, long k, Number<T>* to) {
  if constexpr (std::is_same_v<Number<T>, float>)
    convert_row(from, to, k);
  else
    copy_pairs(from, k, to);
}

// One panel of the weight, which lies as S: T, or float to be rounded.
template <class T, class S>
static void put_panel(const S* from, long stride, long rows, long k, Number<T>* to) {
  if constexpr (!std::is_same_v<Number<T>, float>)
    pack_pairs(from, stride, rows, k, to);
  else if constexpr (std::is_same_v<S, T>)
    pack_panel(from, stride, rows, k, to);
  else
    pack_rounded<T>(from, stride, rows, k, to);
}

template <class N>
static const float* as_floats(const N* numbers) {
  return reinterpret_cast<const float*>(numbers);
}

template <class T>
struct Chunk {
  const MaskedCrossEntropyFwd& p;
  const long steps;    // numbers of a row
  const Number<T>* x;  // [labelled, steps]
  Number<T>* packed;   // [kChunkPanels][steps][kNR]
  float* c;            // [kRowBlock, kNR]
  Partial* partial;    // [labelled]

  void panel(long column, const Number<T>* panel_weights, long first, long rows) {
    const long columns = p.vocabulary - column < kNR ? p.vocabulary - column : kNR;
    const T* bias = p.bias ? static_cast<const T*>(p.bias) + column : nullptr;
    panel_product(as_floats(x + first * steps), steps, rows, steps, panel_weights, c, kNR);
    for (long r = 0; r < rows; ++r) {
      float* row = c + r * kNR;
      if (bias)
        for_lanes(columns, [&](long i, int m) {
          store_some(row + i, load_some(row + i, m) + load_some(bias + i, m), m);
        });
      const long label = p.labels[first + r] - column;
      if (label >= 0 && label < columns) p.logit[first + r] = row[label];
      partial[first + r] = merge_tile(partial[first + r], row, columns);
    }
  }

  void run(long chunk) {
    const bool rounded = p.weight_dtype != p.dtype;
    const long begin = chunk * kChunkPanels * kNR;
    const long end =
        begin + kChunkPanels * kNR < p.vocabulary ? begin + kChunkPanels * kNR : p.vocabulary;
    for (long column = begin; column < end; column += kNR) {
      const long at = column * p.weight_stride, left = p.vocabulary - column;
      Number<T>* to = packed + (column - begin) * steps;
      if (rounded)
        put_panel<T>(static_cast<const float*>(p.weight) + at, p.weight_stride, left, p.k, to);
      else
        put_panel<T>(static_cast<const T*>(p.weight) + at, p.weight_stride, left, p.k, to);
    }
    for (long r = 0; r < p.labelled; ++r) partial[r] = {-__builtin_inff(), 0.0f};
    for (long first = 0; first < p.labelled; first += kRowBlock) {
      const long rows = p.labelled - first < kRowBlock ? p.labelled - first : kRowBlock;
      for (long column = begin; column < end; column += kNR)
        panel(column, packed + (column - begin) * steps, first, rows);
    }
  }
};

float merge_chunks(const Partial* partial, long chunks, long stride) {
  float max = -__builtin_inff(), sum = 0;
  for (long i = 0; i < chunks; ++i)
    max = partial[i * stride].max > max ? partial[i * stride].max : max;
  for (long i = 0; i < chunks; ++i)
    sum += partial[i * stride].sum * vexp(splat(partial[i * stride].max - max))[0];
  return max + __builtin_logf(sum);
}

template <class T>
void run(const MaskedCrossEntropyFwd& p) {
  if (p.labelled == 0) return;
  const long chunks = ceil_div(p.vocabulary, kChunkPanels * kNR);
  const long steps = Operands<T>::steps(p.k);
  const long per_thread = round_up(kChunkPanels * kNR * steps + kRowBlock * kNR, 16);
  Number<T>* x;
  float* buffers;
  Partial* partial;
  const auto lay_out = [&](Carver c) {
    x = c.take<Number<T>>(p.labelled * steps);
    partial = c.take<Partial>(chunks * p.labelled);
    buffers = c.take<float>(per_thread * p.threads);
    return c.used;
  };
  const long bytes = lay_out({});
  lay_out({static_cast<char*>(scratch(bytes)), 0});
  parallel_tasks(p.threads, p.labelled, [&](long r, int) {
    put_row(static_cast<const T*>(p.x) + p.rows[r] * p.x_stride, p.k, x + r * steps);
  });
  parallel_tasks(p.threads, chunks, [&](long chunk, int thread) {
    float* c = buffers + thread * per_thread;
    auto* packed = reinterpret_cast<Number<T>*>(c + kRowBlock * kNR);
    Chunk<T>{p, steps, x, packed, c, partial + chunk * p.labelled}.run(chunk);
  });
  for (long r = 0; r < p.labelled; ++r) p.lse[r] = merge_chunks(partial + r, chunks, p.labelled);
}

// Backward takes the vocabulary in slices of kSlice columns, one after the other: a slice's dlogits
// are computed again from lse, give their rows of dweight and dbias (a task owns whole rows), and
// are added to dx in the order of the slices.
constexpr long kSlice = 16 * kChunkPanels * kNR;

template <class T>
struct Backward {
  const MaskedCrossEntropyBwd& p;
  const long steps, tokens;  // numbers of a row, and of a column
  Number<T>*x, *x_columns, *weight_columns;
  float *dx, *dlogits, *buffers;
  long per_thread;

  explicit Backward(const MaskedCrossEntropyBwd& params)
      : p(params), steps(Operands<T>::steps(p.k)), tokens(Operands<T>::steps(p.labelled)) {
    const long wide = panels(p.k) * kNR;
    per_thread = round_up(kNR * (steps > tokens ? steps : tokens) + kRowBlock * kNR, 16);
    const auto lay_out = [&](Carver c) {
      x = c.take<Number<T>>(p.labelled * steps);
      x_columns = c.take<Number<T>>(tokens * wide);
      dx = c.take<float>(p.labelled * wide);
      dlogits = c.take<float>(p.labelled * kSlice);
      weight_columns = c.take<Number<T>>(kSlice * wide);
      buffers = c.take<float>(per_thread * p.threads);
      return c.used;
    };
    const long bytes = lay_out({});
    lay_out({static_cast<char*>(scratch(bytes)), 0});
  }

  const T* row_of_x(long r) const { return static_cast<const T*>(p.x) + p.rows[r] * p.x_stride; }
  const T* row_of_weight(long v) const {
    return static_cast<const T*>(p.weight) + v * p.weight_stride;
  }

  // dlogits[:, column - slice] for one panel of columns, and their dweight and dbias.
  void panel(long slice, long column, float* buffer) {
    const long columns = p.vocabulary - column < kNR ? p.vocabulary - column : kNR;
    float *c = buffer, *from = dlogits + column - slice;
    auto* operand = reinterpret_cast<Number<T>*>(buffer + kRowBlock * kNR);
    put_panel<T>(row_of_weight(column), p.weight_stride, columns, p.k, operand);
    for (long first = 0; first < p.labelled; first += kRowBlock) {
      const long rows = p.labelled - first < kRowBlock ? p.labelled - first : kRowBlock;
      panel_product(as_floats(x + first * steps), steps, rows, steps, operand, c, kNR);
      for (long r = 0; r < rows; ++r)
        slope(first + r, column, columns, c + r * kNR, from + (first + r) * kSlice);
    }
    if (p.dbias) sum_bias(column, columns, from);
    if (p.dweight) differentiate(column, columns, from, operand, c);
  }

  // Rows of dweight: the columns of dlogits, copied to `operand`, times x.
  void differentiate(long column, long columns, const float* from, Number<T>* operand, float* c) {
    Operands<T>::copy(from, kSlice, p.labelled, 0, columns, operand);
    for (long i = 0; i < p.k; i += kNR) {
      panel_product<Left::kColumns>(as_floats(operand), columns, columns, tokens,
                                    x_columns + i * tokens, c, kNR);
      const long width = p.k - i < kNR ? p.k - i : kNR;
      for (long r = 0; r < columns; ++r) {
        T* to = static_cast<T*>(p.dweight) + (column + r) * p.k + i;
        for_lanes(width, [&](long e, int m) {
          store_some(to + e, load(c + r * kNR + e) * p.scale[0], m);
        });
      }
    }
  }

  // to = softmax - one at the label; 0 past the vocabulary. What is made of it is scaled, as its
  // rounding would be the same of every label otherwise.
  void slope(long row, long column, long columns, const float* logits, float* to) {
    const T* bias = p.bias ? static_cast<const T*>(p.bias) + column : nullptr;
    for (long i = 0; i < kNR; i += kLanes) store(to + i, F{});
    for_lanes(columns, [&](long i, int m) {
      const F logit = bias ? load(logits + i) + load_some(bias + i, m) : load(logits + i);
      store_some(to + i, vexp(logit - p.lse[row]), m);
    });
    const long label = p.labels[row] - column;
    if (label >= 0 && label < columns) to[label] -= 1.0f;
  }

  void sum_bias(long column, long columns, const float* from) {
    for_lanes(columns, [&](long i, int m) {
      F total = {};
      for (long r = 0; r < p.labelled; ++r) total += load(from + r * kSlice + i);  // padded to kNR
      store_some(static_cast<T*>(p.dbias) + column + i, total * p.scale[0], m);
    });
  }

  // dx += dlogits * the slice's rows of the weight.
  void add_to_dx(long slice, long columns) {
    const auto left = Operands<T>::rows(dlogits, p.labelled, kSlice, p.threads);
    const long wide = panels(p.k) * kNR, row_blocks = ceil_div(p.labelled, kRowBlock);
    const long summed = Operands<T>::steps(columns);
    parallel_tasks(p.threads, ceil_div(summed, kNR), [&](long task, int) {
      const long first = task * kNR, last = summed - first < kNR ? summed : first + kNR;
      Operands<T>::pack([&](long i) { return row_of_weight(slice + i); }, columns, first, last, p.k,
                        weight_columns);
    });
    parallel_tasks(p.threads, row_blocks * panels(p.k), [&](long task, int) {
      const long first = task / panels(p.k) * kRowBlock, column = task % panels(p.k) * kNR;
      const long rows = p.labelled - first < kRowBlock ? p.labelled - first : kRowBlock;
      panel_product(as_floats(left.data + first * left.stride), left.stride, rows, summed,
                    weight_columns + column * summed, dx + first * wide + column, wide, slice > 0);
    });
  }

  void run() {
    parallel_tasks(p.threads, p.labelled,
                   [&](long r, int) { put_row(row_of_x(r), p.k, x + r * steps); });
    parallel_tasks(p.threads, ceil_div(tokens, kNR), [&](long task, int) {
      const long first = task * kNR, last = tokens - first < kNR ? tokens : first + kNR;
      Operands<T>::pack([&](long r) { return row_of_x(r); }, p.labelled, first, last, p.k,
                        x_columns);
    });
    for (long slice = 0; slice < p.vocabulary; slice += kSlice) {
      const long columns = p.vocabulary - slice < kSlice ? p.vocabulary - slice : kSlice;
      parallel_tasks(p.threads, ceil_div(columns, kNR), [&](long task, int thread) {
        panel(slice, slice + task * kNR, buffers + thread * per_thread);
      });
      if (p.dx) add_to_dx(slice, columns);
    }
    for (long r = 0; p.dx && r < p.labelled; ++r) {
      T* to = static_cast<T*>(p.dx) + p.rows[r] * p.k;
      for_lanes(p.k, [&](long i, int m) {
        store_some(to + i, load_some(dx + r * panels(p.k) * kNR + i, m) * p.scale[0], m);
      });
    }
  }
};

template <class T>
void run_bwd(const MaskedCrossEntropyBwd& p) {
  if (p.labelled > 0) Backward<T>(p).run();
}

}  // namespace

void masked_cross_entropy_fwd(const MaskedCrossEntropyFwd& p) {
  BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p))
}
void masked_cross_entropy_bwd(const MaskedCrossEntropyBwd& p) {
  BF_DISPATCH_DTYPE(p.dtype, T, run_bwd<T>(p))
}

}  // namespace bf::BF_ISA
