// Forward: one launch of cuda_product.cu whose tiles run over the three weights as they are stored;
// tiles of weight s write the columns [s n, (s + 1) n) of out [rows, 3 n].
// Backward: one launch for dx (its sum runs over the three weights in turn) and for the three
// dweight and dbias, and one more where sums were cut into parts. Nothing is saved.
// What must hold: the weights are contiguous forward; dqkv and out are contiguous.
#include "product/product.h"
#include "qkv_projection/op.h"

namespace bf::cuda {

std::size_t qkv_projection_fwd_workspace(const QkvProjectionFwd& p) {
  return linear_fwd_workspace(linear_fwd_of(p, nullptr));
}

void qkv_projection_fwd(const QkvProjectionFwd& p) { linear_fwd(linear_fwd_of(p, p.out)); }

std::size_t qkv_projection_bwd_workspace(const QkvProjectionBwd& p) {
  return linear_bwd_workspace(linear_bwd_of(p, nullptr));
}

void qkv_projection_bwd(const QkvProjectionBwd& p) {
  linear_bwd(linear_bwd_of(p, p.dqkv), p.gpu.workspace);
}

}  // namespace bf::cuda
