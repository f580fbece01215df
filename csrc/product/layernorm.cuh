// What the operations that end in LN over a product launch beside their own kernels of rows, and
// the parts of their workspace. See linear_layernorm and gelu_layernorm.
#pragma once
#include "common/layernorm.cuh"
#include "product/product.h"

namespace bf::cuda {
namespace {

template <class Op>
std::size_t layernorm_fwd_workspace(const Op& p) {
  const int splits = split_linear_fwd_of(p, nullptr).splits;
  return splits > 1 ? splits * p.rows * p.n * sizeof(float) : 0;
}

// y = x weight^T + bias; where its sum is cut, its parts without the bias, into the workspace.
template <class Op>
LinearFwd launch_product(const Op& p, void* out, long out_stride) {
  BF_LIMIT(kFeatures, p.n);
  LinearFwd q = split_linear_fwd_of(p, out);
  q.out_stride = out_stride;
  if (q.splits > 1) q.partial = static_cast<float*>(p.gpu.workspace);
  linear_fwd(q);
  return q;
}

// The parts of the workspace of backward; what follows them is the products'.
struct LayernormParts {
  Arena arena;
  int blocks;
  long stride;
  float* sums;  // [blocks, 2, stride]: what the kernel of rows leaves for LN's parameters
  void* dy;     // null unless asked for

  template <class Op>
  LayernormParts(const Op& p, void* base, bool with_dy)
      : arena(base), blocks(layernorm_bwd_blocks(p.rows, p.n)), stride(padded(p.n)) {
    BF_LIMIT(kSize, p.rows);
    BF_LIMIT(kFeatures, p.n);
    sums = arena.take<float>(2L * blocks * stride);
    dy = with_dy ? arena.take<char>(p.rows * p.n * dtype_bytes(p.dtype)) : nullptr;
  }
};

template <class Op>
std::size_t layernorm_bwd_workspace(const Op& p, bool with_dy) {
  return LayernormParts(p, nullptr, with_dy).arena.used() +
         linear_bwd_workspace(linear_bwd_of(p, nullptr));
}

// After the kernel of rows: the products from dy, and all sums that are left.
template <class Op>
void launch_gradients(const Op& p, const LayernormParts& w, const void* dy) {
  LinearBwd q = linear_bwd_of(p, dy);
  q.also[0] = {w.sums, 2 * w.stride, w.blocks, p.dln_weight, p.n, p.ln_dtype};
  q.also[1] = {w.sums + w.stride, 2 * w.stride, w.blocks, p.dln_bias, p.n, p.ln_dtype};
  linear_bwd(q, w.arena.rest());
}

}  // namespace
}  // namespace bf::cuda
