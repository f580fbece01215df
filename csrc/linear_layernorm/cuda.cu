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

struct RowsFwd {
  LinearLayernormFwd op;
  const float* partial;  // [splits, rows, n] without bias; null: out holds y
  int splits;
  bool vector;
};

template <class T, class R, int warps>
__global__ void __launch_bounds__(kRowThreads, 2) normalise_rows(RowsFwd p) {
  using Part = Row<T, warps>;
  const LinearLayernormFwd& op = p.op;
  const Part part{static_cast<int>(op.n), p.vector};
  const long row = static_cast<long>(blockIdx.x) * Part::kRows + Part::index();
  if (row >= op.rows) return;
  const long start = row * op.n;
  const R* residual = static_cast<const R*>(op.residual) + row * op.residual_stride;
  R* out = static_cast<R*>(op.out) + start;
  const T* y = reinterpret_cast<const T*>(out);
  const TokenDropout dropout(op.dropout, op.cu_seqlens, op.sequences, row);
  typename Part::Values z = {};
  part.for_each_group([&](int i, int at, int left, bool vector) {
    if (p.partial)
      add_parts<T>(z[i], p.partial + start + at, op.rows * op.n, p.splits,
                   static_cast<const T*>(op.bias) + at, left, vector);
    else
      load_group(z[i], y + at, left, vector);
    drop(dropout, z[i], at);
    add_group(z[i], residual + at, left, vector);
    if (op.z) store_group(static_cast<R*>(op.z) + start + at, z[i], left, vector);
  });
  normalise(part, z, static_cast<const R*>(op.ln_weight), static_cast<const R*>(op.ln_bias), op.eps,
            out, op.mean ? op.mean + row : nullptr, op.rstd ? op.rstd + row : nullptr);
}

struct RowsBwd {
  LayernormBwd layernorm;
  const void* dout;
  const void* z;
  void* dresidual;
  void* dy;  // null: dresidual serves
  const std::int32_t* cu_seqlens;
  long sequences;
  Dropout dropout;
};

template <class T, class R, int warps>
__global__ void __launch_bounds__(kRowThreads) differentiate_rows(RowsBwd p) {
  extern __shared__ float sums[];
  const long n = p.layernorm.n;
  const auto rows_of = [n](const void* data) {
    return [=](long row) {
      const R* from = static_cast<const R*>(data) + row * n;
      return [=](float (&v)[kGroup<T>], int at, int left, bool vector) {
        load_group(v, from + at, left, vector);
      };
    };
  };
  layernorm_backward<T, R, warps>(p.layernorm, sums, rows_of(p.z), rows_of(p.dout), [&](long row) {
    const TokenDropout dropout(p.dropout, p.cu_seqlens, p.sequences, row);
    return [=](float (&dz)[kGroup<T>], int at, int left, bool vector) {
      store_group(static_cast<R*>(p.dresidual) + row * n + at, dz, left, vector);
      if (!p.dy) return;
      drop(dropout, dz, at);
      store_group(static_cast<T*>(p.dy) + row * n + at, dz, left, vector);
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
  const LinearFwd q = launch_product(p, p.out, p.n * bytes / dtype_bytes(p.dtype));
  const bool vector = is_vector(p.residual, p.residual_stride * bytes) &&
                      is_vector(p.out, p.n * bytes) && is_vector(p.z, 0) && is_vector(p.bias, 0) &&
                      is_vector(p.ln_weight, 0) && is_vector(p.ln_bias, 0);
  const RowsFwd rows{p, q.partial, q.splits, vector};
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
  const LayernormBwd layernorm = layernorm_bwd_of(p, w.sums, w.stride, vector);
  const RowsBwd rows{layernorm, p.dout,       p.z,         p.dresidual,
                     w.dy,      p.cu_seqlens, p.sequences, p.dropout};
  BF_DISPATCH_LN_DTYPES(p.dtype, T, p.ln_dtype, R,
                        BF_LAUNCH_ROWS(differentiate_rows, (T, R), p.n, w.blocks,
                                       layernorm_bwd_shared(p.n), p.gpu, rows))
  launch_gradients(p, w, w.dy ? w.dy : p.dresidual);
}

}  // namespace bf::cuda
