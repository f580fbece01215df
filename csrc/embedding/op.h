// embedding: out = dropout(LN(word[id] + position[p] + segment[s])).
#pragma once
#include "common/kernel.h"

namespace bf {

// Backward sums the three rows again.
#define BF_EMBEDDING(FIELD)                                                                        \
  FIELD(const std::int64_t*, input_ids)    /* [rows], or null: word holds the rows */              \
  FIELD(const std::int64_t*, position_ids) /* [rows] */                                            \
  FIELD(const std::int64_t*, segment_ids)  /* [rows] */                                            \
  FIELD(const void*, word)                 /* [vocabulary, n] or, without ids, [rows, n] */        \
  FIELD(const void*, position)             /* [positions, n] */                                    \
  FIELD(const void*, segment)              /* [segments, n] */                                     \
  FIELD(long, rows)                                                                                \
  FIELD(long, n)                                                                                   \
  FIELD(long, word_stride)                                                                         \
  FIELD(Three<long>, table_rows) /* CUDA: ids beyond them give a row of NaN and add to no table */ \
  BF_TOKEN_DROPOUT(FIELD)                                                                          \
  BF_WHERE(FIELD)

#define BF_EMBEDDING_FWD(FIELD) \
  BF_EMBEDDING(FIELD)           \
  BF_LAYERNORM_FWD(FIELD)

// Gradient of one table: rows that occur, in fp32 sums over tokens in order.
#define BF_EMBEDDING_TABLE(FIELD)                                                        \
  FIELD(const std::int64_t*, ids)   /* [rows] */                                         \
  FIELD(const std::int64_t*, order) /* [rows]: tokens by id, equal ids in token order */ \
  FIELD(void*, dtable)              /* [ids, n], zeros; or null */                       \
  FIELD(std::int64_t, skip)         /* this id gets no gradient (-1: none is skipped) */
BF_STRUCT(EmbeddingTable, BF_EMBEDDING_TABLE)

#define BF_EMBEDDING_BWD(FIELD)                                      \
  BF_EMBEDDING(FIELD)                                                \
  BF_LAYERNORM_BWD(FIELD)                                            \
  FIELD(Three<EmbeddingTable>, tables) /* word, position, segment */ \
  FIELD(void*, dinputs)                /* [rows, n] or null: gradient of the summed row */

BF_KERNEL(embedding_fwd, EmbeddingFwd, BF_EMBEDDING_FWD)
BF_KERNEL(embedding_bwd, EmbeddingBwd, BF_EMBEDDING_BWD)

}  // namespace bf
