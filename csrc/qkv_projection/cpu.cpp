// The panels of the three weights form one list, so that the threads share all of them.
#include "product/linear_bwd.h"
#include "qkv_projection/op.h"

namespace bf::BF_ISA {
namespace {

template <class T>
void run(const QkvProjectionFwd& p) {
  const Rows<T> x{static_cast<const T*>(p.x), p.x_stride, p.rows, p.k};
  const long each = panels(p.n);
  T* out = static_cast<T*>(p.out);
  product(x, weights_of(p), p.threads,
          [&](const float* c, long ldc, long first, long rows, long panel) {
            const long s = panel / each, column = panel % each * kNR;
            const long columns = p.n - column < kNR ? p.n - column : kNR;
            const T* bias = static_cast<const T*>(p.bias[s]) + column;
            for (long r = 0; r < rows; ++r) {
              T* to = out + ((first + r) * 3 + s) * p.n + column;
              for_lanes(columns, [&](long i, int m) {
                store_some(to + i, load(c + r * ldc + i) + load_some(bias + i, m), m);
              });
            }
          });
}

template <class T>
void run_bwd(const QkvProjectionBwd& p) {
  const Rows<T> dqkv{static_cast<const T*>(p.dqkv), 3 * p.n, p.rows, 3 * p.n};
  linear_bwd<T>(p, fp32_rows(dqkv, p.threads));
}

}  // namespace

void qkv_projection_fwd(const QkvProjectionFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }
void qkv_projection_bwd(const QkvProjectionBwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run_bwd<T>(p)) }

}  // namespace bf::BF_ISA
