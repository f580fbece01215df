// Forward: one product, whose blocks apply bias and erf GELU before they store (cuda_product.cu);
// the pre-activation is stored beside it where backward will need it.
// Backward: dy = dout * gelu'(pre) in the dtype, into the workspace (a thread owns 16-byte groups
// of the flat array), then the launch of the products for dx, dweight and dbias, and one more where
// these were cut into parts. Saved: pre. In `encoder` the product before has multiplied by the
// slope as it stored (pre: null), and dout is dy. What must hold: dout, pre and out are contiguous.
#include "common/gelu.cuh"
#include "common/launch.cuh"
#include "common/vector.cuh"
#include "linear_gelu/op.h"
#include "product/product.h"

namespace bf::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    multiply_by_slope(const T* dout, const T* pre, T* dy, long size, bool aligned) {
  const long first = (static_cast<long>(blockIdx.x) * kThreads + threadIdx.x) * kGroup<T>;
  const long left = size - first;
  if (left <= 0) return;
  const bool vector = aligned && left >= kGroup<T>;
  float d[kGroup<T>];
  load_group(d, dout + first, left, vector);
  through_gelu(d, pre + first, left, vector);
  store_group(dy + first, d, left, vector);
}

template <class T>
void launch_slope(const LinearGeluBwd& p, void* dy) {
  const long size = p.rows * p.n;
  const bool aligned = is_vector(p.dout, 0) && is_vector(p.pre, 0);
  BF_LAUNCH(multiply_by_slope<T>, static_cast<unsigned>(ceil_div(size, kThreads * kGroup<T>)),
            kThreads, 0, p.gpu, static_cast<const T*>(p.dout), static_cast<const T*>(p.pre),
            static_cast<T*>(dy), size, aligned);
}

}  // namespace

std::size_t linear_gelu_fwd_workspace(const LinearGeluFwd&) { return 0; }

void linear_gelu_fwd(const LinearGeluFwd& p) {
  LinearFwd q = linear_fwd_of(p, p.out);
  q.pre = p.pre, q.gelu = true;
  linear_fwd(q);
}

std::size_t linear_gelu_bwd_workspace(const LinearGeluBwd& p) {
  Arena arena(nullptr);
  if (p.pre) arena.take<char>(p.rows * p.n * dtype_bytes(p.dtype));
  return arena.used() + linear_bwd_workspace(linear_bwd_of(p, nullptr));
}

void linear_gelu_bwd(const LinearGeluBwd& p) {
  if (p.rows == 0) return;
  Arena arena(p.gpu.workspace);
  const void* dy = p.dout;
  if (p.pre) {
    void* product = arena.take<char>(p.rows * p.n * dtype_bytes(p.dtype));
    BF_DISPATCH_DTYPE(p.dtype, T, launch_slope<T>(p, product))
    dy = product;
  }
  linear_bwd(linear_bwd_of(p, dy), arena.rest());
}

}  // namespace bf::cuda
