// One layer, forward: its five operations, for whoever walks through the layers.
#pragma once
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

// Rows on their way through a layer; everything in the dtype of the call but the statistics.
struct Stream {
  const char* x;  // [tokens, hidden]
  char *y, *qkv, *context, *inner, *out;
  char *first, *first_context;  // first rows of x and of context
  std::int32_t* ones;           // their cu_seqlens, one row a sequence
  const std::int32_t* cu_seqlens;
  long tokens, sequences;
  int threads;
  char *pre, *sum[2];  // these and below: null where no backward follows
  float *lse, *mean[2], *rstd[2];
};

template <class Params>
struct Layers {
  const Params& p;
  long width = p.heads * p.head_size, size = dtype_bytes(p.dtype), row = p.hidden * size;

  const void* weight(long layer, int which) const {
    return p.weights.data[which * p.layers + layer];
  }
  char* saved(long layer, int which) const {
    return static_cast<char*>(p.saved.data[which * p.layers + layer]);
  }
  float* statistic(long layer, int which) const {
    return reinterpret_cast<float*>(saved(layer, which));
  }
  bool drops() const { return p.attention_dropout.seed || p.out_dropout.seed || p.dropout.seed; }
  static Dropout of_layer(Dropout dropout, long layer) {
    if (dropout.seed) dropout.seed += 3 * layer;
    return dropout;
  }
  long stride(long k) const { return p.int8 ? kInt8 : p.prepacked ? 0 : k; }
  bool is_short(long layer) const { return p.first_only && layer + 1 == p.layers; }

  template <class Op>
  Op product(const Stream& s, const void* x, long rows, long n, long k) const {
    Op q;
    q.x = x, q.rows = rows, q.n = n, q.k = k, q.x_stride = k;
    q.dtype = p.dtype, q.threads = s.threads;
    return q;
  }

  void project_qkv(const Stream& s, long layer) const {
    auto q = product<QkvProjectionFwd>(s, s.x, s.tokens, width, p.hidden);
    for (int i = 0; i < 3; ++i) {
      q.weight[i] = weight(layer, kQuery + i), q.bias[i] = weight(layer, kBias + kQuery + i);
      q.weight_stride[i] = stride(p.hidden);
    }
    q.weight_dtype = p.dtype, q.out = s.qkv;
    qkv_projection_fwd(q);
  }

  template <class Op>
  Op attention(const Stream& s, long layer) const {
    Op q;
    q.qkv = s.qkv, q.cu_seqlens = s.cu_seqlens, q.tokens = s.tokens, q.sequences = s.sequences;
    q.heads = p.heads, q.head_size = p.head_size, q.qkv_stride = 3 * width, q.scale = p.scale;
    q.dropout = of_layer(p.attention_dropout, layer), q.dtype = p.dtype, q.threads = s.threads;
    return q;
  }

  void attend(const Stream& s, long layer) const {
    auto q = attention<AttentionFwd>(s, layer);
    q.out = s.context, q.lse = s.lse;
    attention_fwd(q);
  }

  // LN(residual + dropout(x weight^T + bias)), the end of the layer's half 0 or 1.
  void end_half(const Stream& s, long layer, int half, const void* x, const void* residual,
                void* out, long rows) const {
    const int which = half ? kOuter : kOut, norm = half ? kNorm : kOutNorm;
    const long k = half ? p.inner : width;
    auto q = product<LinearLayernormFwd>(s, x, rows, p.hidden, k);
    q.weight = weight(layer, which), q.bias = weight(layer, kBias + which);
    q.weight_dtype = q.ln_dtype = p.dtype, q.weight_stride = stride(k);
    q.ln_weight = weight(layer, norm), q.ln_bias = weight(layer, norm + 1);
    q.residual = residual, q.residual_stride = p.hidden, q.out = out;
    q.z = s.sum[half], q.mean = s.mean[half], q.rstd = s.rstd[half];
    q.eps = p.eps.data[2 * layer + half];
    drop(q, s, layer, half);
    linear_layernorm_fwd(q);
  }

  // The dropout of a half's end: its counters are positions in the sequences.
  template <class Op>
  void drop(Op& q, const Stream& s, long layer, int half) const {
    q.dropout = of_layer(half ? p.dropout : p.out_dropout, layer);
    q.cu_seqlens = is_short(layer) ? s.ones : s.cu_seqlens, q.sequences = s.sequences;
  }

  void activate(const Stream& s, long layer, long rows) const {
    auto q = product<LinearGeluFwd>(s, s.y, rows, p.inner, p.hidden);
    q.weight = weight(layer, kInner), q.bias = weight(layer, kBias + kInner);
    q.weight_stride = stride(p.hidden);
    q.weight_dtype = p.dtype, q.out = s.inner, q.pre = s.pre;
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

  // s.x -> s.out, through the other members.
  void forward(const Stream& s, long layer) const {
    project_qkv(s, layer);
    attend(s, layer);
    const char *context = s.context, *residual = s.x;
    long rows = s.tokens;
    if (is_short(layer)) {
      rows = s.sequences;
      first_rows(s, s.context, width * size, s.first_context);
      first_rows(s, s.x, row, s.first);
      context = s.first_context, residual = s.first;
    }
    end_half(s, layer, 0, context, residual, s.y, rows);
    activate(s, layer, rows);
    end_half(s, layer, 1, s.inner, s.y, s.out, rows);
  }

  // Memory for a stream that saves nothing, behind x and out.
  void carve(Carver& c, Stream& s, long tokens, long sequences) const {
    const long rows = larger(tokens, sequences);  // with empty sequences there are more of these
    s.y = c.take<char>(rows * row);
    s.qkv = c.take<char>(tokens * 3 * width * size);
    s.context = c.take<char>(tokens * width * size);
    s.inner = c.take<char>(rows * p.inner * size);
    carve_first(c, s, sequences);
  }
  void carve_first(Carver& c, Stream& s, long sequences) const {
    if (!p.first_only) return;
    s.first = c.take<char>(sequences * row);
    s.first_context = c.take<char>(sequences * width * size);
    s.ones = c.take<std::int32_t>(sequences + 1);
  }

  // All the rows of the call, on all its threads.
  Stream whole() const {
    Stream s{};
    s.x = static_cast<const char*>(p.x), s.cu_seqlens = p.cu_seqlens;
    s.tokens = p.tokens, s.sequences = p.sequences, s.threads = p.threads;
    return s;
  }

  // What a layer leaves goes to `saved`.
  void save_to(Stream& s, long layer) const {
    s.qkv = saved(layer, kQkv), s.context = saved(layer, kContext);
    s.y = saved(layer, kFirstHalf), s.pre = saved(layer, kPre), s.inner = saved(layer, kActivated);
    s.lse = statistic(layer, kLse);
    for (int half = 0; half < 2; ++half) {
      s.sum[half] = saved(layer, kSum + half);
      s.mean[half] = statistic(layer, kMean + half), s.rstd[half] = statistic(layer, kRstd + half);
    }
  }

  // One block of memory, laid out by lay_out(carver, stream).
  template <class LayOut>
  void take(Stream& s, LayOut lay_out) const {
    Carver size;
    Stream none = s;
    lay_out(size, none);
    Carver memory{take(size.used), 0};
    lay_out(memory, s);
    for (long i = 0; s.ones && i <= s.sequences; ++i) s.ones[i] = static_cast<std::int32_t>(i);
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
}  // namespace bf::BF_ISA
