// Forward: y = x weight^T + bias by cuda_product.cu, in the dtype T into the beginning of each row
// of `out` or, where its sum is cut into parts, into the workspace in fp32; then one kernel whose
// warp (or block, n > 1024) owns a row: z = residual + dropout(y), LN, in R, T or float. It reads a
// row of `out` before it writes that row. Backward: one kernel for dz (= dresidual), dy =
// dropout(dz) and the partial column sums for dln_weight and dln_bias (layernorm.cuh), the launch
// of the products for dx, dweight and dbias, and one that finishes all sums. Saved: z, mean, rstd;
// dropout is drawn again from the seed. What must hold: n <= 8192; residual's rows may lie apart;
// the rest is contiguous.
#include "linear_layernorm/op.h"
#include "product/layernorm.cuh"

namespace bf::cuda {
namespace {

template <class T, class R, int warps>
__global__ void __launch_bounds__(kRowThreads, 2) normalise_rows(RowsFwd<LinearLayernormFwd> p) {
  const LinearLayernormFwd& op = p.op;
  normalise_product<T, R, warps>(p, [&](long row) {
    const R* residual = static_cast<const R*>(op.residual) + row * op.residual_stride;
    R* sum = op.z ? static_cast<R*>(op.z) + row * op.n : nullptr;
    const TokenDropout dropout(op.dropout, op.cu_seqlens, op.sequences, row);
    return [=](float (&z)[kGroup<T>], int at, int left, bool vector) {
      drop(dropout, z, at);
      add_group(z, residual + at, left, vector);
      if (sum) store_group(sum + at, z, left, vector);
    };
  });
}

template <class T, class R, int warps>
__global__ void __launch_bounds__(kRowThreads) differentiate_rows(RowsBwd<LinearLayernormBwd> p) {
  extern __shared__ float sums[];
  const LinearLayernormBwd& op = p.op;
  const auto rows_of = [n = op.n](const void* data) {
    return [=](long row) {
      const R* from = static_cast<const R*>(data) + row * n;
      return [=](float (&v)[kGroup<T>], int at, int left, bool vector) {
        load_group(v, from + at, left, vector);
      };
    };
  };
  layernorm_backward<T, R, warps>(p, sums, rows_of(op.z), rows_of(op.dout), [&](long row) {
    const TokenDropout dropout(op.dropout, op.cu_seqlens, op.sequences, row);
    R* dresidual = static_cast<R*>(op.dresidual) + row * op.n;
    T* dy = static_cast<T*>(p.dy) + row * op.n;
    return [=, &p](float (&dz)[kGroup<T>], int at, int left, bool vector) {
      store_group(dresidual + at, dz, left, vector);
      if (!p.dy) return;  // dresidual serves
      drop(dropout, dz, at);
      store_group(dy + at, dz, left, vector);
    };
  });
}

bool has_own_dy(const LinearLayernormBwd& p) { return p.dropout.seed || p.ln_dtype != p.dtype; }

}  // namespace

std::size_t linear_layernorm_fwd_workspace(const LinearLayernormFwd& p) {
  return layernorm_fwd_workspace(p);
}

void linear_layernorm_fwd(const LinearLayernormFwd& p) {
  if (p.rows == 0) return;
  const int bytes = dtype_bytes(p.ln_dtype);
  const bool vector = is_vector(p.residual, p.residual_stride * bytes) &&
                      is_vector(p.out, p.n * bytes) && is_vector(p.z, 0);
  const auto rows = launch_product(p, p.out, p.ln_dtype, vector);
  BF_DISPATCH_LN_DTYPES(
      p.dtype, T, p.ln_dtype, R,
      BF_LAUNCH_ROWS(normalise_rows, (T, R), p.n, row_blocks(p.rows, p.n), 0, p.gpu, rows))
}

std::size_t linear_layernorm_bwd_workspace(const LinearLayernormBwd& p) {
  return layernorm_bwd_workspace(p, has_own_dy(p));
}

void linear_layernorm_bwd(const LinearLayernormBwd& p) {
  const LayernormParts w(p, p.gpu.workspace, has_own_dy(p));
  const bool vector = is_vector(p.dout, p.n * dtype_bytes(p.dtype)) && is_vector(p.z, 0) &&
                      is_vector(p.dresidual, 0) && is_vector(p.ln_weight, 0);
  const RowsBwd<LinearLayernormBwd> rows{p, w.sums, w.stride, w.dy, vector};
  BF_DISPATCH_LN_DTYPES(p.dtype, T, p.ln_dtype, R,
                        BF_LAUNCH_ROWS(differentiate_rows, (T, R), p.n, w.blocks,
                                       layernorm_bwd_shared(p.n), p.gpu, rows))
  launch_gradients(p, w, w.dy ? w.dy : p.dresidual, p.pre);
}

}  // namespace bf::cuda
