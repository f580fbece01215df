// linear_gelu: out = gelu(x weight^T + bias), erf form.
#pragma once
#include "common/dtype.h"
#include "common/gpu.h"
#include "common/variants.h"

namespace bf {

struct LinearGeluFwd {
  const void* x;       // [rows, k], row stride x_stride
  const void* packed;  // weight [n, k], packed
  const void* bias;    // [n]
  void* out;           // [rows, n]
  void* pre;           // [rows, n] or null: x weight^T + bias, for backward
  long rows, n, k, x_stride;
  DType dtype;
  int threads;
  Gpu gpu = {};
};

struct LinearGeluBwd {
  const void* dout;    // [rows, n]
  const void* x;       // [rows, k], row stride x_stride
  const void* weight;  // [n, k], row stride weight_stride, as it stands (not packed)
  const void* pre;     // [rows, n]
  void* dx;            // [rows, k] or null
  void* dweight;       // [n, k] or null
  void* dbias;         // [n] or null
  long rows, n, k, x_stride, weight_stride;
  DType dtype;
  int threads;
  Gpu gpu = {};
};

BF_DECLARE_CPU(linear_gelu_fwd, LinearGeluFwd)
BF_DECLARE_CUDA(linear_gelu_fwd, LinearGeluFwd)
BF_DECLARE_CPU(linear_gelu_bwd, LinearGeluBwd)
BF_DECLARE_CUDA(linear_gelu_bwd, LinearGeluBwd)

}  // namespace bf
