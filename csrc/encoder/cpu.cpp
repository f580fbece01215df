// Sequences do not meet anywhere, so a thread takes a group of them through all layers and waits
// for no other. Where groups of equal work cannot be made, or would be so small that weights are
// what takes the time, all threads work on one operation after the other. A row's bits are the same
// either way.
#include "attention/op.h"
#include "common/parallel.h"
#include "encoder/groups.h"
#include "linear_gelu/op.h"
#include "linear_layernorm/op.h"
#include "product/int8_weight.h"
#include "qkv_projection/op.h"

namespace bf::BF_ISA {
namespace {

BF_INLINE long larger(long a, long b) { return a > b ? a : b; }

// Rows on their way through the layers; everything in the dtype of the call.
struct Stream {
  const char* x;  // [tokens, hidden]
  char* out;      // of the last layer
  char *y, *qkv, *context, *inner, *first, *next;
  const std::int32_t* cu_seqlens;
  long tokens, sequences;
  int threads;
};

struct Encoder {
  const EncoderFwd& p;
  long width = p.heads * p.head_size, size = dtype_bytes(p.dtype), row = p.hidden * size;

  const void* weight(long layer, int which) const {
    return p.weights.data[which * p.layers + layer];
  }

  long stride(long k) const { return p.int8 ? kInt8 : p.prepacked ? 0 : k; }

  template <class Op>
  Op linear(const Stream& s, const void* x, long rows, long n, long k) const {
    Op q;
    q.x = x, q.rows = rows, q.n = n, q.k = k, q.x_stride = k;
    q.dtype = q.weight_dtype = p.dtype, q.threads = s.threads;
    return q;
  }

  void project_qkv(const Stream& s, long layer) const {
    auto q = linear<QkvProjectionFwd>(s, s.x, s.tokens, width, p.hidden);
    for (int i = 0; i < 3; ++i) {
      q.weight[i] = weight(layer, kQuery + i), q.bias[i] = weight(layer, kBias + kQuery + i);
      q.weight_stride[i] = stride(p.hidden);
    }
    q.out = s.qkv;
    qkv_projection_fwd(q);
  }

  void attend(const Stream& s) const {
    AttentionFwd q;
    q.qkv = s.qkv, q.cu_seqlens = s.cu_seqlens, q.out = s.context;
    q.tokens = s.tokens, q.sequences = s.sequences, q.heads = p.heads, q.head_size = p.head_size;
    q.qkv_stride = 3 * width, q.scale = p.scale, q.dtype = p.dtype, q.threads = s.threads;
    attention_fwd(q);
  }

  // LN(residual + x weight^T + bias): `which` is the product, `norm` the LN.
  void end_half(const Stream& s, long layer, int which, int norm, const void* x,
                const void* residual, void* out, long rows, long k) const {
    auto q = linear<LinearLayernormFwd>(s, x, rows, p.hidden, k);
    q.weight = weight(layer, which), q.bias = weight(layer, kBias + which);
    q.weight_stride = stride(k);
    q.ln_weight = weight(layer, norm), q.ln_bias = weight(layer, norm + 1);
    q.residual = residual, q.residual_stride = p.hidden, q.out = out, q.ln_dtype = p.dtype;
    q.eps = p.eps.data[2 * layer + (norm == kNorm)];
    linear_layernorm_fwd(q);
  }

  void activate(const Stream& s, long layer, long rows) const {
    auto q = linear<LinearGeluFwd>(s, s.y, rows, p.inner, p.hidden);
    q.weight = weight(layer, kInner), q.bias = weight(layer, kBias + kInner);
    q.weight_stride = stride(p.hidden);
    q.out = s.inner;
    linear_gelu_fwd(q);
  }

  // The first row of every sequence; zeros for an empty one.
  void first_rows(const Stream& s, const char* from, long bytes, char* to) const {
    for (long i = 0; i < s.sequences; ++i, to += bytes)
      if (s.cu_seqlens[i + 1] > s.cu_seqlens[i])
        std::memcpy(to, from + s.cu_seqlens[i] * bytes, bytes);
      else
        std::memset(to, 0, bytes);
  }

  // done(layer, rows of its output) after every layer.
  template <class Done>
  void run(Stream s, Done done) const {
    for (long layer = 0; layer < p.layers; ++layer) {
      const bool last = layer + 1 == p.layers;
      project_qkv(s, layer);
      attend(s);
      const char *context = s.context, *residual = s.x;
      long rows = s.tokens;
      if (last && p.first_only) {
        rows = s.sequences;
        first_rows(s, s.context, width * size, s.inner);  // which is free here
        first_rows(s, s.x, row, s.first);
        context = s.inner, residual = s.first;
      }
      end_half(s, layer, kOut, kOutNorm, context, residual, s.y, rows, width);
      activate(s, layer, rows);
      char* out = last ? s.out : s.next;
      end_half(s, layer, kOuter, kNorm, s.inner, s.y, out, rows, p.inner);
      done(layer, out);
      s.x = out;
    }
  }

  // Memory of a stream of so many tokens and sequences, behind x and out.
  void carve(Carver& c, Stream& s, long tokens, long sequences) const {
    const long rows = larger(tokens, sequences);  // with empty sequences there are more of these
    s.y = c.take<char>(rows * row);
    s.next = c.take<char>(rows * row);
    s.qkv = c.take<char>(tokens * 3 * width * size);
    s.context = c.take<char>(rows * width * size);
    s.inner = c.take<char>(rows * larger(p.inner, width) * size);
    s.first = c.take<char>(sequences * row);
  }

  // All threads on every operation.
  void together() const {
    Stream s{};
    Carver size;
    carve(size, s, p.tokens, p.sequences);
    Carver memory{take(size.used), 0};
    carve(memory, s, p.tokens, p.sequences);
    s.x = static_cast<const char*>(p.x), s.out = static_cast<char*>(p.out);
    s.cu_seqlens = p.cu_seqlens, s.tokens = p.tokens, s.sequences = p.sequences;
    s.threads = p.threads;
    run(s, [&](long layer, const char* rows) {
      if (p.states) std::memcpy(state(layer), rows, p.tokens * row);
    });
  }

  char* state(long layer) const { return static_cast<char*>(p.states) + layer * p.tokens * row; }

  // Calls body(place in the group, place in the batch, bytes) for the rows of each sequence.
  template <class Body>
  void each_sequence(const Groups& groups, long group, Body body) const {
    const std::int32_t* starts = groups.starts + groups.first[group] + group;
    for (long i = groups.first[group]; i < groups.first[group + 1]; ++i, ++starts)
      body(*starts * row, p.cu_seqlens[groups.order[i]] * row, (starts[1] - *starts) * row);
  }

  void one_group(const Groups& groups, long group, Stream s) const {
    const long begin = groups.first[group];
    s.sequences = groups.first[group + 1] - begin;
    s.cu_seqlens = groups.starts + begin + group;
    s.tokens = s.cu_seqlens[s.sequences];
    char *x = const_cast<char*>(s.x), *out = static_cast<char*>(p.out);
    each_sequence(groups, group, [&](long here, long there, long bytes) {
      std::memcpy(x + here, static_cast<const char*>(p.x) + there, bytes);
    });
    run(s, [&](long layer, const char* rows) {
      if (!p.states) return;
      each_sequence(groups, group, [&](long here, long there, long bytes) {
        std::memcpy(state(layer) + there, rows + here, bytes);
      });
    });
    if (p.first_only)
      for (long i = 0; i < s.sequences; ++i)
        std::memcpy(out + groups.order[begin + i] * row, s.out + i * row, row);
    else
      each_sequence(groups, group, [&](long here, long there, long bytes) {
        std::memcpy(out + there, s.out + here, bytes);
      });
  }

  // A group a task. Kernels take scratch memory of the thread that they run on.
  void apart(const Groups& groups) const {
    const auto lay_out = [&](Carver& c) {
      Stream s{};
      const long rows = larger(groups.tokens, groups.sequences);
      s.x = c.take<char>(rows * row);
      s.out = c.take<char>(rows * row);
      carve(c, s, groups.tokens, groups.sequences);
      s.threads = 1;
      return s;
    };
    Carver size;
    lay_out(size);
    char* memory = take(size.used * p.threads);
    bool failed = false;
    parallel_tasks(p.threads, groups.count, [&](long i, int thread) {
      try {
        Carver mine{memory + thread * size.used, 0};
        one_group(groups, i, lay_out(mine));
      } catch (...) {  // no memory; nothing may be thrown through a parallel region
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      }
    });
    if (failed) no_memory_for_layers(size.used * p.threads, p.tokens);
  }

  char* take(long bytes) const {
    try {
      return static_cast<char*>(scratch(bytes, Slot::kEncoder));
    } catch (...) {
      no_memory_for_layers(bytes, p.tokens);
    }
  }
};

}  // namespace

void encoder_fwd(const EncoderFwd& p) {
  const Encoder encoder{p};
  const Groups groups = make_groups(p);
  groups.count ? encoder.apart(groups) : encoder.together();
}

}  // namespace bf::BF_ISA
