// gelu_layernorm: out = LN(gelu(x weight^T + bias)), the transform of the masked-LM head.
#pragma once
#include "common/dtype.h"
#include "common/variants.h"

namespace bf {

struct GeluLayernormFwd {
  const void* x;       // [rows, k], row stride x_stride
  const void* packed;  // weight [n, k], packed
  const void* bias;    // [n]
  const void* ln_weight;
  const void* ln_bias;  // [n]
  void* out;            // [rows, n]
  void* pre;            // [rows, n] or null: x weight^T + bias, for backward
  float* mean;          // [rows] or null
  float* rstd;          // [rows] or null
  long rows, n, k, x_stride;
  float eps;
  DType dtype;
  int threads;
};

BF_DECLARE_CPU(gelu_layernorm_fwd, GeluLayernormFwd)

}  // namespace bf
