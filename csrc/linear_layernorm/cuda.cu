// Forward: y = x weight^T + bias by cuda_product.cu, in the dtype T into the beginning of each row
// of `out` or, where its sum is cut into parts, into the workspace in fp32; then one kernel whose
// warp (or block, n > 1024) owns a row: z = residual + dropout(y), LN, in R, T or float. It reads a
// row of `out` before it writes that row. Backward: one kernel for dz (= dresidual), dy =
// dropout(dz) and the partial column sums for dln_weight and dln_bias (layernorm.cuh), the launch
// of the products for dx, dweight and dbias, and one that finishes all sums. Saved: z, mean, rstd;
// dropout is drawn again from the seed. What must hold: n <= 8192; residual's rows may lie apart;
// the rest is contiguous.
#include "common/check.h"
#include "common/layernorm.cuh"
#include "linear_layernorm/op.h"
#include "product/product.h"

namespace bf {
namespace cuda {
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
    float r[kGroup<T>];
    if (p.partial)
      add_parts<T>(z[i], p.partial + start + at, op.rows * op.n, p.splits,
                   static_cast<const T*>(op.bias) + at, left, vector);
    else
      load_group(z[i], y + at, left, vector);
    drop(dropout, z[i], at);
    load_group(r, residual + at, left, vector);
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) z[i][e] += r[e];
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

// The parts of the workspace of backward; what follows them is the products'.
struct Workspace {
  Arena arena;
  int blocks;
  long stride;
  float* sums;
  void* dy;

  Workspace(const LinearLayernormBwd& p, void* base)
      : arena(base), blocks(layernorm_bwd_blocks(p.rows, p.n)), stride(padded(p.n)) {
    sums = arena.take<float>(2L * blocks * stride);
    const long bytes = p.rows * p.n * dtype_bytes(p.dtype);
    dy = p.dropout.seed || p.ln_dtype != p.dtype ? arena.take<char>(bytes) : nullptr;
  }
};

template <class T, class R>
void launch_forward(const RowsFwd& p) {
  if (p.op.n <= kWarpRow)
    BF_LAUNCH((normalise_rows<T, R, 1>), static_cast<unsigned>(ceil_div(p.op.rows, kRowWarps)),
              kRowThreads, 0, p.op.gpu, p);
  else
    BF_LAUNCH((normalise_rows<T, R, kRowWarps>), static_cast<unsigned>(p.op.rows), kRowThreads, 0,
              p.op.gpu, p);
}
template <class T, class R>
void launch_backward(const RowsBwd& p, int blocks, const Gpu& gpu) {
  const std::size_t shared = layernorm_bwd_shared(p.layernorm.n);
  if (p.layernorm.n <= kWarpRow)
    BF_LAUNCH((differentiate_rows<T, R, 1>), blocks, kRowThreads, shared, gpu, p);
  else
    BF_LAUNCH((differentiate_rows<T, R, kRowWarps>), blocks, kRowThreads, shared, gpu, p);
}

}  // namespace

std::size_t linear_layernorm_fwd_workspace(const LinearLayernormFwd& p) {
  const int splits = split_linear_fwd_of(p, nullptr).splits;
  return splits > 1 ? splits * p.rows * p.n * sizeof(float) : 0;
}

void linear_layernorm_fwd(const LinearLayernormFwd& p) {
  BF_CHECK(p.n <= kBlockRow, "linear_layernorm on CUDA: at most 8192 features");
  if (p.rows == 0) return;
  const int bytes = dtype_bytes(p.ln_dtype);
  LinearFwd q = split_linear_fwd_of(p, p.out);
  q.out_stride = p.n * bytes / dtype_bytes(p.dtype);
  if (q.splits > 1) q.partial = static_cast<float*>(p.gpu.workspace);
  linear_fwd(q);
  const bool vector = is_vector(p.residual, p.residual_stride * bytes) &&
                      is_vector(p.out, p.n * bytes) && is_vector(p.z, 0) && is_vector(p.bias, 0) &&
                      is_vector(p.ln_weight, 0) && is_vector(p.ln_bias, 0);
  const RowsFwd rows{p, q.partial, q.splits, vector};
  BF_DISPATCH_CUDA_LN(p.dtype, T, p.ln_dtype, R, launch_forward<T, R>(rows))
}

std::size_t linear_layernorm_bwd_workspace(const LinearLayernormBwd& p) {
  return Workspace(p, nullptr).arena.used() + linear_bwd_workspace(linear_bwd_of(p, nullptr));
}

void linear_layernorm_bwd(const LinearLayernormBwd& p) {
  BF_CHECK(p.n <= kBlockRow, "linear_layernorm on CUDA: at most 8192 features");
  const Workspace w(p, p.gpu.workspace);
  const bool vector = is_vector(p.dout, p.n * dtype_bytes(p.dtype)) && is_vector(p.z, 0) &&
                      is_vector(p.dresidual, 0) && is_vector(p.ln_weight, 0);
  const LayernormBwd layernorm{p.mean,
                               p.rstd,
                               p.ln_weight,
                               w.sums,
                               w.stride,
                               static_cast<int>(p.rows),
                               static_cast<int>(p.n),
                               vector};
  const RowsBwd rows{layernorm, p.dout,       p.z,         p.dresidual,
                     w.dy,      p.cu_seqlens, p.sequences, p.dropout};
  BF_DISPATCH_CUDA_LN(p.dtype, T, p.ln_dtype, R, launch_backward<T, R>(rows, w.blocks, p.gpu))
  LinearBwd q = linear_bwd_of(p, w.dy ? w.dy : p.dresidual);
  q.also[0] = {w.sums, 2 * w.stride, w.blocks, p.dln_weight, p.n, p.ln_dtype};
  q.also[1] = {w.sums + w.stride, 2 * w.stride, w.blocks, p.dln_bias, p.n, p.ln_dtype};
  linear_bwd(q, w.arena.rest());
}

}  // namespace cuda
}  // namespace bf
