// Products of the operations that cuBLASLt computes, where gpu.cublaslt says so: which they are,
// and what is launched for them.
#pragma once
#include "common/check.h"
#include "common/launch.cuh"
#include "product/cuda_cublaslt.h"
#include "product/product.h"

namespace bf::cuda {
namespace {

constexpr int kJoinThreads = 128;

// Rows of several weights one after the other. Block (i, w) copies row i of weight w.
struct Apart {
  const void* weight[kMaxWeights];
  long stride[kMaxWeights];  // bytes
};
__global__ void __launch_bounds__(kJoinThreads) join_weights(Apart from, char* to, long bytes) {
  const int which = blockIdx.y;
  const char* row =
      static_cast<const char*>(pick(from.weight, which)) + blockIdx.x * pick(from.stride, which);
  to += (blockIdx.y * static_cast<long>(gridDim.x) + blockIdx.x) * bytes;
  for (long i = threadIdx.x * sizeof(uint4); i < bytes; i += kJoinThreads * sizeof(uint4))
    *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(row + i);
}

// How far apart its columns, rows of ours, lie: a lone one may claim anything.
long apart(long stride, long width, long count) { return count > 1 ? stride : width; }

bool forward_is_cublaslts(const LinearFwd& p) { return p.gpu.cublaslt && !p.gelu && !p.pre; }

void cublaslt_fwd(const LinearFwd& p) {
  BF_CHECK(!p.gpu.used, "cuBLASLt computes all rows");
  for (int w = 0; w < p.weights; ++w) {
    LtProduct q = {p.weight[w], p.x, p.out[w], p.n, p.rows, p.k};
    q.lda = p.k, q.ldb = apart(p.x_stride, p.k, p.rows), q.ldd = apart(p.out_stride, p.n, p.rows);
    q.turn_a = true;
    if (p.bias[w]) q.kind = LtVector::kBias, q.vector = const_cast<void*>(p.bias[w]);
    cublaslt_product(q, p.dtype, p.gpu, p.workspace);
  }
}

// What of a backward is cuBLASLt's, and where it may write. A dbias without its dweight, and a dx
// that goes back through GELU, are ours: they stay in `rest`.
struct CublasltBwd {
  LinearBwd rest;
  void *workspace = nullptr, *joined = nullptr;  // [weights * n, k]: several weights
  bool dx = false;

  CublasltBwd(const LinearBwd& p, Arena& arena) : rest(p) {
    if (!p.gpu.cublaslt || p.rows == 0) return;
    dx = p.dx && !p.pre;
    if (dx) rest.dx = nullptr;
    for (int w = 0; w < p.weights; ++w)
      if (p.dweight[w]) rest.dweight[w] = rest.dbias[w] = nullptr;
    workspace = arena.take<char>(kLtWorkspace);
    if (dx && p.weights > 1)
      joined = arena.take<char>(p.weights * p.n * p.k * dtype_bytes(p.dtype));
  }

  void launch(const LinearBwd& p) const {
    if (!p.gpu.cublaslt || p.rows == 0) return;
    const long all = p.weights * p.n, dy_apart = apart(all, all, p.rows);
    for (int w = 0; w < p.weights; ++w) {
      if (!p.dweight[w]) continue;
      const char* dy = static_cast<const char*>(p.dy) + w * p.n * dtype_bytes(p.dtype);
      LtProduct q = {p.x, dy, p.dweight[w], p.k, p.n, p.rows};
      q.lda = apart(p.x_stride, p.k, p.rows), q.ldb = dy_apart, q.ldd = p.k;
      q.turn_b = true;
      if (p.dbias[w]) q.kind = LtVector::kGradient, q.vector = p.dbias[w];
      cublaslt_product(q, p.dtype, p.gpu, workspace);
    }
    if (!dx) return;
    if (joined) join(p);
    LtProduct q = {joined ? joined : p.weight[0], p.dy, p.dx, p.k, p.rows, all};
    q.lda = joined ? p.k : apart(p.weight_stride[0], p.k, p.n), q.ldb = dy_apart, q.ldd = p.k;
    cublaslt_product(q, p.dtype, p.gpu, workspace);
  }

  // One product sums over all weights in fp32; three would round to the dtype between them.
  void join(const LinearBwd& p) const {
    const long bytes = p.k * dtype_bytes(p.dtype);
    Apart from = {};
    for (int w = 0; w < p.weights; ++w)
      from.weight[w] = p.weight[w], from.stride[w] = p.weight_stride[w] * dtype_bytes(p.dtype);
    const dim3 grid(static_cast<unsigned>(p.n), static_cast<unsigned>(p.weights));
    BF_LAUNCH(join_weights, grid, kJoinThreads, 0, p.gpu, from, static_cast<char*>(joined), bytes);
  }
};

}  // namespace
}  // namespace bf::cuda
