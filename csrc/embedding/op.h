// embedding: out = dropout(LN(word[id] + position[p] + segment[s])).
#pragma once
#include "common/kernel.h"

namespace bf {

#define BF_EMBEDDING_FWD(FIELD)                                                              \
  FIELD(const std::int64_t*, input_ids)    /* [rows], or null: word holds the rows */        \
  FIELD(const std::int64_t*, position_ids) /* [rows] */                                      \
  FIELD(const std::int64_t*, segment_ids)  /* [rows] */                                      \
  FIELD(const void*, word)                 /* [vocabulary, n] or, without ids, [rows, n] */  \
  FIELD(const void*, position)             /* [positions, n] */                              \
  FIELD(const void*, segment)              /* [segments, n] */                               \
  FIELD(const void*, ln_weight)                                                              \
  FIELD(const void*, ln_bias)            /* [n] */                                           \
  FIELD(void*, out)                      /* [rows, n] */                                     \
  FIELD(float*, mean)                    /* [rows] or null */                                \
  FIELD(float*, rstd)                    /* [rows] or null */                                \
  FIELD(const std::int32_t*, cu_seqlens) /* [sequences + 1]; read only with dropout */       \
  FIELD(long, rows)                                                                          \
  FIELD(long, n)                                                                             \
  FIELD(long, word_stride)                                                                   \
  FIELD(long, sequences)                                                                     \
  FIELD(float, eps)                                                                          \
  FIELD(Dropout, dropout)                                                                    \
  FIELD(Three<long>, table_rows) /* of the three; CUDA: ids beyond them give a row of NaN */ \
  BF_WHERE(FIELD)

// Gradient of one table: rows that occur, in fp32 sums over tokens in order.
#define BF_EMBEDDING_TABLE(FIELD)                                                        \
  FIELD(const std::int64_t*, ids)   /* [rows] */                                         \
  FIELD(const std::int64_t*, order) /* [rows]: tokens by id, equal ids in token order */ \
  FIELD(void*, dtable)              /* [ids, n], zeros; or null */                       \
  FIELD(std::int64_t, skip)         /* this id gets no gradient (-1: none is skipped) */
BF_STRUCT(EmbeddingTable, BF_EMBEDDING_TABLE)

#define BF_EMBEDDING_BWD(FIELD)                                                            \
  FIELD(const void*, dout)                 /* [rows, n] */                                 \
  FIELD(const std::int64_t*, input_ids)    /* [rows], or null: word holds the rows */      \
  FIELD(const std::int64_t*, position_ids) /* [rows] */                                    \
  FIELD(const std::int64_t*, segment_ids)  /* [rows] */                                    \
  FIELD(const void*, word)                 /* as in forward; the three are summed again */ \
  FIELD(const void*, position)                                                             \
  FIELD(const void*, segment)                                                              \
  FIELD(const void*, ln_weight)                                                            \
  FIELD(const float*, mean)            /* [rows] */                                        \
  FIELD(const float*, rstd)            /* [rows] */                                        \
  FIELD(Three<EmbeddingTable>, tables) /* word, position, segment */                       \
  FIELD(void*, dinputs)                /* [rows, n] or null: gradient of the summed row */ \
  FIELD(void*, dln_weight)                                                                 \
  FIELD(void*, dln_bias)                 /* [n] */                                         \
  FIELD(const std::int32_t*, cu_seqlens) /* [sequences + 1]; read only with dropout */     \
  FIELD(long, rows)                                                                        \
  FIELD(long, n)                                                                           \
  FIELD(long, word_stride)                                                                 \
  FIELD(long, sequences)                                                                   \
  FIELD(Dropout, dropout)                                                                  \
  FIELD(Three<long>, table_rows) /* as in forward; ids beyond them add to no table */      \
  BF_WHERE(FIELD)

BF_KERNEL(embedding_fwd, EmbeddingFwd, BF_EMBEDDING_FWD)
BF_KERNEL(embedding_bwd, EmbeddingBwd, BF_EMBEDDING_BWD)

}  // namespace bf
