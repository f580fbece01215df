// A task is a chunk of the vocabulary: it packs the chunk's rows of the weight, passes every labelled row over it and keeps,
// per row, the maximum and the sum of exp. The chunks are then merged in order. Logits live in one tile only.
#include "masked_cross_entropy/op.h"

#include "common/pack.h"

namespace bf {
namespace BF_ISA {
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
  const float* x;   // [labelled, k]
  float* packed;    // [kChunkPanels][k][kNR]
  float* c;         // [kRowBlock, kNR]
  Partial* partial;  // [labelled]

  void panel(long column, const float* panel_weights, long first, long rows) {
    const long columns = p.vocabulary - column < kNR ? p.vocabulary - column : kNR;
    const T* bias = p.bias ? static_cast<const T*>(p.bias) + column : nullptr;
    panel_product(x + first * p.k, p.k, rows, p.k, panel_weights, c, kNR);
    for (long r = 0; r < rows; ++r) {
      float* row = c + r * kNR;
      if (bias) for_lanes(columns, [&](long i, int m) { store_some(row + i, load_some(row + i, m) + load_some(bias + i, m), m); });
      const long label = p.labels[first + r] - column;
      if (label >= 0 && label < columns) p.logit[first + r] = row[label];
      partial[first + r] = merge_tile(partial[first + r], row, columns);
    }
  }

  void run(long chunk) {
    const T* weight = static_cast<const T*>(p.weight);
    const long begin = chunk * kChunkPanels * kNR;
    const long end = begin + kChunkPanels * kNR < p.vocabulary ? begin + kChunkPanels * kNR : p.vocabulary;
    for (long column = begin; column < end; column += kNR)
      pack_panel(weight + column * p.weight_stride, p.weight_stride, p.vocabulary - column, p.k, packed + (column - begin) * p.k);
    for (long r = 0; r < p.labelled; ++r) partial[r] = {-__builtin_inff(), 0.0f};
    for (long first = 0; first < p.labelled; first += kRowBlock) {
      const long rows = p.labelled - first < kRowBlock ? p.labelled - first : kRowBlock;
      for (long column = begin; column < end; column += kNR) panel(column, packed + (column - begin) * p.k, first, rows);
    }
  }
};

float merge_chunks(const Partial* partial, long chunks, long stride) {
  float max = -__builtin_inff(), sum = 0;
  for (long i = 0; i < chunks; ++i) max = partial[i * stride].max > max ? partial[i * stride].max : max;
  for (long i = 0; i < chunks; ++i) sum += partial[i * stride].sum * vexp(splat(partial[i * stride].max - max))[0];
  return max + __builtin_logf(sum);
}

template <class T>
void run(const MaskedCrossEntropyFwd& p) {
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
    Chunk<T>{p, x, packed, packed + kChunkPanels * kNR * p.k, partial + chunk * p.labelled}.run(chunk);
  });
  for (long r = 0; r < p.labelled; ++r) p.lse[r] = merge_chunks(partial + r, chunks, p.labelled);
}

}  // namespace

void masked_cross_entropy_fwd(const MaskedCrossEntropyFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }

}  // namespace BF_ISA
}  // namespace bf
