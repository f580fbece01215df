// cvt between integers and floats. What the assembler cannot find here it composes: it narrows,
// clamps, flushes or saturates in a step of its own.
#include <cfenv>
#include <cmath>
#include <limits>

#include "half.h"
#include "machine.h"

namespace ptx {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;

// PTX saturates; NaN becomes 0, or where 64 bits take part the top bit alone.
template <class I, class F>
I to_integer(F x) {
  constexpr F low = F(std::numeric_limits<I>::min());
  constexpr bool wide = sizeof(F) == 8 || sizeof(I) == 8;
  constexpr I nan = wide ? I(uint64_t(1) << (8 * sizeof(I) - 1)) : I(0);
  const F beyond = std::ldexp(F(1), std::numeric_limits<I>::digits);
  return x != x        ? nan
         : x < low     ? std::numeric_limits<I>::min()
         : x >= beyond ? std::numeric_limits<I>::max()
                       : I(x);
}

template <class D, class S>
void enter_rounded(const std::string& types) {
  constexpr auto convert = [](S a) { return D(a); };
  add<convert>("cvt.rn" + types);
  directed<convert>("cvt", types);
}

template <class F>
void enter_float_type(const std::string& type) {
  add<[](F a) { return std::nearbyint(a); }>("round.rni" + type);
  add<[](F a) { return std::trunc(a); }>("round.rzi" + type);
  add<[](F a) { return std::floor(a); }>("round.rmi" + type);
  add<[](F a) { return std::ceil(a); }>("round.rpi" + type);
  add<to_integer<int32_t, F>>("cvt.s32" + type);
  add<to_integer<uint32_t, F>>("cvt.u32" + type);
  add<to_integer<int64_t, F>>("cvt.s64" + type);
  add<to_integer<uint64_t, F>>("cvt.u64" + type);
  enter_rounded<F, int32_t>(type + ".s32");
  enter_rounded<F, uint32_t>(type + ".u32");
  enter_rounded<F, int64_t>(type + ".s64");
  enter_rounded<F, uint64_t>(type + ".u64");
}

template <class H>
void enter_half_type(const std::string& type) {
  add<H::value>("cvt.f32" + type);
  add<H::round>("cvt.rn" + type + ".f32");
  add<H::truncate>("cvt.rz" + type + ".f32");
  add<[](double a) { return H::round(to_odd(a, 0)); }>("cvt.rn" + type + ".f64");
  add<[](float a, float b) { return u32(H::round(a)) << 16 | H::round(b); }>("cvt.rn" + type +
                                                                             "x2.f32");
  add<[](float a, float b) { return u32(H::truncate(a)) << 16 | H::truncate(b); }>("cvt.rz" + type +
                                                                                   "x2.f32");
}

}  // namespace

void enter_convert() {
  enter_float_type<float>(".f32");
  enter_float_type<double>(".f64");
  enter_half_type<Half>(".f16");
  enter_half_type<Brain>(".bf16");
  enter_rounded<float, double>(".f32.f64");
  add<[](float a) { return double(a); }>("cvt.f64.f32");
  // tf32 keeps 10 bits of the mantissa; ties go away from zero.
  add<[](float a) {
    const u32 u = bits<u32>(a);
    return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & 0xffffe000u;
  }>("cvt.rna.tf32.f32");
}

}  // namespace ptx
