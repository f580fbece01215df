// Backward of all layers, the last first: each operation's own backward on what the layer saved.
// Two gradients meet at the input of each half, that of the residual and that of the product. Where
// a layer saved its output alone, it runs again before its backward.
#include "encoder/layer.h"

namespace bf::BF_ISA {
namespace {

struct Backward : Layers<EncoderBwd> {
  // Gradients on their way down.
  struct Grads {
    char *inner, *y, *more, *context, *rows, *qkv;
    char* x[2];   // of layers' inputs in turn
    char* spare;  // of LN whose gradients nobody wants
  };

  void* grad(long layer, int which) const { return p.grads.data[which * p.layers + layer]; }

  // What one layer saves, in memory that all layers use.
  void carve_saved(Carver& c, Stream& s) const {
    const long rows = larger(p.tokens, p.sequences), wide = rows * p.inner * size;
    s.pre = c.take<char>(wide);
    s.lse = c.take<float>(p.heads * p.tokens);
    for (int half = 0; half < 2; ++half) {
      s.sum[half] = c.take<char>(rows * row);
      s.mean[half] = c.take<float>(rows), s.rstd[half] = c.take<float>(rows);
    }
    s.out = c.take<char>(rows * row);
    carve(c, s, p.tokens, p.sequences);
  }

  void carve_grads(Carver& c, Grads& g) const {
    const long rows = larger(p.tokens, p.sequences);
    g.inner = c.take<char>(rows * p.inner * size);
    for (char** at : {&g.y, &g.more, &g.rows, &g.x[0], &g.x[1]}) *at = c.take<char>(rows * row);
    g.context = c.take<char>(2 * rows * width * size);
    g.qkv = c.take<char>(p.tokens * 3 * width * size);
    g.spare = c.take<char>(2 * row);
  }

  void run() const {
    Stream s = whole();
    Grads g;
    take(s, [&](Carver& c, Stream& t) {
      carve_grads(c, g);
      p.recompute ? carve_saved(c, t) : carve_first(c, t, p.sequences);
    });
    const char* dout = static_cast<const char*>(p.dout);
    for (long layer = p.layers; layer-- > 0;) {
      char* dx = layer ? g.x[layer % 2] : static_cast<char*>(p.dx);
      s.x = layer ? saved(layer - 1, kRows) : static_cast<const char*>(p.x);
      p.recompute ? forward(s, layer) : save_to(s, layer);
      backward(s, g, layer, dout, dx);
      dout = dx;
    }
  }

  void backward(const Stream& s, const Grads& g, long layer, const char* dout, char* dx) const {
    const bool few = is_short(layer);
    const long rows = few ? p.sequences : p.tokens;
    end_half_bwd(s, g, layer, 1, dout, s.inner, g.inner, g.y, rows);
    activate_bwd(s, g, layer, rows);
    add(s, g.y, g.more, rows * p.hidden);
    const char* context = s.context;
    char* dcontext = g.context;
    if (few) {
      context = s.first_context, dcontext += p.tokens * width * size;
      if (!p.recompute) first_rows(s, s.context, width * size, s.first_context);
    }
    end_half_bwd(s, g, layer, 0, g.y, context, dcontext, g.rows, rows);
    if (few) spread(s, dcontext, width * size, g.context);
    attend_bwd(s, g, layer);
    project_qkv_bwd(s, g, layer, dx);
    if (!dx) return;
    if (few) spread(s, g.rows, row, g.more);
    add(s, dx, few ? g.more : g.rows, p.tokens * p.hidden);
  }

  // Rows of first tokens to their places among zeros.
  void spread(const Stream& s, const char* from, long bytes, char* to) const {
    std::memset(to, 0, s.tokens * bytes);
    for (long i = 0; i < s.sequences; ++i)
      if (s.cu_seqlens[i + 1] > s.cu_seqlens[i])
        std::memcpy(to + s.cu_seqlens[i] * bytes, from + i * bytes, bytes);
  }

  void add(const Stream& s, char* to, const char* from, long count) const {
    constexpr long kPiece = 1 << 14;
    BF_DISPATCH_DTYPE(p.dtype, T, {
      parallel_tasks(s.threads, ceil_div(count, kPiece), [&](long task, int) {
        const long first = task * kPiece, left = count - first;
        T* sum = reinterpret_cast<T*>(to) + first;
        const T* other = reinterpret_cast<const T*>(from) + first;
        for_lanes(left < kPiece ? left : kPiece, [&](long i, int m) {
          store_some(sum + i, load_some(sum + i, m) + load_some(other + i, m), m);
        });
      });
    })
  }

  // The product's part of a backward.
  template <class Op>
  Op linear_bwd(const Stream& s, long layer, int which, const void* x, long rows, long n,
                long k) const {
    auto q = product<Op>(s, x, rows, n, k);
    q.weight = weight(layer, which), q.weight_stride = k;
    q.dweight = grad(layer, which), q.dbias = grad(layer, kBias + which);
    return q;
  }

  void end_half_bwd(const Stream& s, const Grads& g, long layer, int half, const char* dout,
                    const char* x, char* dx, char* dresidual, long rows) const {
    const int which = half ? kOuter : kOut, norm = half ? kNorm : kOutNorm;
    auto q =
        linear_bwd<LinearLayernormBwd>(s, layer, which, x, rows, p.hidden, half ? p.inner : width);
    q.dout = dout, q.mean = s.mean[half], q.rstd = s.rstd[half], q.ln_weight = weight(layer, norm);
    q.dln_weight = wanted(grad(layer, norm), g.spare);
    q.dln_bias = wanted(grad(layer, norm + 1), g.spare + row);
    q.z = s.sum[half], q.dresidual = dresidual, q.dx = dx, q.ln_dtype = p.dtype;
    drop(q, s, layer, half);
    linear_layernorm_bwd(q);
  }
  static void* wanted(void* grad, char* spare) { return grad ? grad : spare; }

  void activate_bwd(const Stream& s, const Grads& g, long layer, long rows) const {
    auto q = linear_bwd<LinearGeluBwd>(s, layer, kInner, s.y, rows, p.inner, p.hidden);
    q.dout = g.inner, q.pre = s.pre, q.dx = g.more;
    linear_gelu_bwd(q);
  }

  void attend_bwd(const Stream& s, const Grads& g, long layer) const {
    auto q = attention<AttentionBwd>(s, layer);
    q.dout = g.context, q.out = s.context, q.lse = s.lse, q.dqkv = g.qkv;
    const long used = p.cu_seqlens[p.sequences], bytes = 3 * width * size;
    std::memset(g.qkv + used * bytes, 0, (p.tokens - used) * bytes);  // rows of no sequence
    attention_bwd(q);
  }

  void project_qkv_bwd(const Stream& s, const Grads& g, long layer, char* dx) const {
    auto q = product<QkvProjectionBwd>(s, s.x, p.tokens, width, p.hidden);
    for (int i = 0; i < 3; ++i) {
      q.weight[i] = weight(layer, kQuery + i), q.weight_stride[i] = p.hidden;
      q.dweight[i] = grad(layer, kQuery + i), q.dbias[i] = grad(layer, kBias + kQuery + i);
    }
    q.dqkv = g.qkv, q.dx = dx;
    qkv_projection_bwd(q);
  }
};

}  // namespace

void encoder_bwd(const EncoderBwd& p) {
  check_encoder(p);
  Backward{{p}}.run();
}

}  // namespace bf::BF_ISA
