// linear_layernorm: out = LN(z), z = residual + dropout(x weight^T + bias). x, weight, bias and
// their gradients have `dtype`; residual, ln_weight, ln_bias, z, out and their gradients
// `ln_dtype`, which is dtype or float32.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_LINEAR_LAYERNORM_FWD(FIELD)                                                            \
  FIELD(const void*, x)        /* [rows, k], row stride x_stride */                               \
  FIELD(const void*, weight)   /* [n, k], row stride weight_stride; 0: prepacked */               \
  FIELD(const void*, bias)     /* [n] */                                                          \
  FIELD(const void*, residual) /* [rows, n], row stride residual_stride */                        \
  FIELD(const void*, ln_weight)                                                                   \
  FIELD(const void*, ln_bias)            /* [n] */                                                \
  FIELD(void*, out)                      /* [rows, n] */                                          \
  FIELD(void*, z)                        /* [rows, n] or null: the sum before LN, for backward */ \
  FIELD(float*, mean)                    /* [rows] or null */                                     \
  FIELD(float*, rstd)                    /* [rows] or null */                                     \
  FIELD(const std::int32_t*, cu_seqlens) /* [sequences + 1]; read only with dropout */            \
  BF_LINEAR_SIZES(FIELD)                                                                          \
  FIELD(long, weight_stride)                                                                      \
  FIELD(DType, weight_dtype)                                                                      \
  FIELD(long, residual_stride)                                                                    \
  FIELD(long, sequences)                                                                          \
  FIELD(float, eps)                                                                               \
  FIELD(Dropout, dropout)                                                                         \
  FIELD(DType, ln_dtype)                                                                          \
  BF_WHERE(FIELD)

#define BF_LINEAR_LAYERNORM_BWD(FIELD)                                                 \
  FIELD(const void*, dout)   /* [rows, n] */                                           \
  FIELD(const void*, x)      /* [rows, k], row stride x_stride */                      \
  FIELD(const void*, weight) /* [n, k], row stride weight_stride */                    \
  FIELD(const void*, z)      /* [rows, n] */                                           \
  FIELD(const float*, mean)  /* [rows] */                                              \
  FIELD(const float*, rstd)  /* [rows] */                                              \
  FIELD(const void*, ln_weight)                                                        \
  FIELD(void*, dx)        /* [rows, k] or null */                                      \
  FIELD(void*, dweight)   /* [n, k] or null */                                         \
  FIELD(void*, dbias)     /* [n] or null */                                            \
  FIELD(void*, dresidual) /* [rows, n] */                                              \
  FIELD(void*, dln_weight)                                                             \
  FIELD(void*, dln_bias)                 /* [n] */                                     \
  FIELD(const std::int32_t*, cu_seqlens) /* [sequences + 1]; read only with dropout */ \
  BF_LINEAR_SIZES(FIELD)                                                               \
  FIELD(long, weight_stride)                                                           \
  FIELD(long, sequences)                                                               \
  FIELD(Dropout, dropout)                                                              \
  FIELD(DType, ln_dtype)                                                               \
  BF_WHERE(FIELD)

BF_KERNEL(linear_layernorm_fwd, LinearLayernormFwd, BF_LINEAR_LAYERNORM_FWD)
BF_KERNEL(linear_layernorm_bwd, LinearLayernormBwd, BF_LINEAR_LAYERNORM_BWD)

}  // namespace bf
