// Warp-level matrix instructions. Lane l has g = l / 4 and t = l % 4. Accumulator c of m16n8: c[0],
// c[1] are row g, columns 2t, 2t + 1; c[2], c[3] the same of row g + 8. Left operand of k16, two
// 16-bit values a register: a[0] row g, k 2t..2t+1; a[1] row g + 8; a[2], a[3] the same at k + 8.
// Right operand: b[0] column g, k 2t..2t+1; b[1] k + 8. tf32 (k8): one value a register, k = t and,
// four on, k = t + 4.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/async.cuh"

namespace bf::cuda {
namespace {

// Four 8x8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8, and
// receives of matrix i the values 2t, 2t + 1 of row g in r[i]; transposed: of column g.
#define BF_LDMATRIX(NAME, FORM)                                                           \
  __device__ __forceinline__ void NAME(unsigned (&r)[4], unsigned address) {              \
    asm volatile("ldmatrix.sync.aligned.m8n8." FORM ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                         \
                 : "r"(address)                                                           \
                 : "memory");                                                             \
  }
BF_LDMATRIX(ldmatrix_x4, "x4")
BF_LDMATRIX(ldmatrix_x4_trans, "x4.trans")

// c += a b; the type of the operands is that of the last argument.
#define BF_MMA(TYPE, FORM)                                                                \
  __device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, \
                                      unsigned b1, TYPE) {                                \
    asm("mma.sync.aligned." FORM                                                          \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                  \
  }
BF_MMA(__half, "m16n8k16.row.col.f32.f16.f16")
BF_MMA(__nv_bfloat16, "m16n8k16.row.col.f32.bf16.bf16")
BF_MMA(float, "m16n8k8.row.col.f32.tf32.tf32")  // operands rounded to tf32

// The nearest tf32 (ties away from zero); the tensor cores by themselves would cut the bits off.
__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
// Rounds a fragment that was read as it lies: fp32 to tf32, the others are ready.
template <class T>
__device__ __forceinline__ void round_fragment(unsigned (&r)[4]) {
  if constexpr (sizeof(T) == 4)
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = to_tf32(__uint_as_float(r[i]));
}

}  // namespace
}  // namespace bf::cuda
