// embedding: out = dropout(LN(word[id] + position[p] + segment[s])).
#pragma once
#include "common/dropout.h"
#include "common/dtype.h"
#include "common/variants.h"

namespace bf {

struct EmbeddingFwd {
  const std::int64_t* input_ids;     // [rows], or null: word holds the rows themselves
  const std::int64_t* position_ids;  // [rows]
  const std::int64_t* segment_ids;   // [rows]
  const void* word;                  // [vocabulary, n] or, without ids, [rows, n]; row stride word_stride
  const void* position;              // [positions, n]
  const void* segment;               // [segments, n]
  const void* ln_weight;
  const void* ln_bias;  // [n]
  void* out;            // [rows, n]
  float* mean;          // [rows] or null
  float* rstd;          // [rows] or null
  const std::int32_t* cu_seqlens;  // [sequences + 1]; read only with dropout
  long rows, n, word_stride, sequences;
  float eps;
  Dropout dropout;
  DType dtype;
  int threads;
};

BF_DECLARE_CPU(embedding_fwd, EmbeddingFwd)

}  // namespace bf
