// Forward: pre = x weight^T + bias by cuda_product.cu, in the dtype T (into `pre`, or where nothing
// is saved into the beginning of each row of `out`) or, where its sum is cut into parts, into the
// workspace in fp32; then one kernel whose warp (or block, n > 1024) owns a row: GELU and LN, the
// latter in R, T or float. It reads a row before it writes that row. Backward: one kernel for dy =
// gelu'(pre) dz, where dz is LN's gradient with respect to gelu(pre), and the partial column sums
// for dln_weight and dln_bias (layernorm.cuh); the launch of the products for dx, dweight and
// dbias; one that finishes all sums. Saved: pre, mean, rstd. What must hold: n <= 8192; all but x
// and (backward) weight is contiguous.
#include "common/gelu.cuh"
#include "gelu_layernorm/op.h"
#include "product/layernorm.cuh"

namespace bf::cuda {
namespace {

template <class T, class R, int warps>
__global__ void __launch_bounds__(kRowThreads, 2) normalise_rows(RowsFwd<GeluLayernormFwd> p) {
  normalise_product<T, R, warps>(p, [&](long row) {
    T* pre = p.partial && p.op.pre ? static_cast<T*>(p.op.pre) + row * p.op.n : nullptr;
    return [=](float (&z)[kGroup<T>], int at, int left, bool vector) {
      if (pre) store_group(pre + at, z, left, vector);
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) z[e] = gelu(z[e]);
    };
  });
}

template <class T, class R, int warps>
__global__ void __launch_bounds__(kRowThreads) differentiate_rows(RowsBwd<GeluLayernormBwd> p) {
  extern __shared__ float sums[];
  const long n = p.op.n;
  const auto source = [&](long row) {
    const T* pre = static_cast<const T*>(p.op.pre) + row * n;
    return [=](float (&v)[kGroup<T>], int at, int left, bool vector) {
      load_group(v, pre + at, left, vector);
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) v[e] = gelu(v[e]);
    };
  };
  const auto gradient = [&](long row) {
    const R* dout = static_cast<const R*>(p.op.dout) + row * n;
    return [=](float (&v)[kGroup<T>], int at, int left, bool vector) {
      load_group(v, dout + at, left, vector);
    };
  };
  const auto target = [&](long row) {  // pre is read again: registers are the scarcer
    const T* pre = static_cast<const T*>(p.op.pre) + row * n;
    T* dy = static_cast<T*>(p.dy) + row * n;
    return [=](float (&dz)[kGroup<T>], int at, int left, bool vector) {
      float x[kGroup<T>];
      load_group(x, pre + at, left, vector);
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) dz[e] *= gelu_slope(x[e]);
      store_group(dy + at, dz, left, vector);
    };
  };
  layernorm_backward<T, R, warps>(p, sums, source, gradient, target);
}

}  // namespace

std::size_t gelu_layernorm_fwd_workspace(const GeluLayernormFwd& p) {
  return layernorm_fwd_workspace(p);
}

void gelu_layernorm_fwd(const GeluLayernormFwd& p) {
  if (p.rows == 0) return;
  const bool vector = is_vector(p.out, p.n * dtype_bytes(p.dtype)) && is_vector(p.pre, 0);
  const auto rows = launch_product(p, p.pre ? p.pre : p.out, p.pre ? p.dtype : p.ln_dtype, vector);
  BF_DISPATCH_LN_DTYPES(
      p.dtype, T, p.ln_dtype, R,
      BF_LAUNCH_ROWS(normalise_rows, (T, R), p.n, row_blocks(p.rows, p.n), 0, p.gpu, rows))
}

std::size_t gelu_layernorm_bwd_workspace(const GeluLayernormBwd& p) {
  return layernorm_bwd_workspace(p, true);
}

void gelu_layernorm_bwd(const GeluLayernormBwd& p) {
  const LayernormParts w(p, p.gpu.workspace, true);
  const bool vector = is_vector(p.dout, p.n * dtype_bytes(p.dtype)) && is_vector(p.pre, 0) &&
                      is_vector(p.ln_weight, 0);
  const RowsBwd<GeluLayernormBwd> rows{p, w.sums, w.stride, w.dy, vector};
  BF_DISPATCH_LN_DTYPES(p.dtype, T, p.ln_dtype, R,
                        BF_LAUNCH_ROWS(differentiate_rows, (T, R), p.n, w.blocks,
                                       layernorm_bwd_shared(p.n), p.gpu, rows))
  launch_gradients(p, w, w.dy);
}

}  // namespace bf::cuda
