// A thread owns whole rows: bias, dropout, residual and LN run over a block of rows that the
// product left in L2.
#include "common/layernorm.h"
#include "common/philox.h"
#include "linear_layernorm/op.h"
#include "product/linear_bwd.h"

namespace bf::BF_ISA {
namespace {

template <class T, class R>
void run(const LinearLayernormFwd& p) {
  const Rows<T> x{static_cast<const T*>(p.x), p.x_stride, p.rows, p.k};
  const T* bias = static_cast<const T*>(p.bias);
  product_whole_rows(x, weights_of(p), p.threads, [&](float* z, long row) {
    const R* residual = static_cast<const R*>(p.residual) + row * p.residual_stride;
    for_lanes(p.n, [&](long i, int m) {
      store_some(z + i, load_some(z + i, m) + load_some(bias + i, m), m);
    });
    if (p.dropout.seed) dropout_token(p.dropout, z, p.n, p.cu_seqlens, p.sequences, row);
    for_lanes(p.n, [&](long i, int m) {
      const F sum = load_some(z + i, m) + load_some(residual + i, m);
      store_some(z + i, sum, m);
      if (p.z) store_some(static_cast<R*>(p.z) + row * p.n + i, sum, m);
    });
    layernorm_row(z, p.n, static_cast<const R*>(p.ln_weight), static_cast<const R*>(p.ln_bias),
                  p.eps, static_cast<R*>(p.out) + row * p.n, p.mean ? p.mean + row : nullptr,
                  p.rstd ? p.rstd + row : nullptr);
  });
}

template <class T, class R>
void run_bwd(const LinearLayernormBwd& p) {
  float* dy = static_cast<float*>(scratch(4 * p.rows * p.n, Slot::kRows));
  layernorm_bwd(
      p.rows, p.n, p.threads, static_cast<R*>(p.dln_weight), static_cast<R*>(p.dln_bias),
      [&](long t, float* dln_weight, float* dln_bias) {
        const R* z = static_cast<const R*>(p.z) + t * p.n;
        const R* dout = static_cast<const R*>(p.dout) + t * p.n;
        R* dresidual = static_cast<R*>(p.dresidual) + t * p.n;
        float* dz = dy + t * p.n;
        layernorm_bwd_row([=](long i, int m) { return load_some(z + i, m); },
                          [=](long i, int m) { return load_some(dout + i, m); }, p.n,
                          static_cast<const R*>(p.ln_weight), p.mean[t], p.rstd[t], dz, dln_weight,
                          dln_bias);
        for_lanes(p.n, [&](long i, int m) { store_some(dresidual + i, load_some(dz + i, m), m); });
        if (p.dropout.seed) dropout_token(p.dropout, dz, p.n, p.cu_seqlens, p.sequences, t);
      });
  linear_bwd<T>(p, dy);
}

}  // namespace

void linear_layernorm_fwd(const LinearLayernormFwd& p) {
  BF_DISPATCH_LN_DTYPES(p.dtype, T, p.ln_dtype, R, run<T, R>(p))
}
void linear_layernorm_bwd(const LinearLayernormBwd& p) {
  BF_DISPATCH_LN_DTYPES(p.dtype, T, p.ln_dtype, R, run_bwd<T, R>(p))
}

}  // namespace bf::BF_ISA
