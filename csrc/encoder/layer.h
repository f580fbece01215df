// One layer, forward: its five operations, for whoever walks through the layers. On CPUs and, with
// BF_ISA as cuda, on GPUs: the Machine runs an operation and picks rows (cpu_machine.h, cuda.cu).
#pragma once
#include "attention/op.h"
#include "encoder/op.h"
#include "linear_gelu/op.h"
#include "linear_layernorm/op.h"
#include "product/int8_weight.h"
#include "qkv_projection/op.h"

// X(name, struct) for what a layer is made of.
#define BF_FOR_EACH_PART(X)                   \
  X(qkv_projection_fwd, QkvProjectionFwd)     \
  X(qkv_projection_bwd, QkvProjectionBwd)     \
  X(attention_fwd, AttentionFwd)              \
  X(attention_bwd, AttentionBwd)              \
  X(linear_gelu_fwd, LinearGeluFwd)           \
  X(linear_gelu_bwd, LinearGeluBwd)           \
  X(linear_layernorm_fwd, LinearLayernormFwd) \
  X(linear_layernorm_bwd, LinearLayernormBwd)

namespace bf::BF_ISA {
namespace {

static inline long larger(long a, long b) { return a > b ? a : b; }

// Rows on their way through a layer; everything in the dtype of the call but the statistics.
struct Stream {
  const char* x;  // [tokens, hidden]
  char *y, *qkv, *context, *inner, *out;
  char *first, *first_context;            // first rows of x and of context
  std::int32_t* ones;                     // their cu_seqlens, one row a sequence
  const std::int32_t *cu_seqlens, *used;  // used: see Gpu; of tokens
  long tokens, sequences;
  int threads;
  char *pre, *sum[2];  // these and below: null where no backward follows
  float *lse, *mean[2], *rstd[2];
};

template <class Params, class Machine>
struct Layers : Machine {
  const Params& p;
  Layers(const Params& params, Machine machine) : Machine(machine), p(params) {}

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
  bool by_cublaslt(long layer, int which, bool backward) const {
    const int bit = (which > kQuery ? which - kOut + 1 : 0) + 4 * backward;
    return p.cublaslt.size && p.cublaslt.data[layer] >> bit & 1;
  }
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
    q.weight_dtype = p.dtype, q.out = s.qkv, q.gpu.used = s.used;
    q.gpu.cublaslt = by_cublaslt(layer, kQuery, false);
    this->run_part(q);
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
    this->run_part(q);
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
    q.gpu.cublaslt = by_cublaslt(layer, which, false);
    q.gpu.used = is_short(layer) ? nullptr : s.used;
    drop(q, s, layer, half);
    this->run_part(q);
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
    q.gpu.used = is_short(layer) ? nullptr : s.used;
    this->run_part(q);
  }

  // s.x -> s.out, through the other members.
  void forward(const Stream& s, long layer) const {
    project_qkv(s, layer);
    attend(s, layer);
    const char *context = s.context, *residual = s.x;
    long rows = s.tokens;
    if (is_short(layer)) {
      rows = s.sequences;
      this->first_rows(s, s.context, width * size, s.first_context);
      this->first_rows(s, s.x, row, s.first);
      context = s.first_context, residual = s.first;
    }
    end_half(s, layer, 0, context, residual, s.y, rows);
    activate(s, layer, rows);
    end_half(s, layer, 1, s.inner, s.y, s.out, rows);
  }

  // Memory for a stream that saves nothing, behind x and out.
  template <class Memory>
  void carve(Memory& c, Stream& s, long tokens, long sequences) const {
    const long rows = larger(tokens, sequences);  // with empty sequences there are more of these
    s.y = c.template take<char>(rows * row);
    s.qkv = c.template take<char>(tokens * 3 * width * size);
    s.context = c.template take<char>(tokens * width * size);
    s.inner = c.template take<char>(rows * p.inner * size);
    carve_first(c, s, sequences);
  }
  template <class Memory>
  void carve_first(Memory& c, Stream& s, long sequences) const {
    if (!p.first_only) return;
    s.first = c.template take<char>(sequences * row);
    s.first_context = c.template take<char>(sequences * width * size);
    s.ones = c.template take<std::int32_t>(sequences + 1);
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
};

}  // namespace
}  // namespace bf::BF_ISA
