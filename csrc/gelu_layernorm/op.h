// gelu_layernorm: out = LN(gelu(x weight^T + bias)), the transform of the masked-LM head. x,
// weight, bias, pre and their gradients have `dtype`; ln_weight, ln_bias, out and their gradients
// `ln_dtype`, which is dtype or float32.
#pragma once
#include "common/dtype.h"
#include "common/gpu.h"
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
  DType ln_dtype;
  int threads;
  Gpu gpu = {};
};

struct GeluLayernormBwd {
  const void* dout;    // [rows, n]
  const void* x;       // [rows, k], row stride x_stride
  const void* weight;  // [n, k], row stride weight_stride, as it stands (not packed)
  const void* pre;     // [rows, n]
  const float* mean;   // [rows]
  const float* rstd;   // [rows]
  const void* ln_weight;
  void* dx;       // [rows, k] or null
  void* dweight;  // [n, k] or null
  void* dbias;    // [n] or null
  void* dln_weight;
  void* dln_bias;  // [n]
  long rows, n, k, x_stride, weight_stride;
  DType dtype;
  DType ln_dtype;
  int threads;
  Gpu gpu = {};
};

BF_DECLARE_CPU(gelu_layernorm_fwd, GeluLayernormFwd)
BF_DECLARE_CUDA(gelu_layernorm_fwd, GeluLayernormFwd)
BF_DECLARE_CPU(gelu_layernorm_bwd, GeluLayernormBwd)
BF_DECLARE_CUDA(gelu_layernorm_bwd, GeluLayernormBwd)

}  // namespace bf
