// qkv_projection: out[t, s] = x weight_s^T + bias_s for s = query, key, value; one product over
// three weights.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_QKV_PROJECTION_FWD(FIELD)                                                      \
  BF_PRODUCT(FIELD)                                                                       \
  FIELD(Three<const void*>, weight) /* [n, k], row strides weight_stride; 0: prepacked */ \
  FIELD(Three<const void*>, bias)   /* [n] */                                             \
  FIELD(Three<long>, weight_stride)                                                       \
  FIELD(DType, weight_dtype)                                                              \
  FIELD(void*, out) /* [rows, 3, n] */                                                    \
  BF_WHERE(FIELD)

#define BF_QKV_PROJECTION_BWD(FIELD)                                        \
  BF_PRODUCT(FIELD)                                                         \
  FIELD(Three<const void*>, weight) /* [n, k], row strides weight_stride */ \
  FIELD(Three<long>, weight_stride)                                         \
  FIELD(const void*, dqkv)     /* [rows, 3, n] */                           \
  FIELD(void*, dx)             /* [rows, k] or null */                      \
  FIELD(Three<void*>, dweight) /* [n, k] or null */                         \
  FIELD(Three<void*>, dbias)   /* [n] or null */                            \
  BF_WHERE(FIELD)

BF_KERNEL(qkv_projection_fwd, QkvProjectionFwd, BF_QKV_PROJECTION_FWD)
BF_KERNEL(qkv_projection_bwd, QkvProjectionBwd, BF_QKV_PROJECTION_BWD)

}  // namespace bf
