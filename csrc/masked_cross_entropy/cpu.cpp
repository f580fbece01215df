// A task is a chunk of the vocabulary: it packs the chunk's rows of the weight, passes every
// labelled row over it and keeps, per row, the maximum and the sum of exp. The chunks are then
// merged in order. Logits live in one tile only.
#include "masked_cross_entropy/op.h"
#include "product/pack.h"

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
struct Chunk {
  const MaskedCrossEntropyFwd& p;
  const float* x;    // [labelled, k]
  float* packed;     // [kChunkPanels][k][kNR]
  float* c;          // [kRowBlock, kNR]
  Partial* partial;  // [labelled]

  void panel(long column, const float* panel_weights, long first, long rows) {
    const long columns = p.vocabulary - column < kNR ? p.vocabulary - column : kNR;
    const T* bias = p.bias ? static_cast<const T*>(p.bias) + column : nullptr;
    panel_product(x + first * p.k, p.k, rows, p.k, panel_weights, c, kNR);
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
      float* to = packed + (column - begin) * p.k;
      if (rounded)
        pack_rounded<T>(static_cast<const float*>(p.weight) + at, p.weight_stride, left, p.k, to);
      else
        pack_panel(static_cast<const T*>(p.weight) + at, p.weight_stride, left, p.k, to);
    }
    for (long r = 0; r < p.labelled; ++r) partial[r] = {-__builtin_inff(), 0.0f};
    for (long first = 0; first < p.labelled; first += kRowBlock) {
      const long rows = p.labelled - first < kRowBlock ? p.labelled - first : kRowBlock;
      for (long column = begin; column < end; column += kNR)
        panel(column, packed + (column - begin) * p.k, first, rows);
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
  const long per_thread = round_up(kChunkPanels * kNR * p.k + kRowBlock * kNR, 16);
  float *x, *buffers;
  Partial* partial;
  const auto lay_out = [&](Carver c) {
    x = c.take<float>(p.labelled * p.k);
    partial = c.take<Partial>(chunks * p.labelled);
    buffers = c.take<float>(per_thread * p.threads);
    return c.used;
  };
  const long bytes = lay_out({});
  lay_out({static_cast<char*>(scratch(bytes)), 0});
  parallel_tasks(p.threads, p.labelled, [&](long r, int) {
    convert_row(static_cast<const T*>(p.x) + p.rows[r] * p.x_stride, x + r * p.k, p.k);
  });
  parallel_tasks(p.threads, chunks, [&](long chunk, int thread) {
    float* packed = buffers + thread * per_thread;
    Chunk<T>{p, x, packed, packed + kChunkPanels * kNR * p.k, partial + chunk * p.labelled}.run(
        chunk);
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
  float *x, *x_columns, *dx, *dlogits, *weight_columns, *buffers;
  long per_thread;

  explicit Backward(const MaskedCrossEntropyBwd& params) : p(params) {
    const long wide = panels(p.k) * kNR;
    per_thread = round_up(kChunkPanels * kNR * p.k + kRowBlock * kNR, 16);
    const auto lay_out = [&](Carver c) {
      x = c.take<float>(p.labelled * p.k);
      x_columns = c.take<float>(p.labelled * wide);
      dx = c.take<float>(p.labelled * wide);
      dlogits = c.take<float>(p.labelled * kSlice);
      weight_columns = c.take<float>(kSlice * wide);
      buffers = c.take<float>(per_thread * p.threads);
      return c.used;
    };
    const long bytes = lay_out({});
    lay_out({static_cast<char*>(scratch(bytes)), 0});
  }

  // dlogits[:, column - slice] for one panel of columns, and their dweight and dbias.
  void panel(long slice, long column, float* packed, float* c) {
    const T* weight = static_cast<const T*>(p.weight) + column * p.weight_stride;
    const long columns = p.vocabulary - column < kNR ? p.vocabulary - column : kNR;
    pack_panel(weight, p.weight_stride, columns, p.k, packed);
    for (long first = 0; first < p.labelled; first += kRowBlock) {
      const long rows = p.labelled - first < kRowBlock ? p.labelled - first : kRowBlock;
      panel_product(x + first * p.k, p.k, rows, p.k, packed, c, kNR);
      for (long r = 0; r < rows; ++r)
        slope(first + r, column, columns, c + r * kNR,
              dlogits + (first + r) * kSlice + column - slice);
    }
    if (p.dbias) sum_bias(column, columns, dlogits + column - slice);
    for (long i = 0; p.dweight && i < p.k; i += kNR) {
      panel_product<Left::kColumns>(dlogits + column - slice, kSlice, columns, p.labelled,
                                    x_columns + i * p.labelled, c, kNR);
      const long width = p.k - i < kNR ? p.k - i : kNR;
      for (long r = 0; r < columns; ++r) {
        T* to = static_cast<T*>(p.dweight) + (column + r) * p.k + i;
        for_lanes(width, [&](long e, int m) { store_some(to + e, load(c + r * kNR + e), m); });
      }
    }
  }

  // to = scale (softmax - one at the label); 0 past the vocabulary.
  void slope(long row, long column, long columns, const float* logits, float* to) {
    const T* bias = p.bias ? static_cast<const T*>(p.bias) + column : nullptr;
    for (long i = 0; i < kNR; i += kLanes) store(to + i, F{});
    for_lanes(columns, [&](long i, int m) {
      const F logit = bias ? load(logits + i) + load_some(bias + i, m) : load(logits + i);
      store_some(to + i, vexp(logit - p.lse[row]) * p.scale[0], m);
    });
    const long label = p.labels[row] - column;
    if (label >= 0 && label < columns) to[label] -= p.scale[0];
  }

  void sum_bias(long column, long columns, const float* from) {
    for_lanes(columns, [&](long i, int m) {
      F total = {};
      for (long r = 0; r < p.labelled; ++r) total += load(from + r * kSlice + i);  // padded to kNR
      store_some(static_cast<T*>(p.dbias) + column + i, total, m);
    });
  }

  // dx += dlogits * the slice's rows of the weight.
  void add_to_dx(long slice, long columns) {
    const T* weight = static_cast<const T*>(p.weight) + slice * p.weight_stride;
    const long wide = panels(p.k) * kNR, row_blocks = ceil_div(p.labelled, kRowBlock);
    parallel_tasks(p.threads, ceil_div(columns, kNR), [&](long task, int) {
      const long first = task * kNR, rows = columns - first < kNR ? columns - first : kNR;
      pack_columns(weight + first * p.weight_stride, p.weight_stride, rows, p.k,
                   weight_columns + first * kNR, columns);
    });
    parallel_tasks(p.threads, row_blocks * panels(p.k), [&](long task, int) {
      const long first = task / panels(p.k) * kRowBlock, column = task % panels(p.k) * kNR;
      const long rows = p.labelled - first < kRowBlock ? p.labelled - first : kRowBlock;
      panel_product(dlogits + first * kSlice, kSlice, rows, columns,
                    weight_columns + column * columns, dx + first * wide + column, wide, slice > 0);
    });
  }

  void run() {
    parallel_tasks(p.threads, p.labelled, [&](long r, int) {
      convert_row(static_cast<const T*>(p.x) + p.rows[r] * p.x_stride, x + r * p.k, p.k);
      pack_columns(x + r * p.k, p.k, 1, p.k, x_columns + r * kNR, p.labelled);
    });
    for (long slice = 0; slice < p.vocabulary; slice += kSlice) {
      const long columns = p.vocabulary - slice < kSlice ? p.vocabulary - slice : kSlice;
      parallel_tasks(p.threads, ceil_div(columns, kNR), [&](long task, int thread) {
        float* packed = buffers + thread * per_thread;
        panel(slice, slice + task * kNR, packed, packed + kNR * p.k);
      });
      if (p.dx) add_to_dx(slice, columns);
    }
    for (long r = 0; p.dx && r < p.labelled; ++r) {
      T* to = static_cast<T*>(p.dx) + p.rows[r] * p.k;
      for_lanes(p.k, [&](long i, int m) {
        store_some(to + i, load_some(dx + r * panels(p.k) * kNR + i, m), m);
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
