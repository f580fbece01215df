// padded_encoder, on GPUs: the real tokens of a padded batch through embedding and all layers in
// one call. The mask is read on the GPU: what is launched depends on the batch's shape alone, and
// blocks whose tokens are none leave at once.
#pragma once
#include "embedding/op.h"
#include "encoder/op.h"

namespace bf {

#define BF_PADDED_TOKENS(FIELD)                                                                    \
  FIELD(const std::uint8_t*, mask) /* [batch, length], 0: padding; or null: all tokens are real */ \
  FIELD(const std::int64_t*, input_ids)      /* [batch, length] */                                 \
  FIELD(const std::int64_t*, position_ids)   /* [batch, length] or null: the columns */            \
  FIELD(const std::int64_t*, token_type_ids) /* [batch, length] or null: zeros */
BF_STRUCT(PaddedTokens, BF_PADDED_TOKENS)

// Of the other calls neither rows and their results nor `gpu` are read: they follow from this one.
#define BF_PADDED_ENCODER_FWD(FIELD)                                                            \
  BF_PADDED_TOKENS(FIELD)                                                                       \
  FIELD(long, batch)                                                                            \
  FIELD(long, length)                                                                           \
  FIELD(EmbeddingFwd, embedding)                                                                \
  FIELD(EncoderFwd, encoder)       /* for `tokens` batch * length; first_only: `out` is null */ \
  FIELD(std::int32_t*, cu_seqlens) /* [batch + 1] */                                            \
  FIELD(void*, out)                /* [batch, length, hidden], zeros at padding */              \
  FIELD(void*, first) /* [batch, hidden]: first real rows; of none with first_only anything */  \
  BF_WHERE(FIELD)

BF_STRUCT(PaddedEncoderFwd, BF_PADDED_ENCODER_FWD)
BF_DECLARE_CUDA(padded_encoder_fwd, PaddedEncoderFwd)

}  // namespace bf
