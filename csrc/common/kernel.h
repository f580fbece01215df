// How an op.h declares a kernel: its struct from a field list, which holds BF_WHERE, and its
// functions on CPUs and GPUs.
#pragma once
#include "common/dropout.h"
#include "common/dtype.h"
#include "common/gpu.h"
#include "common/variants.h"

// How and where a kernel runs: fields of each list.
#define BF_WHERE(FIELD) \
  FIELD(DType, dtype)   \
  FIELD(int, threads)   \
  FIELD(Gpu, gpu)

// What several operations are told. A product x weight^T:
#define BF_PRODUCT(FIELD)                                    \
  FIELD(const void*, x) /* [rows, k], row stride x_stride */ \
  FIELD(long, rows)                                          \
  FIELD(long, n)                                             \
  FIELD(long, k)                                             \
  FIELD(long, x_stride)

// x weight^T + bias with one weight, and its gradients:
#define BF_LINEAR_FWD(FIELD)                                                      \
  BF_PRODUCT(FIELD)                                                               \
  FIELD(const void*, weight) /* [n, k], row stride weight_stride; 0: prepacked */ \
  FIELD(const void*, bias)   /* [n] */                                            \
  FIELD(long, weight_stride)                                                      \
  FIELD(DType, weight_dtype) /* dtype; CPU also fp32, which counts as rounded to dtype */
#define BF_LINEAR_BWD(FIELD)                                        \
  BF_PRODUCT(FIELD)                                                 \
  FIELD(const void*, weight) /* [n, k], row stride weight_stride */ \
  FIELD(long, weight_stride)                                        \
  FIELD(void*, dx)      /* [rows, k] or null */                     \
  FIELD(void*, dweight) /* [n, k] or null */                        \
  FIELD(void*, dbias)   /* [n] or null */

// LN of the rows that come out, and its gradients:
#define BF_LAYERNORM_FWD(FIELD)            \
  FIELD(const void*, ln_weight)            \
  FIELD(const void*, ln_bias) /* [n] */    \
  FIELD(float, eps)                        \
  FIELD(void*, out)   /* [rows, n] */      \
  FIELD(float*, mean) /* [rows] or null */ \
  FIELD(float*, rstd) /* [rows] or null */
#define BF_LAYERNORM_BWD(FIELD)             \
  FIELD(const void*, dout)  /* [rows, n] */ \
  FIELD(const float*, mean) /* [rows] */    \
  FIELD(const float*, rstd) /* [rows] */    \
  FIELD(const void*, ln_weight)             \
  FIELD(void*, dln_weight)                  \
  FIELD(void*, dln_bias) /* [n] */

// Dropout of hidden states:
#define BF_TOKEN_DROPOUT(FIELD)                                                        \
  FIELD(const std::int32_t*, cu_seqlens) /* [sequences + 1]; read only with dropout */ \
  FIELD(long, sequences)                                                               \
  FIELD(Dropout, dropout)

#define BF_KERNEL(NAME, STRUCT, FIELDS)    \
  BF_STRUCT(STRUCT, FIELDS)                \
  BF_DECLARE_CPU(void NAME(const STRUCT&)) \
  BF_DECLARE_CUDA(NAME, STRUCT)
