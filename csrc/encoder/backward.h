// Backward of all layers, the last first: each operation's own backward on what the layer saved.
// Two gradients meet at the input of each half, that of the residual and that of the product. Where
// a layer saved its output alone, it runs again before its backward. What nobody wants a gradient
// of is not run: in the lowest layer, where x wants none, all below the lowest part that does.
// Where the machine's products can (kSlopeInProduct), the one whose result GELU's backward would
// read stores it multiplied by GELU's slope already, rounded before and after as by two kernels.
#pragma once
#include "encoder/layer.h"

namespace bf::BF_ISA {
namespace {

// Gradients on their way down.
struct Grads {
  char *inner, *y, *more, *context, *rows, *qkv;
  char* x[2];   // of layers' inputs in turn
  char* spare;  // of LN whose gradients nobody wants
};

template <class Machine>
struct Backward : Layers<EncoderBwd, Machine> {
  using Base = Layers<EncoderBwd, Machine>;
  using Base::Base, Base::p, Base::row, Base::size, Base::width;

  void* grad(long layer, int which) const { return p.grads.data[which * p.layers + layer]; }
  bool wants(long layer, int product) const {
    return grad(layer, product) || grad(layer, kBias + product);
  }

  // Memory for a layer's gradients, and for the layer itself where it runs again.
  template <class Memory>
  void carve_all(Memory& c, Grads& g, Stream& s) const {
    carve_grads(c, g);
    p.recompute ? carve_saved(c, s) : this->carve_first(c, s, p.sequences);
  }

  // What one layer saves, in memory that all layers use.
  template <class Memory>
  void carve_saved(Memory& c, Stream& s) const {
    const long rows = larger(p.tokens, p.sequences), wide = rows * p.inner * size;
    s.pre = c.template take<char>(wide);
    s.lse = c.template take<float>(p.heads * p.tokens);
    for (int half = 0; half < 2; ++half) {
      s.sum[half] = c.template take<char>(rows * row);
      s.mean[half] = c.template take<float>(rows), s.rstd[half] = c.template take<float>(rows);
    }
    s.out = c.template take<char>(rows * row);
    this->carve(c, s, p.tokens, p.sequences);
  }

  template <class Memory>
  void carve_grads(Memory& c, Grads& g) const {
    const long rows = larger(p.tokens, p.sequences);
    g.inner = c.template take<char>(rows * p.inner * size);
    for (char** at : {&g.y, &g.more, &g.rows, &g.x[0], &g.x[1]})
      *at = c.template take<char>(rows * row);
    g.context = c.template take<char>(2 * rows * width * size);
    g.qkv = c.template take<char>(p.tokens * 3 * width * size);
    g.spare = c.template take<char>(2 * row);
  }

  void run(Stream s, const Grads& g) const {
    const char* dout = static_cast<const char*>(p.dout);
    for (long layer = p.layers; layer-- > 0;) {
      char* dx = layer ? g.x[layer % 2] : static_cast<char*>(p.dx);
      s.x = layer ? this->saved(layer - 1, kRows) : static_cast<const char*>(p.x);
      p.recompute ? this->forward(s, layer) : this->save_to(s, layer);
      backward(s, g, layer, dout, dx);
      dout = dx;
    }
  }

  void backward(const Stream& s, const Grads& g, long layer, const char* dout, char* dx) const {
    const bool few = this->is_short(layer);
    const bool attention =
        dx || wants(layer, kQuery) || wants(layer, kQuery + 1) || wants(layer, kQuery + 2);
    const bool first_half =
        attention || wants(layer, kOut) || grad(layer, kOutNorm) || grad(layer, kOutNorm + 1);
    const long rows = few ? p.sequences : p.tokens;
    const char* context = s.context;
    char* dcontext = g.context;
    if (few) {
      context = s.first_context, dcontext += p.tokens * width * size;
      if (!p.recompute) this->first_rows(s, s.context, width * size, s.first_context);
    }
    const bool inner = first_half || wants(layer, kInner);
    end_half_bwd(s, g, layer, 1, dout, s.inner, inner ? g.inner : nullptr, g.y, rows);
    if (inner) activate_bwd(s, g, layer, first_half ? g.more : nullptr, rows);
    if (!first_half) return;
    this->add(s, p.dtype, g.y, g.more, rows * p.hidden);
    end_half_bwd(s, g, layer, 0, g.y, context, attention ? dcontext : nullptr, g.rows, rows);
    if (!attention) return;
    if (few) this->spread(s, dcontext, width * size, g.context);
    attend_bwd(s, g, layer);
    project_qkv_bwd(s, g, layer, dx);
    if (!dx) return;
    if (few) this->spread(s, g.rows, row, g.more);
    this->add(s, p.dtype, dx, few ? g.more : g.rows, p.tokens * p.hidden);
  }

  // cuBLASLt knows the slope of the tanh form alone.
  bool slope_in_product(long layer) const {
    return Machine::kSlopeInProduct && !this->by_cublaslt(layer, kOuter, true);
  }

  // The product's part of a backward.
  template <class Op>
  Op linear_bwd(const Stream& s, long layer, int which, const void* x, long rows, long n,
                long k) const {
    auto q = this->template product<Op>(s, x, rows, n, k);
    q.weight = this->weight(layer, which), q.weight_stride = k;
    q.dweight = grad(layer, which), q.dbias = grad(layer, kBias + which);
    q.gpu.cublaslt = this->by_cublaslt(layer, which, true);
    return q;
  }

  void end_half_bwd(const Stream& s, const Grads& g, long layer, int half, const char* dout,
                    const char* x, char* dx, char* dresidual, long rows) const {
    const int which = half ? kOuter : kOut, norm = half ? kNorm : kOutNorm;
    auto q =
        linear_bwd<LinearLayernormBwd>(s, layer, which, x, rows, p.hidden, half ? p.inner : width);
    q.dout = dout, q.mean = s.mean[half], q.rstd = s.rstd[half];
    q.ln_weight = this->weight(layer, norm);
    q.dln_weight = wanted(grad(layer, norm), g.spare);
    q.dln_bias = wanted(grad(layer, norm + 1), g.spare + row);
    q.z = s.sum[half], q.dresidual = dresidual, q.dx = dx, q.ln_dtype = p.dtype;
    if (half && slope_in_product(layer)) q.pre = s.pre;
    this->drop(q, s, layer, half);
    this->run_part(q);
  }
  static void* wanted(void* grad, char* spare) { return grad ? grad : spare; }

  void activate_bwd(const Stream& s, const Grads& g, long layer, void* dy, long rows) const {
    auto q = linear_bwd<LinearGeluBwd>(s, layer, kInner, s.y, rows, p.inner, p.hidden);
    q.dout = g.inner, q.pre = slope_in_product(layer) ? nullptr : s.pre, q.dx = dy;
    this->run_part(q);
  }

  void attend_bwd(const Stream& s, const Grads& g, long layer) const {
    auto q = this->template attention<AttentionBwd>(s, layer);
    q.dout = g.context, q.out = s.context, q.lse = s.lse, q.dqkv = g.qkv;
    this->clear_strays(s, g.qkv, 3 * width * size);
    this->run_part(q);
  }

  void project_qkv_bwd(const Stream& s, const Grads& g, long layer, char* dx) const {
    auto q = this->template product<QkvProjectionBwd>(s, s.x, p.tokens, width, p.hidden);
    for (int i = 0; i < 3; ++i) {
      q.weight[i] = this->weight(layer, kQuery + i), q.weight_stride[i] = p.hidden;
      q.dweight[i] = grad(layer, kQuery + i), q.dbias[i] = grad(layer, kBias + kQuery + i);
    }
    q.dqkv = g.qkv, q.dx = dx, q.gpu.cublaslt = this->by_cublaslt(layer, kQuery, true);
    this->run_part(q);
  }
};

}  // namespace
}  // namespace bf::BF_ISA
