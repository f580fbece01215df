// How an op.h declares a kernel: its struct from a field list, which ends with BF_WHERE, and its
// functions on CPUs and GPUs.
#pragma once
#include "common/dropout.h"
#include "common/dtype.h"
#include "common/gpu.h"
#include "common/variants.h"

// How and where a kernel runs: the last fields of each list.
#define BF_WHERE(FIELD) \
  FIELD(DType, dtype)   \
  FIELD(int, threads)   \
  FIELD(Gpu, gpu)

// Of the operations with a product: x [rows, k], weight [n, k].
#define BF_LINEAR_SIZES(FIELD) \
  FIELD(long, rows)            \
  FIELD(long, n)               \
  FIELD(long, k)               \
  FIELD(long, x_stride)

#define BF_KERNEL(NAME, STRUCT, FIELDS) \
  BF_STRUCT(STRUCT, FIELDS)             \
  BF_DECLARE_CPU(NAME, STRUCT)          \
  BF_DECLARE_CUDA(NAME, STRUCT)
