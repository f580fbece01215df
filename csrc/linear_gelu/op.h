// linear_gelu: out = gelu(x weight^T + bias), erf form.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_LINEAR_GELU_FWD(FIELD)                                                     \
  FIELD(const void*, x)      /* [rows, k], row stride x_stride */                     \
  FIELD(const void*, weight) /* [n, k], row stride weight_stride; 0: prepacked */     \
  FIELD(const void*, bias)   /* [n] */                                                \
  FIELD(void*, out)          /* [rows, n] */                                          \
  FIELD(void*, pre)          /* [rows, n] or null: x weight^T + bias, for backward */ \
  BF_LINEAR_SIZES(FIELD)                                                              \
  FIELD(long, weight_stride)                                                          \
  FIELD(DType, weight_dtype)                                                          \
  BF_WHERE(FIELD)

#define BF_LINEAR_GELU_BWD(FIELD)                                   \
  FIELD(const void*, dout)   /* [rows, n] */                        \
  FIELD(const void*, x)      /* [rows, k], row stride x_stride */   \
  FIELD(const void*, weight) /* [n, k], row stride weight_stride */ \
  FIELD(const void*, pre)    /* [rows, n] */                        \
  FIELD(void*, dx)           /* [rows, k] or null */                \
  FIELD(void*, dweight)      /* [n, k] or null */                   \
  FIELD(void*, dbias)        /* [n] or null */                      \
  BF_LINEAR_SIZES(FIELD)                                            \
  FIELD(long, weight_stride)                                        \
  BF_WHERE(FIELD)

BF_KERNEL(linear_gelu_fwd, LinearGeluFwd, BF_LINEAR_GELU_FWD)
BF_KERNEL(linear_gelu_bwd, LinearGeluBwd, BF_LINEAR_GELU_BWD)

}  // namespace bf
