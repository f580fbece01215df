// qkv_projection: out[t, s] = x weight_s^T + bias_s for s = query, key, value; one product over three weights.
#pragma once
#include "common/dtype.h"
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
};

BF_DECLARE_CPU(qkv_projection_fwd, QkvProjectionFwd)

}  // namespace bf
