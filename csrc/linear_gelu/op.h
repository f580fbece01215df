// linear_gelu: out = gelu(x weight^T + bias), erf form.
#pragma once
#include "common/dtype.h"
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
};

BF_DECLARE_CPU(linear_gelu_fwd, LinearGeluFwd)

}  // namespace bf
