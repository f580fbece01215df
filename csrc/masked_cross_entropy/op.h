// masked_cross_entropy: lse[t] = log sum_v exp(x[t] weight[v]^T + bias[v]) and the label's logit,
// labelled rows only. CUDA kernels get all tokens in `rows`, the labelled ones first, `labelled` is
// the number of tokens and `count` says on the device how many are labelled; the others get 0.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_MASKED_CROSS_ENTROPY(FIELD)                                               \
  FIELD(const void*, x)              /* [tokens, k], row stride x_stride */          \
  FIELD(const void*, weight)         /* [vocabulary, k], row stride weight_stride */ \
  FIELD(const void*, bias)           /* [vocabulary] or null */                      \
  FIELD(const std::int64_t*, rows)   /* [labelled]: the labelled tokens */           \
  FIELD(const std::int64_t*, labels) /* [labelled]: their labels */                  \
  FIELD(long, labelled)                                                              \
  FIELD(long, vocabulary)                                                            \
  FIELD(long, k)                                                                     \
  FIELD(long, x_stride)                                                              \
  FIELD(long, weight_stride)                                                         \
  FIELD(const std::int64_t*, count) /* [1], CUDA only */                             \
  BF_WHERE(FIELD)

#define BF_MASKED_CROSS_ENTROPY_FWD(FIELD) \
  BF_MASKED_CROSS_ENTROPY(FIELD)           \
  FIELD(DType, weight_dtype)               \
  FIELD(float*, lse)   /* [labelled] */    \
  FIELD(float*, logit) /* [labelled]: the label's logit */

#define BF_MASKED_CROSS_ENTROPY_BWD(FIELD)                                           \
  BF_MASKED_CROSS_ENTROPY(FIELD)                                                     \
  FIELD(const float*, lse)   /* [labelled] */                                        \
  FIELD(const float*, scale) /* [1]: dloss divided by what the sum was divided by */ \
  FIELD(void*, dx)           /* [tokens, k], zeros; or null */                       \
  FIELD(void*, dweight)      /* [vocabulary, k] or null */                           \
  FIELD(void*, dbias)        /* [vocabulary] or null */

BF_KERNEL(masked_cross_entropy_fwd, MaskedCrossEntropyFwd, BF_MASKED_CROSS_ENTROPY_FWD)
BF_KERNEL(masked_cross_entropy_bwd, MaskedCrossEntropyBwd, BF_MASKED_CROSS_ENTROPY_BWD)

}  // namespace bf
