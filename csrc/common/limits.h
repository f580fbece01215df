// The sizes that CUDA kernels take, written once: BF_LIMIT holds a kernel to one of them, and by
// `_cuda.limits` Python's `supports` refuses what is beyond before a kernel is called.
#pragma once
#include <string>

#include "common/check.h"

namespace bf {

struct Limit {
  const char* name;
  long least, most;
};

constexpr Limit kSize{"size", 0, (1L << 31) - 1};      // rows, tokens, n or k
constexpr Limit kFeatures{"features", 1, 8192};        // of a row that LN holds in registers
constexpr Limit kHeads{"heads", 1, 65535};             // a grid's second dimension
constexpr Limit kHeadSize{"head_size", 1, 128};        // the widest tile of attention
constexpr Limit kColumns{"columns", 1, 65535L * 128};  // of logits and their k, in tiles of 128
constexpr Limit kLimits[] = {kSize, kFeatures, kHeads, kHeadSize, kColumns};

inline void check_limit(const Limit& limit, long size, const char* file, int line) {
  if (size >= limit.least && size <= limit.most) return;
  const std::string bounds = std::to_string(limit.least) + " to " + std::to_string(limit.most);
  const std::string what = limit.name + (": expected " + bounds + ", got ") + std::to_string(size);
  fail(what.c_str(), file, line);
}

}  // namespace bf

#define BF_LIMIT(LIMIT, SIZE) ::bf::check_limit(LIMIT, SIZE, __FILE__, __LINE__)
