// What the operations that end in LN over a product launch beside their own kernels of rows, and
// the parts of their workspace. See linear_layernorm and gelu_layernorm.
#pragma once
#include "common/layernorm.cuh"
#include "product/product.h"

namespace bf::cuda {
namespace {

template <class Op>
std::size_t layernorm_fwd_workspace(const Op& p) {
  const LinearFwd q = split_linear_fwd_of(p, nullptr);
  return q.splits > 1 ? q.splits * p.rows * p.n * sizeof(float) : linear_fwd_workspace(q);
}

// What a kernel of rows is given of the product.
template <class Op>
struct RowsFwd {
  Op op;
  const float* partial;  // [splits, rows, n] without bias; null: `y` holds it
  const void* y;         // T, rows y_stride apart
  long y_stride;
  int splits;
  bool vector;
};

// y = x weight^T + bias into the beginnings of `out`'s rows, whose n elements have `out_dtype`;
// where its sum is cut, its parts without the bias into the workspace.
template <class Op>
RowsFwd<Op> launch_product(const Op& p, void* out, DType out_dtype, bool vector) {
  BF_LIMIT(kFeatures, p.n);
  LinearFwd q = split_linear_fwd_of(p, out);
  q.out_stride = p.n * dtype_bytes(out_dtype) / dtype_bytes(p.dtype);
  if (q.splits > 1) q.partial = static_cast<float*>(p.gpu.workspace);
  linear_fwd(q);
  vector = vector && is_vector(p.bias, 0) && is_vector(p.ln_weight, 0) && is_vector(p.ln_bias, 0);
  return {p, q.partial, out, q.out_stride, q.splits, vector};
}

// LN of what change(row) makes of y: a functor (v, first, left, vector) that changes a group in
// place. A row of y is read before that row of `out` is written.
template <class T, class R, int warps, class Op, class Change>
__device__ __forceinline__ void normalise_product(const RowsFwd<Op>& p, Change change) {
  using Part = Row<T, warps>;
  const Op& op = p.op;
  const Part part{static_cast<int>(op.n), p.vector};
  const long row = static_cast<long>(blockIdx.x) * Part::kRows + Part::index();
  if (row >= used_rows(op.gpu, op.rows)) return;
  const long start = row * op.n;
  const T* y = static_cast<const T*>(p.y) + row * p.y_stride;
  const auto changed = change(row);
  typename Part::Values z = {};
  part.for_each_group([&](int i, int at, int left, bool vector) {
    if (p.partial)
      add_parts<T>(z[i], p.partial + start + at, op.rows * op.n, p.splits,
                   static_cast<const T*>(op.bias) + at, left, vector);
    else
      load_group(z[i], y + at, left, vector);
    changed(z[i], at, left, vector);
  });
  normalise(part, z, static_cast<const R*>(op.ln_weight), static_cast<const R*>(op.ln_bias), op.eps,
            static_cast<R*>(op.out) + start, op.mean ? op.mean + row : nullptr,
            op.rstd ? op.rstd + row : nullptr);
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

// After the kernel of rows: the products from dy, and all sums that are left. `pre`: of LinearBwd.
template <class Op>
void launch_gradients(const Op& p, const LayernormParts& w, const void* dy,
                      const void* pre = nullptr) {
  LinearBwd q = linear_bwd_of(p, dy);
  q.pre = pre;
  const bool fp32 = p.ln_dtype == DType::kFloat32;
  q.also[0] = {w.sums, 2 * w.stride, w.blocks, p.dln_weight, p.n, fp32};
  q.also[1] = {w.sums + w.stride, 2 * w.stride, w.blocks, p.dln_bias, p.n, fp32};
  linear_bwd(q, w.arena.rest());
}

}  // namespace
}  // namespace bf::cuda
