// Arithmetic, one thread an element: bits, integers, halves, conversions and IEEE divisions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <utility>

__device__ int index() { return blockIdx.x * blockDim.x + threadIdx.x; }

template <int LUT>
__device__ void lop3_by(unsigned a, unsigned b, unsigned c, unsigned* out) {
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(out[LUT]) : "r"(a), "r"(b), "r"(c), "n"(LUT));
}

template <int... LUT>
__device__ void lop3_all(const unsigned* x, unsigned* out, std::integer_sequence<int, LUT...>) {
  (lop3_by<LUT>(x[0], x[1], x[2], out), ...);
}

// out [256]: every truth table of lop3 over x [3].
extern "C" __global__ void lop3(const unsigned* x, unsigned* out) {
  lop3_all(x, out, std::make_integer_sequence<int, 256>());
}

// out [65536]: prmt with every selector over bytes 0..3 of x[0] and 4..7 of x[1]; then [6][4] of
// its modes.
extern "C" __global__ void prmt(const unsigned* x, unsigned* out) {
  const unsigned a = x[0], b = x[1], i = index();
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out[i]) : "r"(a), "r"(b), "r"(i));
  unsigned* modes = out + 65536;
  if (i < 4) {
    asm("prmt.b32.f4e %0, %1, %2, %3;" : "=r"(modes[0 + i]) : "r"(a), "r"(b), "r"(i));
    asm("prmt.b32.b4e %0, %1, %2, %3;" : "=r"(modes[4 + i]) : "r"(a), "r"(b), "r"(i));
    asm("prmt.b32.rc8 %0, %1, %2, %3;" : "=r"(modes[8 + i]) : "r"(a), "r"(b), "r"(i));
    asm("prmt.b32.ecl %0, %1, %2, %3;" : "=r"(modes[12 + i]) : "r"(a), "r"(b), "r"(i));
    asm("prmt.b32.ecr %0, %1, %2, %3;" : "=r"(modes[16 + i]) : "r"(a), "r"(b), "r"(i));
    asm("prmt.b32.rc16 %0, %1, %2, %3;" : "=r"(modes[20 + i]) : "r"(a), "r"(b), "r"(i));
  }
}

// out [14][n] of two words each.
extern "C" __global__ void integers(const int* x, const int* y, int* out, int n) {
  const int i = index(), a = x[i], b = y[i];
  const long long wide = (long long)a * b;
  int* to = out + i;
  to[0 * n] = __mulhi(a, b);
  to[1 * n] = (int)__umulhi(a, b);
  to[2 * n] = (int)(wide >> 13);
  to[3 * n] = (int)__funnelshift_l(a, b, b);
  to[4 * n] = (int)__funnelshift_r(a, b, b & 31);
  to[5 * n] = __clz(a) * 100 + __popc(b);
  to[6 * n] = (int)__brev(a);
  to[7 * n] = (int)(wide % (b | 1));
  to[8 * n] = a / (b | 1);
  to[9 * n] = (unsigned)a / ((unsigned)b | 1);
  asm("bfe.s32 %0, %1, %2, 11;" : "=r"(to[10 * n]) : "r"(a), "r"(b & 31));
  asm("bfi.b32 %0, %1, %2, %3, 9;" : "=r"(to[11 * n]) : "r"(a), "r"(b), "r"(a & 15));
  asm("sad.s32 %0, %1, %2, %3;" : "=r"(to[12 * n]) : "r"(a & 65535), "r"(b & 65535), "r"(b));
  asm("add.sat.s32 %0, %1, %2;" : "=r"(to[13 * n]) : "r"(a), "r"(b));
}

// float out [9][n]; the first five are rounded correctly, the others are approximations.
extern "C" __global__ void quotients(const float* x, const float* y, float* out, int n) {
  const int i = index();
  const float a = x[i], b = y[i];
  float* to = out + i;
  to[0 * n] = __fdiv_rn(a, b);
  to[1 * n] = __fsqrt_rn(a);
  to[2 * n] = __frcp_rn(b);
  to[3 * n] = __fmaf_rn(a, b, -a);
  to[4 * n] = (float)__fma_rn((double)a, (double)b, 1.0 / 3);
  asm("div.full.f32 %0, %1, %2;" : "=f"(to[5 * n]) : "f"(a), "f"(b));
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(to[6 * n]) : "f"(a));
  asm("ex2.approx.f32 %0, %1;" : "=f"(to[7 * n]) : "f"(b));
  asm("lg2.approx.f32 %0, %1;" : "=f"(to[8 * n]) : "f"(a));
}

// out [8][n] of one 16-bit format: sum, product, a b + c rounded once, max and min that drop NaN,
// max.NaN, relu, |a|.
extern "C" __global__ void half_arithmetic(const __half2* a, const __half2* b, const __half2* c,
                                           __half2* out, int n) {
  const int i = index();
  __half2* to = out + i;
  to[0 * n] = __hadd2_rn(a[i], b[i]);
  to[1 * n] = __hmul2_rn(a[i], b[i]);
  to[2 * n] = __hfma2(a[i], b[i], c[i]);
  to[3 * n] = __hmax2(a[i], b[i]);
  to[4 * n] = __hmin2(a[i], b[i]);
  to[5 * n] = __hmax2_nan(a[i], b[i]);
  to[6 * n] = __hfma2_relu(a[i], b[i], c[i]);
  to[7 * n] = __habs2(a[i]);
}

extern "C" __global__ void bf16_arithmetic(const __nv_bfloat162* a, const __nv_bfloat162* b,
                                           const __nv_bfloat162* c, __nv_bfloat162* out, int n) {
  const int i = index();
  __nv_bfloat162* to = out + i;
  to[0 * n] = __hadd2_rn(a[i], b[i]);
  to[1 * n] = __hmul2_rn(a[i], b[i]);
  to[2 * n] = __hfma2(a[i], b[i], c[i]);
  to[3 * n] = __hmax2(a[i], b[i]);
  to[4 * n] = __hmin2(a[i], b[i]);
  to[5 * n] = __hmax2_nan(a[i], b[i]);
  to[6 * n] = __hfma2_relu(a[i], b[i], c[i]);
  to[7 * n] = __habs2(a[i]);
}

// Every 16-bit pattern as a float, read as half and as bfloat16.
extern "C" __global__ void widen(float* from_half, float* from_bf16) {
  const int i = index();
  from_half[i] = __half2float(__ushort_as_half(i));
  from_bf16[i] = __bfloat162float(__ushort_as_bfloat16(i));
}

// out [4][n]: to half and bfloat16, to nearest and towards zero.
extern "C" __global__ void narrow(const float* x, unsigned short* out, int n) {
  const int i = index();
  out[0 * n + i] = __half_as_ushort(__float2half_rn(x[i]));
  out[1 * n + i] = __half_as_ushort(__float2half_rz(x[i]));
  out[2 * n + i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
  out[3 * n + i] = __bfloat16_as_ushort(__float2bfloat16_rz(x[i]));
}

// out [8][n] of 64 bits: floats to integers in each rounding, which saturate and take NaN for 0;
// integers to floats.
extern "C" __global__ void convert(const float* x, const long long* y, long long* out, int n) {
  const int i = index();
  long long* to = out + i;
  to[0 * n] = __float2int_rn(x[i]);
  to[1 * n] = __float2int_rz(x[i]);
  to[2 * n] = __float2int_rd(x[i]);
  to[3 * n] = __float2uint_ru(x[i]);
  to[4 * n] = __float2ll_rn(x[i]);
  to[5 * n] = __float_as_int(__ll2float_rn(y[i]));
  to[6 * n] = __double_as_longlong(__ll2double_rn(y[i]));
  asm("cvt.sat.s8.s64 %0, %1;" : "=l"(to[7 * n]) : "l"(y[i]));
}
