// Products of the operations on CUDA devices, for one weight or for several that read the same x:
// what cuda_product.cu launches, or with gpu.cublaslt cuBLASLt. Nothing is allocated; rows may lie
// apart, columns may not.
#pragma once
#include <cstddef>

#include "common/column_sums.cuh"
#include "common/dtype.h"
#include "common/gpu.h"

namespace bf::cuda {

constexpr int kMaxWeights = 3;

namespace {
// An element of a kernel's argument without an address for it (which would cost a local copy).
template <class V>
__device__ __forceinline__ V pick(const V (&list)[kMaxWeights], int i) {
  return i == 0 ? list[0] : i == 1 ? list[1] : list[2];
}
}  // namespace

struct LinearFwd {                  // out_w = act(x weight_w^T + bias_w)
  const void* x;                    // [rows, k], row stride x_stride
  const void* weight[kMaxWeights];  // [n, k], contiguous
  const void* bias[kMaxWeights];    // [n] or null
  void* out[kMaxWeights];           // [rows, n], row stride out_stride
  void* pre;                        // one weight only: [rows, n] without act, or null
  float* partial;                   // [splits, rows, n] instead of out where splits > 1, no bias
  void* workspace;                  // of linear_fwd_workspace() bytes
  long rows, n, k, x_stride, out_stride;
  int weights, splits;
  bool gelu;
  DType dtype;
  Gpu gpu;
};

struct LinearBwd {                  // gradients of LinearFwd without act
  const void* dy;                   // [rows, weights * n], contiguous
  const void* x;                    // [rows, k], row stride x_stride
  const void* weight[kMaxWeights];  // [n, k], row strides weight_stride
  long weight_stride[kMaxWeights];
  void* dx;                    // [rows, k] or null
  const void* pre;             // [rows, k] or null: dx goes back through GELU, whose x it is
  void* dweight[kMaxWeights];  // [n, k] or null
  void* dbias[kMaxWeights];    // [n] or null
  long rows, n, k, x_stride;
  int weights;
  DType dtype;
  Gpu gpu;
  ColumnSum also[2];  // column sums of the caller's that are finished by the same launch
};

// Into how many parts the sum over k is best cut on the current device (reads sizes and dtype).
int linear_fwd_splits(const LinearFwd& p);
std::size_t linear_fwd_workspace(const LinearFwd& p);
void linear_fwd(const LinearFwd& p);  // one launch; of cuBLASLt one for each weight

std::size_t linear_bwd_workspace(const LinearBwd& p);
// One launch, and one more where sums were cut or `also` is given; without rows only the latter. Of
// cuBLASLt one for dx and one for each weight, and to lay several weights together for dx.
// workspace: 256-byte aligned.
void linear_bwd(const LinearBwd& p, void* workspace);

// The products of an operation, from its parameters: `out` is [rows, weights * n].
template <class Op>
LinearFwd linear_fwd_of(const Op& p, void* out) {
  LinearFwd q = {};
  q.x = p.x, q.weights = sizeof(p.weight) / sizeof(void*), q.splits = 1;
  for (int w = 0; w < q.weights; ++w) {
    q.weight[w] = nth(p.weight, w), q.bias[w] = nth(p.bias, w);
    q.out[w] = static_cast<char*>(out) + w * p.n * dtype_bytes(p.dtype);
  }
  q.rows = p.rows, q.n = p.n, q.k = p.k, q.x_stride = p.x_stride, q.out_stride = q.weights * p.n;
  q.dtype = p.dtype, q.gpu = p.gpu, q.workspace = p.gpu.workspace;
  return q;
}
// The same, its sum cut where that is best; parts are without the bias.
template <class Op>
LinearFwd split_linear_fwd_of(const Op& p, void* out) {
  LinearFwd q = linear_fwd_of(p, out);
  q.splits = linear_fwd_splits(q);
  if (q.splits > 1) q.bias[0] = nullptr;
  return q;
}
template <class Op>
LinearBwd linear_bwd_of(const Op& p, const void* dy) {
  LinearBwd q = {};
  q.dy = dy, q.x = p.x, q.dx = p.dx, q.weights = sizeof(p.weight) / sizeof(void*);
  for (int w = 0; w < q.weights; ++w) {
    q.weight[w] = nth(p.weight, w), q.weight_stride[w] = nth(p.weight_stride, w);
    q.dweight[w] = nth(p.dweight, w), q.dbias[w] = nth(p.dbias, w);
  }
  q.rows = p.rows, q.n = p.n, q.k = p.k, q.x_stride = p.x_stride;
  q.dtype = p.dtype, q.gpu = p.gpu;
  return q;
}

}  // namespace bf::cuda
