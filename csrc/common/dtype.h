// Element types of the kernels. Codes are the ones extension.py passes.
#pragma once
#include <cstdint>

namespace bf {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

inline constexpr int dtype_bytes(DType t) { return t == DType::kFloat32 ? 4 : 2; }

}  // namespace bf

// Runs the statements with T bound to the element type of DTYPE: float, bf16 or f16 as the
// namespace knows them, which for bf::cuda are the device's.
#define BF_DISPATCH_DTYPE(DTYPE, T, ...)           \
  switch (DTYPE) {                                 \
    BF_DTYPE_CASE(kFloat32, T, float, __VA_ARGS__) \
    BF_DTYPE_CASE(kBFloat16, T, bf16, __VA_ARGS__) \
    BF_DTYPE_CASE(kFloat16, T, f16, __VA_ARGS__)   \
  }
#define BF_DTYPE_CASE(DTYPE, T, TYPE, ...) \
  case ::bf::DType::DTYPE: {               \
    using T = TYPE;                        \
    __VA_ARGS__;                           \
    break;                                 \
  }

// The same with R bound to the element type of LN_DTYPE, which is DTYPE or float32.
#define BF_DISPATCH_LN_DTYPES(DTYPE, T, LN_DTYPE, R, ...) \
  BF_DISPATCH_DTYPE(                                      \
      DTYPE, T,                                           \
      if (LN_DTYPE == ::bf::DType::kFloat32) {            \
        using R = float;                                  \
        __VA_ARGS__;                                      \
      } else {                                            \
        using R = T;                                      \
        __VA_ARGS__;                                      \
      })
