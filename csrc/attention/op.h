// attention: out = dropout(softmax(scale q k^T)) v inside each sequence of a packed stream.
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_ATTENTION(FIELD)                                                  \
  FIELD(const void*, qkv)                /* [tokens, 3, heads, head_size] */ \
  FIELD(const std::int32_t*, cu_seqlens) /* [sequences + 1] */               \
  FIELD(long, tokens)                                                        \
  FIELD(long, sequences)                                                     \
  FIELD(long, heads)                                                         \
  FIELD(long, head_size)                                                     \
  FIELD(long, qkv_stride) /* of a token */                                   \
  FIELD(float, scale)                                                        \
  FIELD(Dropout, dropout)                                                    \
  BF_WHERE(FIELD)

#define BF_ATTENTION_FWD(FIELD)                       \
  BF_ATTENTION(FIELD)                                 \
  FIELD(void*, out)  /* [tokens, heads, head_size] */ \
  FIELD(float*, lse) /* [heads, tokens] or null: log sum exp of the scaled logits */

#define BF_ATTENTION_BWD(FIELD)                             \
  BF_ATTENTION(FIELD)                                       \
  FIELD(const void*, dout) /* [tokens, heads, head_size] */ \
  FIELD(const void*, out)  /* [tokens, heads, head_size] */ \
  FIELD(const float*, lse) /* [heads, tokens] */            \
  FIELD(void*, dqkv)       /* as qkv, contiguous; rows of no sequence: CUDA zeroes them */

BF_KERNEL(attention_fwd, AttentionFwd, BF_ATTENTION_FWD)
BF_KERNEL(attention_bwd, AttentionBwd, BF_ATTENTION_BWD)

}  // namespace bf
