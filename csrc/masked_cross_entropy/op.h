// masked_cross_entropy: lse[t] = log sum_v exp(x[t] weight[v]^T + bias[v]) and the label's logit,
// labelled rows only. CUDA kernels get all tokens in `rows`, the labelled ones first, `labelled` is
// the number of tokens and `count` says on the device how many are labelled; the others get 0.
#pragma once
#include "common/dtype.h"
#include "common/gpu.h"
#include "common/variants.h"

namespace bf {

struct MaskedCrossEntropyFwd {
  const void* x;             // [tokens, k], row stride x_stride
  const void* weight;        // [vocabulary, k], row stride weight_stride, as it stands (not packed)
  const void* bias;          // [vocabulary] or null
  const std::int64_t* rows;  // [labelled]: the labelled tokens
  const std::int64_t* labels;  // [labelled]: their labels
  float* lse;                  // [labelled]
  float* logit;                // [labelled]: the label's logit
  long labelled, vocabulary, k, x_stride, weight_stride;
  DType dtype;
  int threads;
  Gpu gpu = {};
  const std::int64_t* count = nullptr;  // [1]
};

struct MaskedCrossEntropyBwd {
  const void* x;               // [tokens, k], row stride x_stride
  const void* weight;          // [vocabulary, k], row stride weight_stride
  const void* bias;            // [vocabulary] or null
  const std::int64_t* rows;    // [labelled]: the labelled tokens
  const std::int64_t* labels;  // [labelled]: their labels
  const float* lse;            // [labelled]
  const float* scale;          // [1]: dloss divided by what the sum was divided by
  void* dx;                    // [tokens, k], zeros; or null
  void* dweight;               // [vocabulary, k] or null
  void* dbias;                 // [vocabulary] or null
  long labelled, vocabulary, k, x_stride, weight_stride;
  DType dtype;
  int threads;
  Gpu gpu = {};
  const std::int64_t* count = nullptr;  // [1]
};

BF_DECLARE_CPU(masked_cross_entropy_fwd, MaskedCrossEntropyFwd)
BF_DECLARE_CUDA(masked_cross_entropy_fwd, MaskedCrossEntropyFwd)
BF_DECLARE_CPU(masked_cross_entropy_bwd, MaskedCrossEntropyBwd)
BF_DECLARE_CUDA(masked_cross_entropy_bwd, MaskedCrossEntropyBwd)

}  // namespace bf
