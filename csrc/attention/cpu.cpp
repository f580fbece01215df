// Flash style: a task is (sequence, head, block of query rows). It packs the keys and values of its head as fp32 panels,
// then passes tiles of kMR query rows over blocks of kKeyBlock keys with a running maximum and sum (Milakov and
// Gimelshein 2018; Dao et al. 2022), so no [S, S] matrix exists. Scores and sums are fp32; a row's result depends on
// nothing but its own sequence. Longest sequences go first, so that the threads end together.
#include "attention/op.h"

#include "common/pack.h"
#include "common/philox.h"

namespace bf {
namespace BF_ISA {
namespace {

constexpr long kKeyBlock = 512;
constexpr long kQueryBlock = 20 * kMR;

struct Task {
  std::int32_t sequence, head, row;
};

struct Buffers {
  float *keys, *values, *queries, *scores, *out;
  static Buffers carve(Carver& c, long longest, long d) {
    const long keys = round_up(longest, kNR), wide = round_up(d, kNR);
    return {c.take<float>(keys * d), c.take<float>(longest * wide), c.take<float>(kMR * d),
            c.take<float>(kMR * (keys < kKeyBlock ? keys : kKeyBlock)), c.take<float>(kMR * wide)};
  }
};

struct RowState {
  float max = -__builtin_inff(), sum = 0;
};

// One row of scores becomes exp(scale * s - max); the row's state moves on. Returns what the output so far is scaled by.
BF_INLINE float softmax_block(float* s, long keys, long padded, float scale, RowState& state) {
  for (long i = keys; i < padded; ++i) s[i] = -__builtin_inff();
  F most = splat(-__builtin_inff());
  for (long i = 0; i < padded; i += kLanes) {
    const F x = load(s + i) * scale;
    store(s + i, x);
    most = vmax(x, most);
  }
  const float block_max = max_lanes(most);
  const float max = block_max > state.max ? block_max : state.max;
  F sum = {};
  for (long i = 0; i < padded; i += kLanes) {
    const F e = vexp(load(s + i) - max);
    store(s + i, e);
    sum += e;
  }
  const float rescale = state.sum > 0 ? vexp(splat(state.max - max))[0] : 0.0f;
  state.sum = state.sum * rescale + sum_lanes(sum);
  state.max = max;
  return rescale;
}

template <class T>
struct Head {  // one (sequence, head): where its rows begin
  const T *q, *k, *v;
  T* out;
  float* lse;
  long length, sequence, head;
};

// `rows` (<= kMR) query rows from `first` against all keys of the head.
template <class T>
void attend_tile(const AttentionFwd& p, const Head<T>& h, const Buffers& b, long first, int rows) {
  const long d = p.head_size, wide = round_up(d, kNR), padded_length = round_up(h.length, kNR);
  const Micro<float> tile = micro_of<float>(rows);
  long ldq;
  const float* q = rows_fp32(Rows<T>{h.q, p.qkv_stride, h.length, d}, first, rows, b.queries, &ldq);
  RowState state[kMR];
  for (long key = 0; key < h.length; key += kKeyBlock) {
    const long keys = h.length - key < kKeyBlock ? h.length - key : kKeyBlock;
    const long padded = padded_length - key < kKeyBlock ? padded_length - key : kKeyBlock;
    for (long panel = 0; panel < padded; panel += kNR)
      tile(d, q, ldq, b.keys + (key + panel) * d, b.scores + panel, padded, false);
    for (int r = 0; r < rows; ++r) {
      const float rescale = softmax_block(b.scores + r * padded, keys, padded, p.scale, state[r]);
      if (p.dropout.seed) dropout_row(p.dropout, b.scores + r * padded, keys, key, first + r, h.head, h.sequence);
      for (long i = 0; key > 0 && i < wide; i += kLanes) {
        float* o = b.out + r * wide + i;
        store(o, load(o) * rescale);
      }
    }
    for (long column = 0; column < d; column += kNR)
      tile(keys, b.scores, padded, b.values + column * h.length + key * kNR, b.out + column, wide, key > 0);
  }
  for (int r = 0; r < rows; ++r) {
    const float inverse = 1.0f / state[r].sum;
    T* out = h.out + (first + r) * p.heads * d;
    for_lanes(d, [&](long i, int m) { store_some(out + i, load_some(b.out + r * wide + i, m) * inverse, m); });
    if (h.lse) h.lse[first + r] = state[r].max + __builtin_logf(state[r].sum);
  }
}

template <class T>
void attend(const AttentionFwd& p, const Task& task, const Buffers& b) {
  const long start = p.cu_seqlens[task.sequence], d = p.head_size;
  const T* q = static_cast<const T*>(p.qkv) + start * p.qkv_stride + task.head * d;
  const Head<T> h{q,
                  q + p.heads * d,
                  q + 2 * p.heads * d,
                  static_cast<T*>(p.out) + (start * p.heads + task.head) * d,
                  p.lse ? p.lse + task.head * p.tokens + start : nullptr,
                  p.cu_seqlens[task.sequence + 1] - start,
                  task.sequence,
                  task.head};
  for (long key = 0; key < h.length; key += kNR)
    pack_panel(h.k + key * p.qkv_stride, p.qkv_stride, h.length - key, d, b.keys + key * d);
  pack_columns(h.v, p.qkv_stride, h.length, d, b.values, h.length);
  const long rows = h.length - task.row < kQueryBlock ? h.length - task.row : kQueryBlock;
  const long tiles = ceil_div(rows, kMR), height = rows / tiles, higher = rows % tiles;
  long first = task.row;
  for (long i = 0; i < tiles; ++i) {
    const int n = static_cast<int>(height + (i < higher));
    attend_tile(p, h, b, first, n);
    first += n;
  }
}

template <class T>
void zero_rows_behind(const AttentionFwd& p) {  // tokens that belong to no sequence (a pack with spare capacity)
  const long used = p.cu_seqlens[p.sequences], width = p.heads * p.head_size;
  std::memset(static_cast<T*>(p.out) + used * width, 0, (p.tokens - used) * width * sizeof(T));
  for (long head = 0; p.lse && head < p.heads; ++head)
    std::memset(p.lse + head * p.tokens + used, 0, (p.tokens - used) * sizeof(float));
}

template <class T>
void run(const AttentionFwd& p) {
  long count = 0, longest = 0;
  for (long s = 0; s < p.sequences; ++s) {
    const long length = p.cu_seqlens[s + 1] - p.cu_seqlens[s];
    longest = length > longest ? length : longest;
    count += ceil_div(length, kQueryBlock) * p.heads;
  }
  Carver size;
  Buffers::carve(size, longest, p.head_size);
  const long per_thread = size.used;
  Carver carver;
  const auto lay_out = [&](Carver& c, std::int32_t** order, Task** tasks, char** buffers) {
    *order = c.take<std::int32_t>(p.sequences);
    *tasks = c.take<Task>(count);
    *buffers = c.take<char>(per_thread * p.threads);
  };
  std::int32_t* order;
  Task* tasks;
  char* buffers;
  lay_out(carver, &order, &tasks, &buffers);
  carver = {static_cast<char*>(scratch(carver.used)), 0};
  lay_out(carver, &order, &tasks, &buffers);
  longest_first(p.cu_seqlens, p.sequences, order);
  long at = 0;
  for (long i = 0; i < p.sequences; ++i)
    for (std::int32_t head = 0; head < p.heads; ++head)
      for (long row = 0; row < p.cu_seqlens[order[i] + 1] - p.cu_seqlens[order[i]]; row += kQueryBlock)
        tasks[at++] = {order[i], head, static_cast<std::int32_t>(row)};
  parallel_tasks(p.threads, count, [&](long i, int thread) {
    Carver mine{buffers + thread * per_thread, 0};
    attend<T>(p, tasks[i], Buffers::carve(mine, longest, p.head_size));
  });
  zero_rows_behind<T>(p);
}

}  // namespace

void attention_fwd(const AttentionFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }

}  // namespace BF_ISA
}  // namespace bf
