// The instruction sets that every kernel unit is compiled for, narrow to wide; a build may name a
// part of them. avx2_wide is the AVX-512 tile at AVX2 width, for tests; avx512_dot has the dot
// products of int8 (VNNI) and of bfloat16 too, neon_dot those of int8 on arm64.
#pragma once
#include <cstddef>

#if !defined(BF_FOR_EACH_ISA) && defined(__x86_64__)
#define BF_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx2_wide) X(avx512) X(avx512_dot)
#elif !defined(BF_FOR_EACH_ISA)
#define BF_FOR_EACH_ISA(X) X(baseline) X(neon_dot)
#endif

// A function of each, whether it is built or not.
#define BF_DECLARE_CPU(FUNCTION)      \
  BF_DECLARE_IN(baseline, FUNCTION)   \
  BF_DECLARE_IN(avx2, FUNCTION)       \
  BF_DECLARE_IN(avx2_wide, FUNCTION)  \
  BF_DECLARE_IN(avx512, FUNCTION)     \
  BF_DECLARE_IN(avx512_dot, FUNCTION) \
  BF_DECLARE_IN(neon_dot, FUNCTION)
#define BF_DECLARE_IN(ISA, FUNCTION) \
  namespace ISA {                    \
  FUNCTION;                          \
  }

// The CUDA kernels: the launch, and how many bytes of workspace it needs (asked for first).
#define BF_DECLARE_CUDA(NAME, PARAMS)          \
  namespace cuda {                             \
  void NAME(const PARAMS&);                    \
  std::size_t NAME##_workspace(const PARAMS&); \
  }
