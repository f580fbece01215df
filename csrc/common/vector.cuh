// Element types on the device, and 16-byte groups of them converted to and from fp32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/dtype.h"

// Runs the statements with T bound to the device type of DTYPE.
#define BF_DISPATCH_CUDA(DTYPE, T, ...) \
  switch (DTYPE) {                      \
    case ::bf::DType::kFloat32: {       \
      using T = float;                  \
      __VA_ARGS__;                      \
      break;                            \
    }                                   \
    case ::bf::DType::kBFloat16: {      \
      using T = __nv_bfloat16;          \
      __VA_ARGS__;                      \
      break;                            \
    }                                   \
    case ::bf::DType::kFloat16: {       \
      using T = __half;                 \
      __VA_ARGS__;                      \
      break;                            \
    }                                   \
  }

// The same with R bound to the device type of LN_DTYPE, which is DTYPE or float32.
#define BF_DISPATCH_CUDA_LN(DTYPE, T, LN_DTYPE, R, ...) \
  BF_DISPATCH_CUDA(                                     \
      DTYPE, T,                                         \
      if (LN_DTYPE == ::bf::DType::kFloat32) {          \
        using R = float;                                \
        __VA_ARGS__;                                    \
      } else {                                          \
        using R = T;                                    \
        __VA_ARGS__;                                    \
      })

namespace bf {
namespace cuda {
namespace {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// The nearest value of the type; NaN stays NaN.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

template <class T>
constexpr int kGroup = 16 / sizeof(T);  // elements of a 16-byte access

template <class T>
struct alignas(16) Group {
  T values[kGroup<T>];
};

// `width` elements (of one 16-byte group or several) from p into v; `vector`: p is 16-byte aligned
// and all lie inside. Otherwise `count` of them are read one by one (0 or less: none) and the rest
// are zeros.
template <class T, int width>
__device__ __forceinline__ void load_group(float (&v)[width], const T* p, long count, bool vector) {
  static_assert(width % kGroup<T> == 0, "whole groups");
  if (vector) {
#pragma unroll
    for (int first = 0; first < width; first += kGroup<T>) {
      const Group<T> group = *reinterpret_cast<const Group<T>*>(p + first);
#pragma unroll
      for (int i = 0; i < kGroup<T>; ++i) v[first + i] = to_float(group.values[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) v[i] = i < count ? to_float(p[i]) : 0.0f;
  }
}
template <class T, int width>
__device__ __forceinline__ void store_group(T* p, const float (&v)[width], long count,
                                            bool vector) {
  static_assert(width % kGroup<T> == 0, "whole groups");
  if (vector) {
#pragma unroll
    for (int first = 0; first < width; first += kGroup<T>) {
      Group<T> group;
#pragma unroll
      for (int i = 0; i < kGroup<T>; ++i) group.values[i] = from_float<T>(v[first + i]);
      *reinterpret_cast<Group<T>*>(p + first) = group;
    }
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i)
      if (i < count) p[i] = from_float<T>(v[i]);
  }
}

// Whether rows of `row_bytes` from p on, and all their 16-byte groups, may be accessed as such.
inline bool is_vector(const void* p, long row_bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && row_bytes % 16 == 0;
}

}  // namespace
}  // namespace cuda
}  // namespace bf
