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

struct RowsFwd {
  GeluLayernormFwd op;
  const float* partial;  // [splits, rows, n] without bias; null: `source` holds pre
  const void* source;
  long source_stride;
  int splits;
  bool vector;
};

template <class T, class R, int warps>
__global__ void __launch_bounds__(kRowThreads, 2) normalise_rows(RowsFwd p) {
  using Part = Row<T, warps>;
  const GeluLayernormFwd& op = p.op;
  const Part part{static_cast<int>(op.n), p.vector};
  const long row = static_cast<long>(blockIdx.x) * Part::kRows + Part::index();
  if (row >= op.rows) return;
  const long start = row * op.n;
  const T* source = static_cast<const T*>(p.source) + row * p.source_stride;
  typename Part::Values z = {};
  part.for_each_group([&](int i, int at, int left, bool vector) {
    if (p.partial) {
      add_parts<T>(z[i], p.partial + start + at, op.rows * op.n, p.splits,
                   static_cast<const T*>(op.bias) + at, left, vector);
      if (op.pre) store_group(static_cast<T*>(op.pre) + start + at, z[i], left, vector);
    } else {
      load_group(z[i], source + at, left, vector);
    }
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) z[i][e] = gelu(z[i][e]);
  });
  normalise(part, z, static_cast<const R*>(op.ln_weight), static_cast<const R*>(op.ln_bias), op.eps,
            static_cast<R*>(op.out) + start, op.mean ? op.mean + row : nullptr,
            op.rstd ? op.rstd + row : nullptr);
}

struct RowsBwd {
  LayernormBwd layernorm;
  const void* dout;
  const void* pre;
  void* dy;
};

template <class T, class R, int warps>
__global__ void __launch_bounds__(kRowThreads) differentiate_rows(RowsBwd p) {
  extern __shared__ float sums[];
  const long n = p.layernorm.n;
  const auto source = [&](long row) {
    const T* pre = static_cast<const T*>(p.pre) + row * n;
    return [=](float (&v)[kGroup<T>], int at, int left, bool vector) {
      load_group(v, pre + at, left, vector);
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) v[e] = gelu(v[e]);
    };
  };
  const auto gradient = [&](long row) {
    const R* dout = static_cast<const R*>(p.dout) + row * n;
    return [=](float (&v)[kGroup<T>], int at, int left, bool vector) {
      load_group(v, dout + at, left, vector);
    };
  };
  const auto target = [&](long row) {  // pre is read again: registers are the scarcer
    const T* pre = static_cast<const T*>(p.pre) + row * n;
    T* dy = static_cast<T*>(p.dy) + row * n;
    return [=](float (&dz)[kGroup<T>], int at, int left, bool vector) {
      float x[kGroup<T>];
      load_group(x, pre + at, left, vector);
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) dz[e] *= gelu_slope(x[e]);
      store_group(dy + at, dz, left, vector);
    };
  };
  layernorm_backward<T, R, warps>(p.layernorm, sums, source, gradient, target);
}

}  // namespace

std::size_t gelu_layernorm_fwd_workspace(const GeluLayernormFwd& p) {
  return layernorm_fwd_workspace(p);
}

void gelu_layernorm_fwd(const GeluLayernormFwd& p) {
  if (p.rows == 0) return;
  const int bytes = dtype_bytes(p.dtype);
  const LinearFwd q = p.pre ? launch_product(p, p.pre, p.n)
                            : launch_product(p, p.out, p.n * dtype_bytes(p.ln_dtype) / bytes);
  const bool vector = is_vector(p.out, p.n * bytes) && is_vector(p.pre, 0) &&
                      is_vector(p.bias, 0) && is_vector(p.ln_weight, 0) && is_vector(p.ln_bias, 0);
  const RowsFwd rows{p, q.partial, q.out[0], q.out_stride, q.splits, vector};
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
  const RowsBwd rows{layernorm_bwd_of(p, w.sums, w.stride, vector), p.dout, p.pre, w.dy};
  BF_DISPATCH_LN_DTYPES(p.dtype, T, p.ln_dtype, R,
                        BF_LAUNCH_ROWS(differentiate_rows, (T, R), p.n, w.blocks,
                                       layernorm_bwd_shared(p.n), p.gpu, rows))
  launch_gradients(p, w, w.dy);
}

}  // namespace bf::cuda
