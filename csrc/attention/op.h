// attention: out = dropout(softmax(scale q k^T)) v inside each sequence of a packed stream.
#pragma once
#include "common/dropout.h"
#include "common/dtype.h"
#include "common/gpu.h"
#include "common/variants.h"

namespace bf {

struct AttentionFwd {
  const void* qkv;                 // [tokens, 3, heads, head_size], token stride qkv_stride
  const std::int32_t* cu_seqlens;  // [sequences + 1]
  void* out;                       // [tokens, heads, head_size]
  float* lse;                      // [heads, tokens] or null: log sum exp of the scaled logits
  long tokens, sequences, heads, head_size, qkv_stride;
  float scale;
  Dropout dropout;
  DType dtype;
  int threads;
  Gpu gpu = {};
};

struct AttentionBwd {
  const void* dout;                // [tokens, heads, head_size]
  const void* qkv;                 // [tokens, 3, heads, head_size], token stride qkv_stride
  const void* out;                 // [tokens, heads, head_size]
  const float* lse;                // [heads, tokens]
  const std::int32_t* cu_seqlens;  // [sequences + 1]
  void* dqkv;  // [tokens, 3, heads, head_size], contiguous; rows of no sequence are the caller's
               // zeros on the CPU, CUDA kernels write them
  long tokens, sequences, heads, head_size, qkv_stride;
  float scale;
  Dropout dropout;
  DType dtype;
  int threads;
  Gpu gpu = {};
};

BF_DECLARE_CPU(attention_fwd, AttentionFwd)
BF_DECLARE_CUDA(attention_fwd, AttentionFwd)
BF_DECLARE_CPU(attention_bwd, AttentionBwd)
BF_DECLARE_CUDA(attention_bwd, AttentionBwd)

}  // namespace bf
