// linear_layernorm: out = LN(z), z = residual + dropout(x weight^T + bias). x, weight, bias and
// their gradients have `dtype`; residual, ln_weight, ln_bias, z, out and their gradients
// `ln_dtype`, which is dtype or float32.
#pragma once
#include "common/dropout.h"
#include "common/dtype.h"
#include "common/gpu.h"
#include "common/variants.h"

namespace bf {

struct LinearLayernormFwd {
  const void* x;         // [rows, k], row stride x_stride
  const void* packed;    // weight [n, k], packed
  const void* bias;      // [n]
  const void* residual;  // [rows, n], row stride residual_stride
  const void* ln_weight;
  const void* ln_bias;             // [n]
  void* out;                       // [rows, n]
  void* z;                         // [rows, n] or null: the sum before LN, for backward
  float* mean;                     // [rows] or null
  float* rstd;                     // [rows] or null
  const std::int32_t* cu_seqlens;  // [sequences + 1]; read only with dropout
  long rows, n, k, x_stride, residual_stride, sequences;
  float eps;
  Dropout dropout;
  DType dtype;
  DType ln_dtype;
  int threads;
  Gpu gpu = {};
};

struct LinearLayernormBwd {
  const void* dout;    // [rows, n]
  const void* x;       // [rows, k], row stride x_stride
  const void* weight;  // [n, k], row stride weight_stride, as it stands (not packed)
  const void* z;       // [rows, n]
  const float* mean;   // [rows]
  const float* rstd;   // [rows]
  const void* ln_weight;
  void* dx;         // [rows, k] or null
  void* dweight;    // [n, k] or null
  void* dbias;      // [n] or null
  void* dresidual;  // [rows, n]
  void* dln_weight;
  void* dln_bias;                  // [n]
  const std::int32_t* cu_seqlens;  // [sequences + 1]; read only with dropout
  long rows, n, k, x_stride, weight_stride, sequences;
  Dropout dropout;
  DType dtype;
  DType ln_dtype;
  int threads;
  Gpu gpu = {};
};

BF_DECLARE_CPU(linear_layernorm_fwd, LinearLayernormFwd)
BF_DECLARE_CUDA(linear_layernorm_fwd, LinearLayernormFwd)
BF_DECLARE_CPU(linear_layernorm_bwd, LinearLayernormBwd)
BF_DECLARE_CUDA(linear_layernorm_bwd, LinearLayernormBwd)

}  // namespace bf
