// Products of the operations on CUDA devices, for one weight or for several that read the same x:
// what cuda_product.cu launches. Nothing is allocated; rows may lie apart, columns may not.
#pragma once
#include <cstddef>

#include "common/dtype.h"
#include "common/gpu.h"

namespace bf::cuda {

constexpr int kMaxWeights = 3;

struct LinearFwd {                  // out_w = act(x weight_w^T + bias_w)
  const void* x;                    // [rows, k], row stride x_stride
  const void* weight[kMaxWeights];  // [n, k], contiguous
  const void* bias[kMaxWeights];    // [n] or null
  void* out[kMaxWeights];           // [rows, n], row stride out_stride
  void* pre;                        // one weight only: [rows, n] without act, or null
  float* partial;                   // [splits, rows, n] instead of out where splits > 1, no bias
  long rows, n, k, x_stride, out_stride;
  int weights, splits;
  bool gelu;
  DType dtype;
  Gpu gpu;
};

struct PartialSum {  // to[size] = the sum of `count` rows of `from`, `stride` apart
  const float* from;
  long stride;
  int count;
  void* to;
  long size;
  DType dtype;  // of `to`: the product's or float32
};

struct LinearBwd {                  // gradients of LinearFwd without act
  const void* dy;                   // [rows, weights * n], contiguous
  const void* x;                    // [rows, k], row stride x_stride
  const void* weight[kMaxWeights];  // [n, k], row strides weight_stride
  long weight_stride[kMaxWeights];
  void* dx;                    // [rows, k] or null
  void* dweight[kMaxWeights];  // [n, k] or null
  void* dbias[kMaxWeights];    // [n] or null
  long rows, n, k, x_stride;
  int weights;
  DType dtype;
  Gpu gpu;
  PartialSum also[2];  // column sums of the caller's that are finished by the same launch
};

// Into how many parts the sum over k is best cut on the current device (reads sizes and dtype).
int linear_fwd_splits(const LinearFwd& p);
void linear_fwd(const LinearFwd& p);  // one launch

std::size_t linear_bwd_workspace(const LinearBwd& p);
// One launch, and one more where sums were cut or `also` is given; without rows only the latter.
// workspace: 256-byte aligned.
void linear_bwd(const LinearBwd& p, void* workspace);

// The products of an operation with one weight, from its parameters.
template <class Op>
LinearFwd linear_fwd_of(const Op& p, void* out) {
  LinearFwd q = {};
  q.x = p.x, q.weight[0] = p.weight, q.bias[0] = p.bias, q.out[0] = out;
  q.rows = p.rows, q.n = p.n, q.k = p.k, q.x_stride = p.x_stride, q.out_stride = p.n;
  q.weights = 1, q.splits = 1, q.dtype = p.dtype, q.gpu = p.gpu;
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
  q.dy = dy, q.x = p.x, q.weight[0] = p.weight, q.weight_stride[0] = p.weight_stride;
  q.dx = p.dx, q.dweight[0] = p.dweight, q.dbias[0] = p.dbias;
  q.rows = p.rows, q.n = p.n, q.k = p.k, q.x_stride = p.x_stride;
  q.weights = 1, q.dtype = p.dtype, q.gpu = p.gpu;
  return q;
}

}  // namespace bf::cuda
