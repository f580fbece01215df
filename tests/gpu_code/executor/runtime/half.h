// fp16 and bf16 as 16 bits: to float exactly, from float and double with one rounding to nearest
// even. Plain integer arithmetic without branches, so that loops over lanes vectorise on every CPU.
#pragma once

#include <cstdint>
#include <cstring>

namespace ptx {

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// a*b + c or any other double, cut to float's 24 bits with the last bit set if anything was lost
// ("round to odd"): rounding that once more to 16 bits gives what one rounding of the exact value
// gives.
inline float to_odd(double sum, double lost) {
  uint64_t u = bits<uint64_t>(sum);
  const bool inexact = lost != 0 && sum - sum == 0;
  if (inexact && (lost < 0) != (sum < 0)) --u;
  if ((u & 0x1fffffff) || inexact)
    u = (u & ~uint64_t(0x1fffffff)) | (sum - sum == 0 ? 1u << 29 : u & 0x1fffffff);
  return float(bits<double>(u));
}

inline float fma_to_odd(float a, float b, float c) {
  const double product = double(a) * double(b), addend = c, sum = product + addend;
  const double back = sum - product;
  return to_odd(sum, (product - (sum - back)) + (addend - back));
}

struct Half {
  static float value(uint16_t h) {
    uint32_t u = bits<uint32_t>(bits<float>(uint32_t(h & 0x7fff) << 13) * 0x1p112f);
    u |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    return bits<float>(u | uint32_t(h & 0x8000) << 16);
  }
  static uint16_t round(float x) {
    const uint32_t u = bits<uint32_t>(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    const uint32_t tiny = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    uint32_t h = magnitude < (113u << 23) ? tiny : normal;
    h = magnitude >= 0x477ff000u ? 0x7c00 : h;
    h = magnitude > 0x7f800000u ? 0x7fff : h;
    return uint16_t(magnitude > 0x7f800000u ? h : h | sign);
  }
  static uint16_t truncate(float x) {
    uint16_t h = round(x);
    const float back = value(h);
    const bool beyond = (back < 0 ? -back : back) > (x < 0 ? -x : x) && x - x == 0;
    return uint16_t(h - beyond);
  }
  static constexpr uint16_t kNan = 0x7fff;
};

struct Brain {
  static float value(uint16_t h) { return bits<float>(uint32_t(h) << 16); }
  static uint16_t round(float x) {
    const uint32_t u = bits<uint32_t>(x);
    const uint32_t h = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return uint16_t((u & 0x7fffffff) > 0x7f800000u ? 0x7fff : h);
  }
  static uint16_t truncate(float x) {
    const uint32_t u = bits<uint32_t>(x);
    return uint16_t((u & 0x7fffffff) > 0x7f800000u ? 0x7fff : u >> 16);
  }
  static constexpr uint16_t kNan = 0x7fff;
};

}  // namespace ptx
