// linear_layernorm: out = LN(z), z = residual + dropout(x weight^T + bias). x, weight, bias and
// their gradients have `dtype`; residual, ln_weight, ln_bias, z, out and their gradients
// `ln_dtype`, which is dtype or float32.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_LINEAR_LAYERNORM_FWD(FIELD)                                     \
  BF_LINEAR_FWD(FIELD)                                                     \
  BF_LAYERNORM_FWD(FIELD)                                                  \
  BF_TOKEN_DROPOUT(FIELD)                                                  \
  FIELD(const void*, residual) /* [rows, n], row stride residual_stride */ \
  FIELD(long, residual_stride)                                             \
  FIELD(void*, z) /* [rows, n] or null: the sum before LN, for backward */ \
  FIELD(DType, ln_dtype)                                                   \
  BF_WHERE(FIELD)

#define BF_LINEAR_LAYERNORM_BWD(FIELD)                                                           \
  BF_LINEAR_BWD(FIELD)                                                                           \
  BF_LAYERNORM_BWD(FIELD)                                                                        \
  BF_TOKEN_DROPOUT(FIELD)                                                                        \
  FIELD(const void*, z)   /* [rows, n] */                                                        \
  FIELD(void*, dresidual) /* [rows, n] */                                                        \
  FIELD(const void*, pre) /* [rows, k] or null: dx is multiplied by GELU's slope there (GPUs) */ \
  FIELD(DType, ln_dtype)                                                                         \
  BF_WHERE(FIELD)

BF_KERNEL(linear_layernorm_fwd, LinearLayernormFwd, BF_LINEAR_LAYERNORM_FWD)
BF_KERNEL(linear_layernorm_bwd, LinearLayernormBwd, BF_LINEAR_LAYERNORM_BWD)

}  // namespace bf
