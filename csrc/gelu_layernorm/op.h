// gelu_layernorm: out = LN(gelu(x weight^T + bias)), the transform of the masked-LM head. x,
// weight, bias, pre and their gradients have `dtype`; ln_weight, ln_bias, out and their gradients
// `ln_dtype`, which is dtype or float32.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_GELU_LAYERNORM_FWD(FIELD)                                                   \
  FIELD(const void*, x)      /* [rows, k], row stride x_stride */                      \
  FIELD(const void*, weight) /* [n, k], row stride weight_stride; 0: prepacked */      \
  FIELD(const void*, bias)   /* [n] */                                                 \
  FIELD(const void*, ln_weight)                                                        \
  FIELD(const void*, ln_bias) /* [n] */                                                \
  FIELD(void*, out)           /* [rows, n] */                                          \
  FIELD(void*, pre)           /* [rows, n] or null: x weight^T + bias, for backward */ \
  FIELD(float*, mean)         /* [rows] or null */                                     \
  FIELD(float*, rstd)         /* [rows] or null */                                     \
  BF_LINEAR_SIZES(FIELD)                                                               \
  FIELD(long, weight_stride)                                                           \
  FIELD(DType, weight_dtype)                                                           \
  FIELD(float, eps)                                                                    \
  FIELD(DType, ln_dtype)                                                               \
  BF_WHERE(FIELD)

#define BF_GELU_LAYERNORM_BWD(FIELD)                                \
  FIELD(const void*, dout)   /* [rows, n] */                        \
  FIELD(const void*, x)      /* [rows, k], row stride x_stride */   \
  FIELD(const void*, weight) /* [n, k], row stride weight_stride */ \
  FIELD(const void*, pre)    /* [rows, n] */                        \
  FIELD(const float*, mean)  /* [rows] */                           \
  FIELD(const float*, rstd)  /* [rows] */                           \
  FIELD(const void*, ln_weight)                                     \
  FIELD(void*, dx)      /* [rows, k] or null */                     \
  FIELD(void*, dweight) /* [n, k] or null */                        \
  FIELD(void*, dbias)   /* [n] or null */                           \
  FIELD(void*, dln_weight)                                          \
  FIELD(void*, dln_bias) /* [n] */                                  \
  BF_LINEAR_SIZES(FIELD)                                            \
  FIELD(long, weight_stride)                                        \
  FIELD(DType, ln_dtype)                                            \
  BF_WHERE(FIELD)

BF_KERNEL(gelu_layernorm_fwd, GeluLayernormFwd, BF_GELU_LAYERNORM_FWD)
BF_KERNEL(gelu_layernorm_bwd, GeluLayernormBwd, BF_GELU_LAYERNORM_BWD)

}  // namespace bf
