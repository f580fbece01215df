// encoder: all layers in one call, each qkv_projection, attention, linear_layernorm, linear_gelu
// and linear_layernorm, in inference. Bits are those of the operations one by one.
#pragma once
#include "common/kernel.h"

namespace bf {

// What `weights` holds: of all layers the first, of all layers the second, ...
enum EncoderWeight {
  kQuery,         // three of [width, hidden]
  kOut = 3,       // [hidden, width]
  kInner,         // [inner, hidden]
  kOuter,         // [hidden, inner]
  kBias,          // of these six
  kOutNorm = 12,  // weight and bias of LN [hidden]
  kNorm = 14,
  kLayerWeights = 16
};

#define BF_ENCODER_FWD(FIELD)                                                                    \
  FIELD(const void*, x)                  /* [tokens, hidden] */                                  \
  FIELD(List<const void*>, weights)      /* kLayerWeights of each, contiguous */                 \
  FIELD(List<float>, eps)                /* of each layer's two LN */                            \
  FIELD(const std::int32_t*, cu_seqlens) /* [sequences + 1] */                                   \
  FIELD(void*, out)    /* [tokens, hidden]; [sequences, hidden] with first_only */               \
  FIELD(void*, states) /* [layers, tokens, hidden]: each layer's output; or null (first_only) */ \
  FIELD(long, tokens)                                                                            \
  FIELD(long, sequences)                                                                         \
  FIELD(long, layers)                                                                            \
  FIELD(long, hidden)                                                                            \
  FIELD(long, inner)                                                                             \
  FIELD(long, heads)                                                                             \
  FIELD(long, head_size)                                                                         \
  FIELD(float, scale)                                                                            \
  FIELD(bool, prepacked)  /* all weights of products */                                          \
  FIELD(bool, int8)       /* the same: each an Int8Weight */                                     \
  FIELD(bool, first_only) /* what follows the last attention: first rows only */                 \
  BF_WHERE(FIELD)

BF_STRUCT(EncoderFwd, BF_ENCODER_FWD)
BF_DECLARE_CPU(void encoder_fwd(const EncoderFwd&))

}  // namespace bf
