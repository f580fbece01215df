// encoder: all layers in one call, each qkv_projection, attention, linear_layernorm, linear_gelu
// and linear_layernorm. Bits are those of the operations one by one, forward and backward. What
// backward needs of a layer lies in `saved`; with `recompute` only each layer's output is there,
// and backward runs the layer again.
#pragma once
#include "common/kernel.h"

namespace bf {

// What `weights` and `grads` hold: of all layers the first, of all layers the second, ...
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

// What `saved` holds of each layer, in the same order. Rows: tokens, and sequences behind the last
// attention with first_only. Statistics are fp32.
enum EncoderSaved {
  kRows,       // [rows, hidden]: the layer's output
  kQkv,        // [tokens, 3, width]
  kContext,    // [tokens, width]
  kLse,        // [heads, tokens]
  kFirstHalf,  // [rows, hidden]: what the first LN gives
  kPre,        // [rows, inner]: before GELU
  kActivated,  // [rows, inner]
  kSum,        // two of [rows, hidden]: before LN
  kMean = 9,   // two of [rows]
  kRstd = 11,  // two of [rows]
  kLayerSaved = 13
};

// Which products of a layer cuBLASLt computes: bits 0 to 3 say so of query to value, out, inner and
// outer forward, bits 4 to 7 backward.
#define BF_ENCODER(FIELD)                                                                    \
  FIELD(const void*, x)                  /* [tokens, hidden] */                              \
  FIELD(List<const void*>, weights)      /* kLayerWeights of each layer, contiguous */       \
  FIELD(List<float>, eps)                /* of each layer's two LN */                        \
  FIELD(List<void*>, saved)              /* kLayerSaved of each layer; empty in inference */ \
  FIELD(const std::int32_t*, cu_seqlens) /* [sequences + 1] */                               \
  FIELD(long, tokens)                                                                        \
  FIELD(long, sequences)                                                                     \
  FIELD(long, layers)                                                                        \
  FIELD(long, hidden)                                                                        \
  FIELD(long, inner)                                                                         \
  FIELD(long, heads)                                                                         \
  FIELD(long, head_size)                                                                     \
  FIELD(float, scale)                                                                        \
  FIELD(Dropout, attention_dropout) /* its seed is the first layer's of [layers, 3] seeds */ \
  FIELD(Dropout, out_dropout)       /* the second of these three */                          \
  FIELD(Dropout, dropout)           /* the third */                                          \
  FIELD(bool, prepacked)            /* all weights of products */                            \
  FIELD(bool, int8)                 /* they are addresses of Int8Weight (no backward) */     \
  FIELD(bool, first_only)           /* what follows the last attention: first rows only */   \
  FIELD(bool, recompute)            /* of `saved` there is kRows alone */                    \
  FIELD(List<int>, cublaslt)        /* of each layer, bits as above; or empty */             \
  BF_WHERE(FIELD)

#define BF_ENCODER_FWD(FIELD)                                                                  \
  BF_ENCODER(FIELD)                                                                            \
  FIELD(void*, out)    /* [tokens, hidden]; [sequences, hidden] */                             \
  FIELD(void*, states) /* [layers, tokens, hidden]: each layer's output; or null (first_only). \
                          `out` is the last of them */

#define BF_ENCODER_BWD(FIELD)                                  \
  BF_ENCODER(FIELD)                                            \
  FIELD(const void*, dout)  /* as out */                       \
  FIELD(List<void*>, grads) /* as weights; null: not wanted */ \
  FIELD(void*, dx)          /* [tokens, hidden] or null */

BF_KERNEL(encoder_fwd, EncoderFwd, BF_ENCODER_FWD)
BF_KERNEL(encoder_bwd, EncoderBwd, BF_ENCODER_BWD)

}  // namespace bf
