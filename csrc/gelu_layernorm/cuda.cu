// Forward: pre = x weight^T + bias by cuda_product.cu, in the dtype T (into `pre`, or where nothing
// is saved into the beginning of each row of `out`) or, where its sum is cut into parts, into the
// workspace in fp32; then one kernel whose warp (or block, n > 1024) owns a row: GELU and LN, the
// latter in R, T or float. It reads a row before it writes that row. Backward: one kernel for dy =
// gelu'(pre) dz, where dz is LN's gradient with respect to gelu(pre), and the partial column sums
// for dln_weight and dln_bias (layernorm.cuh); the launch of the products for dx, dweight and
// dbias; one that finishes all sums. Saved: pre, mean, rstd. What must hold: n <= 8192; all but x
// and (backward) weight is contiguous.
#include "common/check.h"
#include "common/gelu.cuh"
#include "common/layernorm.cuh"
#include "gelu_layernorm/op.h"
#include "product/product.h"

namespace bf {
namespace cuda {
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

// The parts of the workspace of backward; what follows them is the products'.
struct Workspace {
  Arena arena;
  int blocks;
  long stride;
  float* sums;
  void* dy;

  Workspace(const GeluLayernormBwd& p, void* base)
      : arena(base), blocks(layernorm_bwd_blocks(p.rows, p.n)), stride(padded(p.n)) {
    sums = arena.take<float>(2L * blocks * stride);
    dy = arena.take<char>(p.rows * p.n * dtype_bytes(p.dtype));
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

std::size_t gelu_layernorm_fwd_workspace(const GeluLayernormFwd& p) {
  const int splits = split_linear_fwd_of(p, nullptr).splits;
  return splits > 1 ? splits * p.rows * p.n * sizeof(float) : 0;
}

void gelu_layernorm_fwd(const GeluLayernormFwd& p) {
  BF_CHECK(p.n <= kBlockRow, "gelu_layernorm on CUDA: at most 8192 features");
  if (p.rows == 0) return;
  const int bytes = dtype_bytes(p.dtype);
  LinearFwd q = split_linear_fwd_of(p, p.pre ? p.pre : p.out);
  if (!p.pre) q.out_stride = p.n * dtype_bytes(p.ln_dtype) / bytes;
  if (q.splits > 1) q.partial = static_cast<float*>(p.gpu.workspace);
  linear_fwd(q);
  const bool vector = is_vector(p.out, p.n * bytes) && is_vector(p.pre, 0) &&
                      is_vector(p.bias, 0) && is_vector(p.ln_weight, 0) && is_vector(p.ln_bias, 0);
  const RowsFwd rows{p, q.partial, q.out[0], q.out_stride, q.splits, vector};
  BF_DISPATCH_CUDA_LN(p.dtype, T, p.ln_dtype, R, launch_forward<T, R>(rows))
}

std::size_t gelu_layernorm_bwd_workspace(const GeluLayernormBwd& p) {
  return Workspace(p, nullptr).arena.used() + linear_bwd_workspace(linear_bwd_of(p, nullptr));
}

void gelu_layernorm_bwd(const GeluLayernormBwd& p) {
  BF_CHECK(p.n <= kBlockRow, "gelu_layernorm on CUDA: at most 8192 features");
  const Workspace w(p, p.gpu.workspace);
  const bool vector = is_vector(p.dout, p.n * dtype_bytes(p.dtype)) && is_vector(p.pre, 0) &&
                      is_vector(p.ln_weight, 0);
  const LayernormBwd layernorm{p.mean,
                               p.rstd,
                               p.ln_weight,
                               w.sums,
                               w.stride,
                               static_cast<int>(p.rows),
                               static_cast<int>(p.n),
                               vector};
  const RowsBwd rows{layernorm, p.dout, p.pre, w.dy};
  BF_DISPATCH_CUDA_LN(p.dtype, T, p.ln_dtype, R, launch_backward<T, R>(rows, w.blocks, p.gpu))
  LinearBwd q = linear_bwd_of(p, w.dy);
  q.also[0] = {w.sums, 2 * w.stride, w.blocks, p.dln_weight, p.n, p.ln_dtype};
  q.also[1] = {w.sums + w.stride, 2 * w.stride, w.blocks, p.dln_bias, p.n, p.ln_dtype};
  linear_bwd(q, w.arena.rest());
}

}  // namespace cuda
}  // namespace bf
