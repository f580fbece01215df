// Flash style: a task is (sequence, head, block of query rows). It packs the keys and values of its
// head as fp32 panels, then passes tiles of kMR query rows over blocks of kKeyBlock keys with a
// running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022), so no [S, S] matrix
// exists. Scores and sums are fp32; a row's result depends on nothing but its own sequence. Longest
// sequences go first, so that the threads end together.
#include "attention/op.h"
#include "common/philox.h"
#include "product/pack.h"

namespace bf::BF_ISA {
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

// Query rows [first, first + count) in fp32: the data itself, or a converted copy in `buffer`.
template <class T>
const float* rows_fp32(const Rows<T>& x, long first, long count, float* buffer, long* lda) {
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

struct RowState {
  float max = -__builtin_inff(), sum = 0;
};

// One row of scores becomes exp(scale * s - max); the row's state moves on. Returns what the output
// so far is scaled by.
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
      tile(d, q, ldq, b.keys + (key + panel) * d, b.scores + panel, padded, false, Fetch{});
    for (int r = 0; r < rows; ++r) {
      const float rescale = softmax_block(b.scores + r * padded, keys, padded, p.scale, state[r]);
      if (p.dropout.seed)
        dropout_row(p.dropout, b.scores + r * padded, keys, key, first + r, h.head, h.sequence);
      for (long i = 0; key > 0 && i < wide; i += kLanes) {
        float* o = b.out + r * wide + i;
        store(o, load(o) * rescale);
      }
    }
    for (long column = 0; column < d; column += kNR)
      tile(keys, b.scores, padded, b.values + column * h.length + key * kNR, b.out + column, wide,
           key > 0, Fetch{});
  }
  for (int r = 0; r < rows; ++r) {
    const float inverse = 1.0f / state[r].sum;
    T* out = h.out + (first + r) * p.heads * d;
    for_lanes(d, [&](long i, int m) {
      store_some(out + i, load_some(b.out + r * wide + i, m) * inverse, m);
    });
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
void zero_rows_behind(
    const AttentionFwd& p) {  // tokens that belong to no sequence (a pack with spare capacity)
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
      for (long row = 0; row < p.cu_seqlens[order[i] + 1] - p.cu_seqlens[order[i]];
           row += kQueryBlock)
        tasks[at++] = {order[i], head, static_cast<std::int32_t>(row)};
  parallel_tasks(p.threads, count, [&](long i, int thread) {
    Carver mine{buffers + thread * per_thread, 0};
    attend<T>(p, tasks[i], Buffers::carve(mine, longest, p.head_size));
  });
  zero_rows_behind<T>(p);
}

// Backward. A task is one (sequence, head) and owns its rows of dqkv. Probabilities are computed
// again from lse, a block of query rows at a time: with P the probabilities, M the dropout's
// factors and D = rowsum(dout out),
//   dv += (P M)^T dout,  dS = scale P (M (dout v^T) - D),  dq = dS k,  dk += dS^T q.
constexpr long kBwdBlock = 5 * kMR;

struct BwdBuffers {
  float *keys_t, *values_t, *keys, *q, *dout, *out, *q_columns, *dout_columns, *p, *ds, *dq, *dk,
      *dv;
  static BwdBuffers carve(Carver& c, long longest, long d) {
    const long padded = round_up(longest, kNR), wide = round_up(d, kNR);
    const auto take = [&](long count) { return c.take<float>(count); };
    return {take(padded * d),         take(padded * d),       take(longest * wide),
            take(kBwdBlock * d),      take(kBwdBlock * d),    take(kBwdBlock * d),
            take(kBwdBlock * wide),   take(kBwdBlock * wide), take(kBwdBlock * padded),
            take(kBwdBlock * padded), take(kBwdBlock * wide), take(longest * wide),
            take(longest * wide)};
  }
};

template <class T>
struct HeadBwd {
  const AttentionBwd& p;
  const BwdBuffers& b;
  const T *q, *k, *v, *dout, *out;
  const float* lse;
  long length, sequence, head, padded, wide;

  HeadBwd(const AttentionBwd& params, const BwdBuffers& buffers, long s, long h)
      : p(params), b(buffers), sequence(s), head(h) {
    const long start = p.cu_seqlens[s], d = p.head_size, width = p.heads * d;
    length = p.cu_seqlens[s + 1] - start;
    padded = round_up(length, kNR);
    wide = round_up(d, kNR);
    q = static_cast<const T*>(p.qkv) + start * p.qkv_stride + h * d;
    k = q + width;
    v = k + width;
    dout = static_cast<const T*>(p.dout) + start * width + h * d;
    out = static_cast<const T*>(p.out) + start * width + h * d;
    lse = p.lse + h * p.tokens + start;
  }

  // P M and dS of `rows` query rows from `first`, as rows of b.p and b.ds (columns past the keys
  // are zeros).
  void probabilities(long first, long rows) {
    const long d = p.head_size;
    for (long panel = 0; panel < padded; panel += kNR) {
      panel_product(b.q, d, rows, d, b.keys_t + panel * d, b.p + panel, padded);
      panel_product(b.dout, d, rows, d, b.values_t + panel * d, b.ds + panel, padded);
    }
    for (long r = 0; r < rows; ++r) {
      float* probability = b.p + r * padded;
      float* slope = b.ds + r * padded;
      F dots = {};
      for_lanes(d, [&](long i, int m) {
        dots += load_some(b.dout + r * d + i, m) * load_some(b.out + r * d + i, m);
      });
      const float dot = sum_lanes(dots);
      for (long i = 0; i < padded; i += kLanes)
        store(probability + i, vexp(load(probability + i) * p.scale - lse[first + r]));
      for (long i = length; i < padded; ++i) probability[i] = 0;
      if (p.dropout.seed) dropout_row(p.dropout, slope, length, 0, first + r, head, sequence);
      for (long i = 0; i < padded; i += kLanes)
        store(slope + i, load(probability + i) * (load(slope + i) - dot) * p.scale);
      if (p.dropout.seed) dropout_row(p.dropout, probability, length, 0, first + r, head, sequence);
    }
  }

  void load_rows(const T* from, long stride, long first, long rows, float* to, float* columns) {
    const long d = p.head_size;
    for (long r = 0; r < rows; ++r) convert_row(from + (first + r) * stride, to + r * d, d);
    if (columns) pack_columns(to, d, rows, d, columns, rows);
  }

  void block(long first, long rows) {
    const long d = p.head_size, width = p.heads * d;
    load_rows(q, p.qkv_stride, first, rows, b.q, b.q_columns);
    load_rows(dout, width, first, rows, b.dout, b.dout_columns);
    load_rows(out, width, first, rows, b.out, nullptr);
    probabilities(first, rows);
    for (long column = 0; column < d; column += kNR) {
      panel_product<Left::kColumns>(b.p, padded, length, rows, b.dout_columns + column * rows,
                                    b.dv + column, wide, first > 0);
      panel_product<Left::kColumns>(b.ds, padded, length, rows, b.q_columns + column * rows,
                                    b.dk + column, wide, first > 0);
      panel_product(b.ds, padded, rows, length, b.keys + column * length, b.dq + column, wide);
    }
    write(0, b.dq, first, rows);
  }

  void write(long part, const float* from, long first,
             long rows) {  // part: 0 query, 1 key, 2 value
    const long d = p.head_size, width = p.heads * d, start = p.cu_seqlens[sequence];
    for (long r = 0; r < rows; ++r) {
      T* to = static_cast<T*>(p.dqkv) + ((start + first + r) * 3 + part) * width + head * d;
      for_lanes(d,
                [&](long i, int m) { store_some(to + i, load_some(from + r * wide + i, m), m); });
    }
  }

  void run() {
    const long d = p.head_size;
    for (long key = 0; key < length; key += kNR) {
      pack_panel(k + key * p.qkv_stride, p.qkv_stride, length - key, d, b.keys_t + key * d);
      pack_panel(v + key * p.qkv_stride, p.qkv_stride, length - key, d, b.values_t + key * d);
    }
    pack_columns(k, p.qkv_stride, length, d, b.keys, length);
    for (long first = 0; first < length; first += kBwdBlock)
      block(first, length - first < kBwdBlock ? length - first : kBwdBlock);
    write(1, b.dk, 0, length);
    write(2, b.dv, 0, length);
  }
};

template <class T>
void run_bwd(const AttentionBwd& p) {
  long longest = 0;
  for (long s = 0; s < p.sequences; ++s) {
    const long length = p.cu_seqlens[s + 1] - p.cu_seqlens[s];
    longest = length > longest ? length : longest;
  }
  Carver size;
  BwdBuffers::carve(size, longest, p.head_size);
  const long per_thread = size.used;
  std::int32_t* order = static_cast<std::int32_t*>(scratch(4 * p.sequences, Slot::kSums));
  char* buffers = static_cast<char*>(scratch(per_thread * p.threads));
  longest_first(p.cu_seqlens, p.sequences, order);
  parallel_tasks(p.threads, p.sequences * p.heads, [&](long task, int thread) {
    Carver mine{buffers + thread * per_thread, 0};
    const long s = order[task / p.heads];
    if (p.cu_seqlens[s + 1] == p.cu_seqlens[s]) return;
    HeadBwd<T>(p, BwdBuffers::carve(mine, longest, p.head_size), s, task % p.heads).run();
  });
}

}  // namespace

void attention_fwd(const AttentionFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }
void attention_bwd(const AttentionBwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run_bwd<T>(p)) }

}  // namespace bf::BF_ISA
