// embedding: out = dropout(LN(word[id] + position[p] + segment[s])).
#pragma once
#include "common/dropout.h"
#include "common/dtype.h"
#include "common/gpu.h"
#include "common/variants.h"

namespace bf {

struct EmbeddingFwd {
  const std::int64_t* input_ids;     // [rows], or null: word holds the rows themselves
  const std::int64_t* position_ids;  // [rows]
  const std::int64_t* segment_ids;   // [rows]
  const void* word;      // [vocabulary, n] or, without ids, [rows, n]; row stride word_stride
  const void* position;  // [positions, n]
  const void* segment;   // [segments, n]
  const void* ln_weight;
  const void* ln_bias;             // [n]
  void* out;                       // [rows, n]
  float* mean;                     // [rows] or null
  float* rstd;                     // [rows] or null
  const std::int32_t* cu_seqlens;  // [sequences + 1]; read only with dropout
  long rows, n, word_stride, sequences;
  float eps;
  Dropout dropout;
  DType dtype;
  int threads;
  Gpu gpu = {};
  long table_rows[3] = {};  // of word, position, segment; CUDA: ids beyond them give a row of NaN
};

struct EmbeddingTable {       // gradient of one table: rows that occur, in fp32 sums over tokens in
                              // order
  const std::int64_t* ids;    // [rows]
  const std::int64_t* order;  // [rows]: tokens by id, equal ids in the order of the tokens
  void* dtable;               // [ids, n], zeros; or null
  std::int64_t skip;          // this id gets no gradient (-1: none is skipped)
};

struct EmbeddingBwd {
  const void* dout;                  // [rows, n]
  const std::int64_t* input_ids;     // [rows], or null: word holds the rows themselves
  const std::int64_t* position_ids;  // [rows]
  const std::int64_t* segment_ids;   // [rows]
  const void* word;                  // as in EmbeddingFwd; the three are summed again
  const void* position;
  const void* segment;
  const void* ln_weight;
  const float* mean;         // [rows]
  const float* rstd;         // [rows]
  EmbeddingTable tables[3];  // word, position, segment
  void* dinputs;             // [rows, n] or null: gradient of the summed row
  void* dln_weight;
  void* dln_bias;                  // [n]
  const std::int32_t* cu_seqlens;  // [sequences + 1]; read only with dropout
  long rows, n, word_stride, sequences;
  Dropout dropout;
  DType dtype;
  int threads;
  Gpu gpu = {};
  long table_rows[3] = {};  // as in EmbeddingFwd; ids beyond them add to no table
};

BF_DECLARE_CPU(embedding_fwd, EmbeddingFwd)
BF_DECLARE_CUDA(embedding_fwd, EmbeddingFwd)
BF_DECLARE_CPU(embedding_bwd, EmbeddingBwd)
BF_DECLARE_CUDA(embedding_bwd, EmbeddingBwd)

}  // namespace bf
