// Element types on the device, and 16-byte groups of them converted to and from fp32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/dtype.h"

namespace bf::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

namespace {

template <class T>
__device__ __forceinline__ float to_float(T x) {
  return static_cast<float>(x);
}
// The nearest value of the type; NaN stays NaN.
template <class T>
__device__ __forceinline__ T from_float(float x) {
  return static_cast<T>(x);
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
// The same added to v.
template <class T, int width>
__device__ __forceinline__ void add_group(float (&v)[width], const T* p, long count, bool vector) {
  float more[width];
  load_group(more, p, count, vector);
#pragma unroll
  for (int i = 0; i < width; ++i) v[i] += more[i];
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
}  // namespace bf::cuda
