// linear_gelu: out = gelu(x weight^T + bias), erf form.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_LINEAR_GELU_FWD(FIELD)                                            \
  BF_LINEAR_FWD(FIELD)                                                       \
  FIELD(void*, out) /* [rows, n] */                                          \
  FIELD(void*, pre) /* [rows, n] or null: x weight^T + bias, for backward */ \
  BF_WHERE(FIELD)

#define BF_LINEAR_GELU_BWD(FIELD)                                                          \
  BF_LINEAR_BWD(FIELD)                                                                     \
  FIELD(const void*, dout) /* [rows, n] */                                                 \
  FIELD(const void*, pre)  /* [rows, n] or null: dout is multiplied by the slope (GPUs) */ \
  BF_WHERE(FIELD)

BF_KERNEL(linear_gelu_fwd, LinearGeluFwd, BF_LINEAR_GELU_FWD)
BF_KERNEL(linear_gelu_bwd, LinearGeluBwd, BF_LINEAR_GELU_BWD)

}  // namespace bf
