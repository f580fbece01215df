// Forward: one launch of cuda_product.cu whose tiles run over the three weights as they are stored;
// tiles of weight s write the columns [s n, (s + 1) n) of out [rows, 3 n].
// Backward: one launch for dx (its sum runs over the three weights in turn) and for the three
// dweight and dbias, and one more where sums were cut into parts. Nothing is saved.
// What must hold: the weights are contiguous forward; dqkv and out are contiguous.
#include "product/product.h"
#include "qkv_projection/op.h"

namespace bf::cuda {
namespace {

LinearBwd products(const QkvProjectionBwd& p) {
  LinearBwd q = {};
  q.dy = p.dqkv, q.x = p.x, q.dx = p.dx;
  for (int s = 0; s < 3; ++s) {
    q.weight[s] = p.weight[s], q.weight_stride[s] = p.weight_stride[s];
    q.dweight[s] = p.dweight[s], q.dbias[s] = p.dbias[s];
  }
  q.rows = p.rows, q.n = p.n, q.k = p.k, q.x_stride = p.x_stride;
  q.weights = 3, q.dtype = p.dtype, q.gpu = p.gpu;
  return q;
}

}  // namespace

std::size_t qkv_projection_fwd_workspace(const QkvProjectionFwd&) { return 0; }

void qkv_projection_fwd(const QkvProjectionFwd& p) {
  LinearFwd q = {};
  q.x = p.x;
  for (int s = 0; s < 3; ++s) {
    q.weight[s] = p.weight[s], q.bias[s] = p.bias[s];
    q.out[s] = static_cast<char*>(p.out) + s * p.n * dtype_bytes(p.dtype);
  }
  q.rows = p.rows, q.n = p.n, q.k = p.k, q.x_stride = p.x_stride, q.out_stride = 3 * p.n;
  q.weights = 3, q.splits = 1, q.dtype = p.dtype, q.gpu = p.gpu;
  linear_fwd(q);
}

std::size_t qkv_projection_bwd_workspace(const QkvProjectionBwd& p) {
  return linear_bwd_workspace(products(p));
}

void qkv_projection_bwd(const QkvProjectionBwd& p) { linear_bwd(products(p), p.gpu.workspace); }

}  // namespace bf::cuda
