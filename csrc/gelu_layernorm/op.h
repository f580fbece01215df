// gelu_layernorm: out = LN(gelu(x weight^T + bias)), the transform of the masked-LM head. x,
// weight, bias, pre and their gradients have `dtype`; ln_weight, ln_bias, out and their gradients
// `ln_dtype`, which is dtype or float32.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_GELU_LAYERNORM_FWD(FIELD)                                         \
  BF_LINEAR_FWD(FIELD)                                                       \
  BF_LAYERNORM_FWD(FIELD)                                                    \
  FIELD(void*, pre) /* [rows, n] or null: x weight^T + bias, for backward */ \
  FIELD(DType, ln_dtype)                                                     \
  BF_WHERE(FIELD)

#define BF_GELU_LAYERNORM_BWD(FIELD)      \
  BF_LINEAR_BWD(FIELD)                    \
  BF_LAYERNORM_BWD(FIELD)                 \
  FIELD(const void*, pre) /* [rows, n] */ \
  FIELD(DType, ln_dtype)                  \
  BF_WHERE(FIELD)

BF_KERNEL(gelu_layernorm_fwd, GeluLayernormFwd, BF_GELU_LAYERNORM_FWD)
BF_KERNEL(gelu_layernorm_bwd, GeluLayernormBwd, BF_GELU_LAYERNORM_BWD)

}  // namespace bf
