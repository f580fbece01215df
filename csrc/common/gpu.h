// What a CUDA kernel is told beyond the operation's own fields; CPU kernels ignore it.
#pragma once
#include <cstdint>

#include "common/fields.h"

namespace bf {

#define BF_GPU(FIELD)                                                                              \
  FIELD(void*, stream)    /* the caller's cudaStream_t */                                          \
  FIELD(void*, workspace) /* device memory of the size that <operation>_workspace() said */        \
  FIELD(bool, tf32)       /* fp32 products may round their inputs to tf32 */                       \
  FIELD(bool, invariant)  /* how a row's sums are cut depends on no other row */                   \
  FIELD(bool, cublaslt)   /* products are cuBLASLt's, where it has what they end in */             \
  FIELD(const std::int32_t*, used) /* how many of a forward's rows count, null: all do. Embedding, \
                                      products and LN read and write no other; attention knows     \
                                      from cu_seqlens, and writes zeros there */
BF_STRUCT(Gpu, BF_GPU)

}  // namespace bf
