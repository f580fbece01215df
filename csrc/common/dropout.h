// What a kernel is told about dropout; the bits are philox.h's.
#pragma once
#include <cstdint>

namespace bf {

struct Dropout {
  const std::uint64_t* seed;  // null: no dropout
  std::uint32_t threshold;    // round(p * 65536): dropped if a 16-bit number is below it
  float scale;                // 65536 / (65536 - threshold)
};

}  // namespace bf
