// Floating-point arithmetic, comparisons and the approximate functions. Compiled with
// -ffp-contract=off: a product and a sum are two roundings unless PTX says fma. The approximate
// functions are computed correctly to about 1 ulp.
#include <cfenv>
#include <cmath>
#include <limits>

#include "half.h"
#include "machine.h"

namespace ptx {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;

inline float ftz(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float nan32() { return bits<float>(0x7fffffffu); }

template <class T>
T fused(T a, T b, T c);
template <>
inline float fused(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
template <>
inline double fused(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}

// min and max drop a NaN unless `.NaN` asks for it; -0 < +0.
template <class T>
T lesser(T a, T b) {
  const T m = a < b || (a == b && std::signbit(a)) ? a : b;
  return a != a ? b : b != b ? a : m;
}
template <class T>
T greater(T a, T b) {
  const T m = a > b || (a == b && !std::signbit(a)) ? a : b;
  return a != a ? b : b != b ? a : m;
}

template <auto F>
void flushing(const std::string& opcode) {  // both opcode.f32 and opcode.ftz.f32
  add<F>(opcode + ".f32");
  add<[](float a) { return ftz(F(ftz(a))); }>(opcode + ".ftz.f32");
}

template <class T>
void enter_exact(const std::string& type) {
  add<[](T a, T b) { return a + b; }>("add" + type);
  add<[](T a, T b) { return a - b; }>("sub" + type);
  add<[](T a, T b) { return a * b; }>("mul" + type);
  add<fused<T>>("fma" + type);
  add<[](T a, T b) { return a / b; }>("div" + type);
  add<[](T a) { return T(1) / a; }>("rcp" + type);
  add<[](T a) { return std::sqrt(a); }>("sqrt" + type);
  add<[](T a) { return T(1) / std::sqrt(a); }>("rsqrt" + type);
  add<lesser<T>>("min" + type);
  add<greater<T>>("max" + type);
  add<[](T a) { return -a; }>("neg" + type);
  add<[](T a) { return std::fabs(a); }>("abs" + type);
  add<[](T a, T b) { return std::copysign(b, a); }>("copysign" + type);
  add<[](T a) { return std::isfinite(a); }>("testp.finite" + type);
  add<[](T a) { return std::isinf(a); }>("testp.infinite" + type);
  add<[](T a) { return a == a; }>("testp.number" + type);
  add<[](T a) { return a != a; }>("testp.notanumber" + type);
  constexpr T least = std::numeric_limits<T>::min();
  add<[](T a) { return std::isfinite(a) && std::fabs(a) >= least; }>("testp.normal" + type);
  add<[](T a) { return a != 0 && std::fabs(a) < least; }>("testp.subnormal" + type);
  add<[](T a, T b) { return a == b; }>("setp.eq" + type);
  add<[](T a, T b) { return (a < b) || (b < a); }>("setp.ne" + type);
  add<[](T a, T b) { return a < b; }>("setp.lt" + type);
  add<[](T a, T b) { return a <= b; }>("setp.le" + type);
  add<[](T a, T b) { return !((a < b) || (b < a)); }>("setp.equ" + type);
  add<[](T a, T b) { return a != b; }>("setp.neu" + type);
  add<[](T a, T b) { return !(a >= b); }>("setp.ltu" + type);
  add<[](T a, T b) { return !(b < a); }>("setp.leu" + type);
  add<[](T a, T b) { return a == a && b == b; }>("setp.num" + type);
  add<[](T a, T b) { return a != a || b != b; }>("setp.nan" + type);
  directed<[](T a, T b) { return a + b; }>("add", type);
  directed<[](T a, T b) { return a - b; }>("sub", type);
  directed<[](T a, T b) { return a * b; }>("mul", type);
  directed<[](T a, T b) { return a / b; }>("div", type);
  directed<[](T a) { return T(1) / a; }>("rcp", type);
  directed<[](T a) { return std::sqrt(a); }>("sqrt", type);
  directed<fused<T>>("fma", type);
}

void enter_flushing() {
  add<[](float a) { return ftz(a); }>("flush.f32");
  add<[](float a, float b) { return ftz(ftz(a) + ftz(b)); }>("add.ftz.f32");
  add<[](float a, float b) { return ftz(ftz(a) - ftz(b)); }>("sub.ftz.f32");
  add<[](float a, float b) { return ftz(ftz(a) * ftz(b)); }>("mul.ftz.f32");
  add<[](float a, float b, float c) { return ftz(fused(ftz(a), ftz(b), ftz(c))); }>("fma.ftz.f32");
  add<[](float a, float b) { return ftz(ftz(a) / ftz(b)); }>("div.ftz.f32");
  add<[](float a) { return ftz(1 / ftz(a)); }>("rcp.ftz.f32");
  add<[](float a) { return std::sqrt(ftz(a)); }>("sqrt.ftz.f32");
  add<[](float a) { return 1 / std::sqrt(ftz(a)); }>("rsqrt.ftz.f32");
  add<[](float a, float b) { return lesser(ftz(a), ftz(b)); }>("min.ftz.f32");
  add<[](float a, float b) { return greater(ftz(a), ftz(b)); }>("max.ftz.f32");
  add<[](float a) { return -ftz(a); }>("neg.ftz.f32");
  add<[](float a) { return std::fabs(ftz(a)); }>("abs.ftz.f32");
  add<[](float a) { return a != a || a <= 0 ? 0.0f : a >= 1 ? 1.0f : a; }>("sat.f32");
  add<[](float a) { return a != a ? nan32() : 0 < a ? a : 0.0f; }>("relu.f32");
  add<[](float a, float b) { return a != a || b != b ? nan32() : lesser(a, b); }>("min.NaN.f32");
  add<[](float a, float b) { return a != a || b != b ? nan32() : greater(a, b); }>("max.NaN.f32");
  add<[](float a, float b) { return a != a || b != b ? nan32() : lesser(ftz(a), ftz(b)); }>(
      "min.ftz.NaN.f32");
  add<[](float a, float b) { return a != a || b != b ? nan32() : greater(ftz(a), ftz(b)); }>(
      "max.ftz.NaN.f32");
}

void enter_approximate() {
  flushing<[](float a) { return std::exp2(a); }>("ex2");
  flushing<[](float a) { return std::log2(a); }>("lg2");
  flushing<[](float a) { return std::sin(a); }>("sin");
  flushing<[](float a) { return std::cos(a); }>("cos");
  flushing<[](float a) { return std::tanh(a); }>("tanh");
}

// One 16-bit value in a register of 16 bits, or two in one of 32: F on floats, then one rounding.
template <class H, auto F, class... S>
void one_or_two(const std::string& opcode, const std::string& type) {
  add<[](std::conditional_t<true, u16, S>... s) { return H::round(F(H::value(s)...)); }>(opcode +
                                                                                         type);
  add<[](std::conditional_t<true, u32, S>... s) {
    const u32 high = H::round(F(H::value(u16(s >> 16))...));
    return high << 16 | H::round(F(H::value(u16(s))...));
  }>(opcode + type + "x2");
}
template <class H, auto F>
void halves(const std::string& opcode, const std::string& type) {
  [&]<class R, class C, class... S>(R (C::*)(S...) const) {
    one_or_two<H, F, S...>(opcode, type);
  }(&decltype(F)::operator());
}

bool compared(int op, float a, float b) {
  const bool nan = a != a || b != b;
  switch (op) {
    case 0:
      return a == b;
    case 1:
      return a < b || a > b;
    case 2:
      return a < b;
    case 3:
      return a <= b;
    case 4:
      return a > b;
    case 5:
      return a >= b;
    case 6:
      return nan || a == b;
    case 7:
      return a != b;
    case 8:
      return nan || a < b;
    case 9:
      return nan || a <= b;
    case 10:
      return nan || a > b;
    case 11:
      return nan || a >= b;
    case 12:
      return !nan;
    default:
      return nan;
  }
}

// set.cmp.f16x2.f16x2: imm the comparison; target the bits of "true" for one half.
template <class H>
void set_halves(Warp& warp, const Ins& ins, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const u32 a = warp.row<u32>(ins, 1)[lane], b = warp.row<u32>(ins, 2)[lane];
    u32 out = 0;
    for (int shift = 0; shift < 32; shift += 16)
      if (compared(int(ins.imm), H::value(u16(a >> shift)), H::value(u16(b >> shift))))
        out |= u32(ins.target) << shift;
    warp.row<u32>(ins, 0)[lane] = out;
  });
}
// setp.cmp.f16x2 p|q
template <class H>
void compare_halves(Warp& warp, const Ins& ins, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const u32 a = warp.row<u32>(ins, 2)[lane], b = warp.row<u32>(ins, 3)[lane];
    for (int k = 0; k < 2; ++k) {
      const bool yes =
          compared(int(ins.imm), H::value(u16(a >> 16 * k)), H::value(u16(b >> 16 * k)));
      u32* out = warp.row<u32>(ins, k);
      *out = (*out & ~(1u << lane)) | u32(yes) << lane;
    }
  });
}

template <class H>
void enter_halves(const std::string& type) {
  halves<H, [](float a, float b) { return a + b; }>("add", type);
  halves<H, [](float a, float b) { return a - b; }>("sub", type);
  halves<H, [](float a, float b) { return a * b; }>("mul", type);
  halves<H, [](float a, float b, float c) { return fma_to_odd(a, b, c); }>("fma", type);
  halves<H, [](float a, float b, float c) {
    const float x = fma_to_odd(a, b, c);
    return 0 < x || x != x ? x : 0.0f;
  }>("fma.relu", type);
  halves<H, [](float a, float b) { return lesser(a, b); }>("min", type);
  halves<H, [](float a, float b) { return greater(a, b); }>("max", type);
  halves<H, [](float a, float b) { return a != a || b != b ? nan32() : lesser(a, b); }>("min.NaN",
                                                                                        type);
  halves<H, [](float a, float b) { return a != a || b != b ? nan32() : greater(a, b); }>("max.NaN",
                                                                                         type);
  halves<H, [](float a) { return std::exp2(a); }>("ex2", type);
  halves<H, [](float a) { return std::tanh(a); }>("tanh", type);
  add<[](u16 a) { return u16(a ^ 0x8000); }>("neg" + type);
  add<[](u32 a) { return a ^ 0x80008000u; }>("neg" + type + "x2");
  add<[](u16 a) { return u16(a & 0x7fff); }>("abs" + type);
  add<[](u32 a) { return a & 0x7fff7fffu; }>("abs" + type + "x2");
  enter("set" + type + "x2", "4=4,4", set_halves<H>);
  enter("setp" + type + "x2", "p,p=4,4", compare_halves<H>);
}

}  // namespace

void enter_float() {
  enter_exact<float>(".f32");
  enter_exact<double>(".f64");
  enter_flushing();
  enter_approximate();
  enter_halves<Half>(".f16");
  enter_halves<Brain>(".bf16");
}

}  // namespace ptx
