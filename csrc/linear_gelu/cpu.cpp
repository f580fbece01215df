// Bias and GELU are applied to a few panels of the product while they are in L2.
#include "linear_gelu/op.h"
#include "product/linear_bwd.h"

namespace bf::BF_ISA {
namespace {

template <class T>
void run(const LinearGeluFwd& p) {
  const Rows<T> x{static_cast<const T*>(p.x), p.x_stride, p.rows, p.k};
  const T* bias = static_cast<const T*>(p.bias);
  T* out = static_cast<T*>(p.out);
  T* pre = static_cast<T*>(p.pre);
  product(x, weights_of(p), p.threads,
          [&](const float* c, long ldc, long first, long rows, long panel) {
            const long column = panel * kNR, columns = p.n - column < kNR ? p.n - column : kNR;
            for (long r = 0; r < rows; ++r) {
              const long at = (first + r) * p.n + column;
              for_lanes(columns, [&](long i, int m) {
                const F y = load(c + r * ldc + i) + load_some(bias + column + i, m);
                if (pre) store_some(pre + at + i, y, m);
                store_some(out + at + i, vgelu(y), m);
              });
            }
          });
}

template <class T>
void run_bwd(const LinearGeluBwd& p) {
  float* dy = static_cast<float*>(scratch(4 * p.rows * p.n, Slot::kRows));
  const T* dout = static_cast<const T*>(p.dout);
  const T* pre = static_cast<const T*>(p.pre);
  parallel_tasks(p.threads, p.rows, [&](long row, int) {
    for_lanes(p.n, [&](long i, int m) {
      const long at = row * p.n + i;
      store_some(dy + at, load_some(dout + at, m) * vgelu_slope(load_some(pre + at, m)), m);
    });
  });
  linear_bwd<T>(p, dy);
}

}  // namespace

void linear_gelu_fwd(const LinearGeluFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }
void linear_gelu_bwd(const LinearGeluBwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run_bwd<T>(p)) }

}  // namespace bf::BF_ISA
