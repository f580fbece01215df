// A thread owns whole rows: bias, GELU and LN run over a block of rows that the product left in L2.
#include "gelu_layernorm/op.h"

#include "common/gemm.h"
#include "common/layernorm.h"

namespace bf {
namespace BF_ISA {
namespace {

template <class T>
void run(const GeluLayernormFwd& p) {
  const Rows<T> x{static_cast<const T*>(p.x), p.x_stride, p.rows, p.k};
  const T* bias = static_cast<const T*>(p.bias);
  product_whole_rows(x, static_cast<const T*>(p.packed), p.n, p.threads, [&](float* z, long row) {
    for_lanes(p.n, [&](long i, int m) {
      const F y = load_some(z + i, m) + load_some(bias + i, m);
      if (p.pre) store_some(static_cast<T*>(p.pre) + row * p.n + i, y, m);
      store_some(z + i, vgelu(y), m);
    });
    layernorm_row(z, p.n, static_cast<const T*>(p.ln_weight), static_cast<const T*>(p.ln_bias), p.eps,
                  static_cast<T*>(p.out) + row * p.n, p.mean ? p.mean + row : nullptr, p.rstd ? p.rstd + row : nullptr);
  });
}

}  // namespace

void gelu_layernorm_fwd(const GeluLayernormFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }

}  // namespace BF_ISA
}  // namespace bf
