#include "common/simd.h"
#include "common/tanh.h"

namespace bf::BF_ISA {
namespace {

// About 1.3 ulp: u + u^3 P(u^2) for u = |x| below 0.625, 1 - 2 / (exp(2u) + 1) beyond.
BF_INLINE F vtanh(F x) {
  F u = vabs(x), z = u * u;
  F p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  F e = vexp(vmin(splat(10.0f), u) * 2.0f);  // 10 stands first: a NaN goes on
  F y = select(u < 0.625f, p * z * u + u, 1.0f - 2.0f / (e + 1.0f));
  return (F)((I)y | ((I)x ^ (I)u));
}

}  // namespace

void tanh_each(const float* x, float* out, long count) {
  for_lanes(count, [&](long i, int m) { store_some(out + i, vtanh(load_some(x + i, m)), m); });
}

}  // namespace bf::BF_ISA
