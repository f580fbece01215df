// qkv_projection: out[t, s] = x weight_s^T + bias_s for s = query, key, value; one product over
// three weights.
#pragma once
#include "common/dtype.h"
#include "common/gpu.h"
#include "common/variants.h"

namespace bf {

struct QkvProjectionFwd {
  const void* x;          // [rows, k], row stride x_stride
  const void* packed[3];  // weights [n, k], packed
  const void* bias[3];    // [n]
  void* out;              // [rows, 3, n]
  long rows, n, k, x_stride;
  DType dtype;
  int threads;
  Gpu gpu = {};
};

struct QkvProjectionBwd {
  const void* dqkv;       // [rows, 3, n]
  const void* x;          // [rows, k], row stride x_stride
  const void* weight[3];  // [n, k], row strides weight_stride, as they stand (not packed)
  void* dx;               // [rows, k] or null
  void* dweight[3];       // [n, k] or null
  void* dbias[3];         // [n] or null
  long rows, n, k, x_stride, weight_stride[3];
  DType dtype;
  int threads;
  Gpu gpu = {};
};

BF_DECLARE_CPU(qkv_projection_fwd, QkvProjectionFwd)
BF_DECLARE_CUDA(qkv_projection_fwd, QkvProjectionFwd)
BF_DECLARE_CPU(qkv_projection_bwd, QkvProjectionBwd)
BF_DECLARE_CUDA(qkv_projection_bwd, QkvProjectionBwd)

}  // namespace bf
