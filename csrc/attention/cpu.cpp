// Flash style: a task is (sequence, head, block of query rows). It packs the keys and values of its
// head as fp32 panels, then passes tiles of kMR query rows over blocks of kKeyBlock keys with a
// running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022), so no [S, S] matrix
// exists. Scores and sums are fp32; a row's result depends on nothing but its own sequence. Longest
// sequences go first, so that the threads end together.
#include "attention/op.h"
#include "attention/softmax.h"
#include "common/philox.h"
#include "product/pack.h"

namespace bf::BF_ISA {
namespace {

constexpr long kKeyBlock = 512;
constexpr long kQueryBlock = 20 * kMR;
constexpr float kLog2E = 1.44269504088896341f;

struct Task {
  std::int32_t sequence, head, row;
};

struct Buffers {
  float *keys, *values, *queries, *scores, *out;
  static Buffers carve(Carver& c, long longest, long d) {
    const long keys = round_up(longest, kNR), wide = round_up(d, kNR);
    const long block = keys < kKeyBlock ? keys : kKeyBlock;
    return {c.take<float>(keys * d), c.take<float>(longest * wide), c.take<float>(kMR * d + kLanes),
            c.take<float>(kMR * score_stride(block)), c.take<float>(kMR * wide)};
  }
  // Of so many keys: rows a multiple of 1024 bytes apart would fall into few sets of L1.
  static long score_stride(long padded) { return padded + 16; }
};

template <class T>
struct Head {  // one (sequence, head): where its rows begin
  const T *q, *k, *v;
  T* out;
  float* lse;
  long length, sequence, head;
};

// Rows [first, first + rows) of a head begin to come into L2: they lie far apart, so that nothing
// else asks for them early.
template <bool Write, class T>
BF_INLINE void fetch_rows(const T* from, long stride, long first, long rows, long d) {
  for (long r = first; r < first + rows; ++r)
    for (long i = 0; i < d; i += 64 / static_cast<long>(sizeof(T)))
      __builtin_prefetch(from + r * stride + i, Write, 2);
}

// `rows` (<= kMR) query rows from `first` against all keys of the head.
template <class T>
void attend_tile(const AttentionFwd& p, const Head<T>& h, const Buffers& b, long first, int rows) {
  const long d = p.head_size, wide = round_up(d, kNR), padded_length = round_up(h.length, kNR);
  const auto score = micro_of<float, Left::kColumns>(rows);
  const auto weigh = micro_of<float>(rows);
  fetch_rows<true>(h.out, p.heads * d, first, rows, d);
  pack_rows(Rows<T>{h.q, p.qkv_stride, h.length, d}, first, Tiles(rows), b.queries);
  const float scale = p.scale * kLog2E;
  for_lanes(rows * d, [&](long i, int) { store(b.queries + i, load(b.queries + i) * scale); });
  RowStates state;
  for (long key = 0; key < h.length; key += kKeyBlock) {
    const long keys = h.length - key < kKeyBlock ? h.length - key : kKeyBlock;
    const long padded = padded_length - key < kKeyBlock ? padded_length - key : kKeyBlock;
    const long ld = Buffers::score_stride(padded);
    for (long panel = 0; panel < padded; panel += kNR)
      score(d, b.queries, rows, b.keys + (key + panel) * d, b.scores + panel, ld, false, Fetch{});
    softmax_block(b.scores, ld, rows, keys, key == 0, state);
    for (int r = 0; r < rows; ++r) {
      if (p.dropout.seed)
        dropout_row(p.dropout, b.scores + r * ld, keys, key, first + r, h.head, h.sequence);
      for (long i = 0; key > 0 && i < wide; i += kLanes) {
        float* o = b.out + r * wide + i;
        store(o, load(o) * state.rescale[r]);
      }
    }
    for (long column = 0; column < d; column += kNR)
      weigh(keys, b.scores, ld, b.values + column * h.length + key * kNR, b.out + column, wide,
            key > 0, Fetch{});
  }
  for (int r = 0; r < rows; ++r) {
    const float inverse = 1.0f / state.sum[r];
    T* out = h.out + (first + r) * p.heads * d;
    for_lanes(d, [&](long i, int m) {
      store_some(out + i, load_some(b.out + r * wide + i, m) * inverse, m);
    });
    if (h.lse) h.lse[first + r] = state.max[r] / kLog2E + __builtin_logf(state.sum[r]);
  }
}

template <class T>
Head<T> head_of(const AttentionFwd& p, const Task& task) {
  const long start = p.cu_seqlens[task.sequence], d = p.head_size;
  const T* q = static_cast<const T*>(p.qkv) + start * p.qkv_stride + task.head * d;
  return {q,
          q + p.heads * d,
          q + 2 * p.heads * d,
          static_cast<T*>(p.out) + (start * p.heads + task.head) * d,
          p.lse ? p.lse + task.head * p.tokens + start : nullptr,
          p.cu_seqlens[task.sequence + 1] - start,
          task.sequence,
          task.head};
}

// `next` is likely to be this thread's next task.
template <class T>
void attend(const AttentionFwd& p, const Task& task, const Task& next, const Buffers& b) {
  const long d = p.head_size;
  const Head<T> h = head_of<T>(p, task), after = head_of<T>(p, next);
  for (long key = 0; key < h.length; key += kNR)
    pack_panel(h.k + key * p.qkv_stride, p.qkv_stride, h.length - key, d, b.keys + key * d);
  pack_columns(h.v, p.qkv_stride, h.length, d, b.values, h.length);
  const long rows = h.length - task.row < kQueryBlock ? h.length - task.row : kQueryBlock;
  const Tiles tiles(rows);
  const long share = ceil_div(after.length, tiles.count);
  long first = task.row, fetched = 0;
  for (long i = 0; i < tiles.count; ++i) {
    const long more = after.length - fetched < share ? after.length - fetched : share;
    fetch_rows<false>(after.q, p.qkv_stride, fetched, more, d);
    fetch_rows<false>(after.k, p.qkv_stride, fetched, more, d);
    fetch_rows<false>(after.v, p.qkv_stride, fetched, more, d);
    fetched += more;
    attend_tile(p, h, b, first, tiles.rows(i));
    first += tiles.rows(i);
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
    const long next = i + p.threads < count ? i + p.threads : i;
    attend<T>(p, tasks[i], tasks[next], Buffers::carve(mine, longest, p.head_size));
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
