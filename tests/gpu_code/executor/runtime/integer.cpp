// Integer, bit and predicate instructions, comparisons of integers, selection and moves.
#include <algorithm>
#include <limits>

#include "machine.h"

namespace ptx {
namespace {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
__extension__ using u128 = unsigned __int128;
__extension__ using s128 = __int128;

template <class T>
struct Twice;
template <>
struct Twice<u16> {
  using type = u32;
};
template <>
struct Twice<s16> {
  using type = s32;
};
template <>
struct Twice<u32> {
  using type = u64;
};
template <>
struct Twice<s32> {
  using type = s64;
};
template <>
struct Twice<u64> {
  using type = u128;
};
template <>
struct Twice<s64> {
  using type = s128;
};

template <class T>
std::string named(const char* opcode, char letter) {
  return std::string(opcode) + "." + letter + std::to_string(8 * sizeof(T));
}

// Instructions that read bits the same way whatever the sign. Products of 16 bits would overflow
// int: they run as u32.
template <class T>
void enter_bits() {
  auto n = [](const char* opcode) { return named<T>(opcode, 'b'); };
  constexpr int kWidth = 8 * sizeof(T);
  add<[](T a, T b) { return T(a + b); }>(n("add"));
  add<[](T a, T b) { return T(a - b); }>(n("sub"));
  add<[](T a, T b) { return T(u64(a) * b); }>(n("mul.lo"));
  add<[](T a, T b, T c) { return T(u64(a) * b + c); }>(n("mad.lo"));
  add<[](T a, T b) { return T(a & b); }>(n("and"));
  add<[](T a, T b) { return T(a | b); }>(n("or"));
  add<[](T a, T b) { return T(a ^ b); }>(n("xor"));
  add<[](T a) { return T(~a); }>(n("not"));
  add<[](T a) { return T(a == 0); }>(n("cnot"));
  add<[](T a) { return T(T(0) - a); }>(n("neg"));
  add<[](T a) { return a; }>(n("mov"));
  add<[](T a, u32 b) { return b < kWidth ? T(a << b) : T(0); }>(n("shl"));
  add<[](T a, T b, bool p) { return p ? a : b; }>(n("selp"));
  add<[](T a, T b, s32 c) { return c >= 0 ? a : b; }>(n("slct") + ".s32");
  add<[](T a, T b, float c) { return c >= 0 ? a : b; }>(n("slct") + ".f32");
  add<[](T a, T b) { return a == b; }>(n("setp.eq"));
  add<[](T a, T b) { return a != b; }>(n("setp.ne"));
}

template <class T>
void enter_signed_or_not(char letter) {
  auto n = [letter](const char* opcode) { return named<T>(opcode, letter); };
  using W = typename Twice<T>::type;
  constexpr int kWidth = 8 * sizeof(T);
  add<[](T a, T b) { return T(W(a) * b >> kWidth); }>(n("mul.hi"));
  add<[](T a, T b, T c) { return T((W(a) * b >> kWidth) + c); }>(n("mad.hi"));
  add<[](T a, T b) {
    return b == 0 ? T(-1) : b == T(-1) && T(-1) < 0 ? T(u64(0) - u64(a)) : T(a / b);
  }>(n("div"));
  add<[](T a, T b) { return b == 0 ? a : b == T(-1) && T(-1) < 0 ? T(0) : T(a % b); }>(n("rem"));
  add<[](T a, T b) { return std::min(a, b); }>(n("min"));
  add<[](T a, T b) { return std::max(a, b); }>(n("max"));
  add<[](T a, T b, T c) { return T(c + (a > b ? u64(a) - u64(b) : u64(b) - u64(a))); }>(n("sad"));
  add<[](T a, u32 b) { return b < kWidth ? T(a >> b) : a < 0 ? T(-1) : T(0); }>(n("shr"));
  add<[](T a, T b) { return a < b; }>(n("setp.lt"));
  add<[](T a, T b) { return a <= b; }>(n("setp.le"));
  if constexpr (sizeof(T) < 8) {
    add<[](T a, T b) { return W(a) * W(b); }>(n("mul.wide"));
    using U = std::make_unsigned_t<W>;
    add<[](T a, T b, W c) { return W(U(W(a) * W(b)) + U(c)); }>(n("mad.wide"));
  }
}

template <class T>
void enter_absolute() {
  add<[](T a) { return a < 0 ? T(u64(0) - u64(a)) : a; }>(named<T>("abs", 's'));
}

template <class T>
u32 count(T a) {
  return sizeof(T) == 8 ? __builtin_popcountll(a) : __builtin_popcount(u32(a));
}
template <class T>
u32 leading(T a) {
  return a == 0 ? 8 * sizeof(T) : sizeof(T) == 8 ? __builtin_clzll(a) : __builtin_clz(u32(a));
}
template <class T>
T reversed(T a) {
  T out = 0;
  for (size_t i = 0; i < 8 * sizeof(T); ++i) out = T(out << 1 | (a >> i & 1));
  return out;
}
template <class T, class U>
u32 highest(T a) {  // bit that differs from the sign; -1 if none
  const U u = a < 0 ? U(~a) : U(a);
  return u == 0 ? ~0u : u32(8 * sizeof(T) - 1 - leading<U>(u));
}
template <class T, class U>
T field(T a, u32 b, u32 c) {
  constexpr u32 kWidth = 8 * sizeof(T);
  const u32 pos = b & 255, len = c & 255;
  const u32 top = std::min(pos + len - 1, kWidth - 1);
  const bool sign = std::is_signed_v<T> && len && (U(a) >> top & 1);
  const U part = pos < kWidth ? U(a) >> pos : 0;
  const U keep = len >= kWidth ? ~U(0) : (U(1) << len) - 1;
  const u32 held = pos >= kWidth ? 0 : std::min(len, kWidth - pos);
  const U own = held >= kWidth ? ~U(0) : (U(1) << held) - 1;
  return T(sign ? (part & own) | ~own : part & keep & own);
}
template <class U>
U inserted(U a, U b, u32 c, u32 d) {
  constexpr u32 kWidth = 8 * sizeof(U);
  const u32 pos = c & 255, len = d & 255;
  if (pos >= kWidth || len == 0) return b;
  const U keep = (len >= kWidth ? ~U(0) : (U(1) << len) - 1) << pos;
  return (b & ~keep) | (a << pos & keep);
}

template <class S, class U>
void enter_fields(const char* width) {
  const std::string w = width;
  add<count<U>>("popc.b" + w);
  add<leading<U>>("clz.b" + w);
  add<reversed<U>>("brev.b" + w);
  add<highest<U, U>>("bfind.u" + w);
  add<highest<S, U>>("bfind.s" + w);
  constexpr u32 kTop = 8 * sizeof(U) - 1;
  add<[](U a) {
    u32 h = highest<U, U>(a);
    return h == ~0u ? h : kTop - h;
  }>("bfind.shiftamt.u" + w);
  add<[](S a) {
    u32 h = highest<S, U>(a);
    return h == ~0u ? h : kTop - h;
  }>("bfind.shiftamt.s" + w);
  add<field<U, U>>("bfe.u" + w);
  add<field<S, U>>("bfe.s" + w);
  add<inserted<U>>("bfi.b" + w);
}

u32 lop3(u32 a, u32 b, u32 c, u32 t) {
  u32 out = 0;
  for (int k = 0; k < 8; ++k)
    if (t >> k & 1) out |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  return out;
}

u32 byte_of(u64 pair, u32 selector) {
  const u32 b = u32(pair >> 8 * (selector & 7)) & 255;
  return selector & 8 ? (b & 128 ? 255 : 0) : b;
}
u64 paired(u32 a, u32 b) { return u64(b) << 32 | a; }
u32 permuted(u64 pair, u32 s0, u32 s1, u32 s2, u32 s3) {
  return byte_of(pair, s0) | byte_of(pair, s1) << 8 | byte_of(pair, s2) << 16 |
         byte_of(pair, s3) << 24;
}

u32 f4e(u32 a, u32 b, u32 c) { return u32(paired(a, b) >> 8 * (c & 3)); }
u32 b4e(u32 a, u32 b, u32 c) {
  return permuted(paired(a, b), c & 3, ((c & 3) + 7) & 7, ((c & 3) + 6) & 7, ((c & 3) + 5) & 7);
}
u32 rc8(u32 a, u32 b, u32 c) { return permuted(paired(a, b), c & 3, c & 3, c & 3, c & 3); }
u32 ecl(u32 a, u32 b, u32 c) {
  return permuted(paired(a, b), c & 3, std::max(c & 3, 1u), std::max(c & 3, 2u), 3);
}
u32 ecr(u32 a, u32 b, u32 c) {
  return permuted(paired(a, b), 0, std::min(c & 3, 1u), std::min(c & 3, 2u), c & 3);
}
u32 rc16(u32 a, u32 b, u32 c) {
  return permuted(paired(a, b), 2 * (c & 1), 2 * (c & 1) + 1, 2 * (c & 1), 2 * (c & 1) + 1);
}

template <int Sign>
s32 dp4a(u32 a, u32 b, s32 c) {
  for (int k = 0; k < 4; ++k) {
    const s32 x = Sign & 1 ? s32(int8_t(a >> 8 * k)) : s32(u8(a >> 8 * k));
    const s32 y = Sign & 2 ? s32(int8_t(b >> 8 * k)) : s32(u8(b >> 8 * k));
    c = s32(u32(c) + u32(x * y));
  }
  return c;
}

// Instructions with a carry. slots: destination, a, b, c, carry word.
enum Extended { kAddC, kSubC, kMadLo, kMadHi };
template <class U, Extended Op, bool In, bool Out, bool Signed = false>
void extended(Warp& warp, const Ins& ins, uint32_t mask) {
  using W = typename Twice<U>::type;
  using SW = std::conditional_t<sizeof(U) == 4, s64, s128>;
  using S = std::make_signed_t<U>;
  uint32_t* carry = warp.row<uint32_t>(ins, 4);
  constexpr int kWidth = 8 * sizeof(U);
  for_lanes(mask, [&](int lane) {
    const U a = warp.row<U>(ins, 1)[lane], b = warp.row<U>(ins, 2)[lane],
            c = warp.row<U>(ins, 3)[lane];
    const W in = In ? *carry >> lane & 1 : 0;
    W sum;
    if (Op == kAddC) sum = W(a) + b + in;
    if (Op == kSubC) sum = W(a) - b - in;
    if (Op == kMadLo) sum = W(U(W(a) * b)) + c + in;
    if (Op == kMadHi)
      sum = W(Signed ? U(SW(S(a)) * S(b) >> kWidth) : U(W(a) * b >> kWidth)) + c + in;
    warp.row<U>(ins, 0)[lane] = U(sum);
    if (Out) *carry = (*carry & ~(1u << lane)) | uint32_t(sum >> kWidth & 1) << lane;
  });
}

template <class U>
void enter_extended(const char* width) {
  const char n = char('0' + sizeof(U));
  auto one = [&](const std::string& name, Handler fn) {
    enter(name + width, {n, '=', n, ',', n, ',', n, ',', 'p'}, fn);
  };
  one("add.cc.b", extended<U, kAddC, false, true>);
  one("addc.b", extended<U, kAddC, true, false>);
  one("addc.cc.b", extended<U, kAddC, true, true>);
  one("sub.cc.b", extended<U, kSubC, false, true>);
  one("subc.b", extended<U, kSubC, true, false>);
  one("subc.cc.b", extended<U, kSubC, true, true>);
  one("mad.lo.cc.b", extended<U, kMadLo, false, true>);
  one("madc.lo.b", extended<U, kMadLo, true, false>);
  one("madc.lo.cc.b", extended<U, kMadLo, true, true>);
  one("mad.hi.cc.u", extended<U, kMadHi, false, true>);
  one("madc.hi.u", extended<U, kMadHi, true, false>);
  one("madc.hi.cc.u", extended<U, kMadHi, true, true>);
  one("mad.hi.cc.s", extended<U, kMadHi, false, true, true>);
  one("madc.hi.s", extended<U, kMadHi, true, false, true>);
  one("madc.hi.cc.s", extended<U, kMadHi, true, true, true>);
}

// A wide register as its parts and back: slots: Whole, Part...
template <class Whole, class Part>
void unpack(Warp& warp, const Ins& ins, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const Whole whole = warp.row<Whole>(ins, sizeof(Whole) / sizeof(Part))[lane];
    for (size_t k = 0; k < sizeof(Whole) / sizeof(Part); ++k)
      warp.row<Part>(ins, k)[lane] = Part(whole >> 8 * sizeof(Part) * k);
  });
}
template <class Whole, class Part>
void pack(Warp& warp, const Ins& ins, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    Whole whole = 0;
    for (size_t k = 0; k < sizeof(Whole) / sizeof(Part); ++k)
      whole |= Whole(warp.row<Part>(ins, k + 1)[lane]) << 8 * sizeof(Part) * k;
    warp.row<Whole>(ins, 0)[lane] = whole;
  });
}

template <auto F>
void words(Warp& warp, const Ins& ins, uint32_t mask) {
  uint32_t* out = warp.row<uint32_t>(ins, 0);
  *out = (*out & ~mask) | (F(*warp.row<uint32_t>(ins, 1), *warp.row<uint32_t>(ins, 2)) & mask);
}

void enter_predicates() {
  enter("and.pred", "p=p,p", words<[](u32 a, u32 b) { return a & b; }>);
  enter("or.pred", "p=p,p", words<[](u32 a, u32 b) { return a | b; }>);
  enter("xor.pred", "p=p,p", words<[](u32 a, u32 b) { return a ^ b; }>);
  enter("not.pred", "p=p", words<[](u32 a, u32) { return ~a; }>);
  enter("mov.pred", "p=p", words<[](u32 a, u32) { return a; }>);
}

// Between registers of different width, as an 8-bit, 16-bit... value of the given sign.
void enter_resizes() {
  add<[](u16 a) { return u32(a); }>("resize.u.2.4");
  add<[](u16 a) { return u64(a); }>("resize.u.2.8");
  add<[](u32 a) { return u64(a); }>("resize.u.4.8");
  add<[](s16 a) { return s32(a); }>("resize.s.2.4");
  add<[](s16 a) { return s64(a); }>("resize.s.2.8");
  add<[](s32 a) { return s64(a); }>("resize.s.4.8");
  add<[](u32 a) { return u16(a); }>("resize.u.4.2");
  add<[](u64 a) { return u16(a); }>("resize.u.8.2");
  add<[](u64 a) { return u32(a); }>("resize.u.8.4");
  add<[](u16 a) { return u16(u8(a)); }>("narrow.u8");
  add<[](u16 a) { return s16(int8_t(a)); }>("narrow.s8");
  add<[](s64 a) { return std::clamp<s64>(a, -128, 127); }>("clamp.s8");
  add<[](s64 a) { return std::clamp<s64>(a, 0, 255); }>("clamp.u8");
  add<[](s64 a) { return std::clamp<s64>(a, -32768, 32767); }>("clamp.s16");
  add<[](s64 a) { return std::clamp<s64>(a, 0, 65535); }>("clamp.u16");
  add<[](s64 a) { return std::clamp<s64>(a, INT32_MIN, INT32_MAX); }>("clamp.s32");
  add<[](s64 a) { return std::clamp<s64>(a, 0, UINT32_MAX); }>("clamp.u32");
}

}  // namespace

void enter_integer() {
  enter_bits<u16>(), enter_bits<u32>(), enter_bits<u64>();
  enter_signed_or_not<u16>('u'), enter_signed_or_not<u32>('u'), enter_signed_or_not<u64>('u');
  enter_signed_or_not<s16>('s'), enter_signed_or_not<s32>('s'), enter_signed_or_not<s64>('s');
  enter_absolute<s16>(), enter_absolute<s32>(), enter_absolute<s64>();
  enter_fields<s32, u32>("32"), enter_fields<s64, u64>("64");
  enter_extended<u32>("32"), enter_extended<u64>("64");
  enter_predicates();
  enter_resizes();
  add<[](s32 a, s32 b) { return s32(std::clamp<s64>(s64(a) + b, INT32_MIN, INT32_MAX)); }>(
      "add.sat.s32");
  add<[](s32 a, s32 b) { return s32(std::clamp<s64>(s64(a) - b, INT32_MIN, INT32_MAX)); }>(
      "sub.sat.s32");
  add<lop3>("lop3.b32");
  add<[](u32 a, u32 b, u32 c) { return permuted(paired(a, b), c, c >> 4, c >> 8, c >> 12); }>(
      "prmt.b32");
  add<f4e>("prmt.b32.f4e");
  add<b4e>("prmt.b32.b4e");
  add<rc8>("prmt.b32.rc8");
  add<ecl>("prmt.b32.ecl");
  add<ecr>("prmt.b32.ecr");
  add<rc16>("prmt.b32.rc16");
  add<[](u32 a, u32 b, u32 c) { return u32(paired(a, b) << (c & 31) >> 32); }>("shf.l.wrap.b32");
  add<[](u32 a, u32 b, u32 c) { return u32(paired(a, b) << std::min(c, 32u) >> 32); }>(
      "shf.l.clamp.b32");
  add<[](u32 a, u32 b, u32 c) { return u32(paired(a, b) >> (c & 31)); }>("shf.r.wrap.b32");
  add<[](u32 a, u32 b, u32 c) { return u32(paired(a, b) >> std::min(c, 32u)); }>("shf.r.clamp.b32");
  add<dp4a<0>>("dp4a.u32.u32");
  add<dp4a<1>>("dp4a.s32.u32");
  add<dp4a<2>>("dp4a.u32.s32");
  add<dp4a<3>>("dp4a.s32.s32");
  add<[](s32 a, s32 b) { return u32(s64(a << 8 >> 8) * (b << 8 >> 8)); }>("mul24.lo.s32");
  add<[](u32 a, u32 b) { return u32(u64(a & 0xffffff) * (b & 0xffffff)); }>("mul24.lo.u32");
  enter("mov.unpack.b32.2", "2,2=4", unpack<u32, u16>);
  enter("mov.unpack.b64.2", "4,4=8", unpack<u64, u32>);
  enter("mov.unpack.b64.4", "2,2,2,2=8", unpack<u64, u16>);
  enter("mov.pack.b32.2", "4=2,2", pack<u32, u16>);
  enter("mov.pack.b64.2", "8=4,4", pack<u64, u32>);
  enter("mov.pack.b64.4", "8=2,2,2,2", pack<u64, u16>);
}

}  // namespace ptx
