// Bias and GELU are applied to a panel of the product while it is in L1.
#include "linear_gelu/op.h"

#include "common/gemm.h"

namespace bf {
namespace BF_ISA {
namespace {

template <class T>
void run(const LinearGeluFwd& p) {
  const Rows<T> x{static_cast<const T*>(p.x), p.x_stride, p.rows, p.k};
  const T* packed = static_cast<const T*>(p.packed);
  const T* bias = static_cast<const T*>(p.bias);
  T* out = static_cast<T*>(p.out);
  T* pre = static_cast<T*>(p.pre);
  product(x, panels(p.n), [&](long panel) { return packed + panel * kNR * p.k; }, p.threads,
          [&](const float* c, long first, long rows, long panel) {
            const long column = panel * kNR, columns = p.n - column < kNR ? p.n - column : kNR;
            for (long r = 0; r < rows; ++r) {
              const long at = (first + r) * p.n + column;
              for_lanes(columns, [&](long i, int m) {
                const F y = load(c + r * kNR + i) + load_some(bias + column + i, m);
                if (pre) store_some(pre + at + i, y, m);
                store_some(out + at + i, vgelu(y), m);
              });
            }
          });
}

}  // namespace

void linear_gelu_fwd(const LinearGeluFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }

}  // namespace BF_ISA
}  // namespace bf
