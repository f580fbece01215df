// Dropout bits on the device: Philox-4x32-10 (Salmon et al., SC 2011), the bits of philox.h and of
// bertfast/ops/_philox.py. Key: the 64-bit seed, read through its pointer. Counter: (i / 8, j, head
// or 0, row), row = the low word of the example's id or, without ids, the sequence's index in the
// batch; one call serves 8 elements of 16 bits, low half of word 0 first. Element e is dropped if
// its number is below threshold = round(p * 65536).
#pragma once
#include <cstdint>

#include "common/dropout.h"
#include "common/reduce.cuh"

namespace bf::cuda {
namespace {

constexpr int kPhiloxGroup = 8;  // elements of one call

__device__ __forceinline__ uint4 philox(std::uint64_t seed, std::uint32_t c0, std::uint32_t c1,
                                        std::uint32_t c2, std::uint32_t c3) {
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = static_cast<std::uint64_t>(c0) * 0xD2511F53u;
    const std::uint64_t second = static_cast<std::uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<std::uint32_t>(second >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(first >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(second);
    c3 = static_cast<std::uint32_t>(first);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return make_uint4(c0, c1, c2, c3);
}

// Bit e is set where element e of the call is kept.
__device__ __forceinline__ std::uint32_t philox_keep(uint4 words, std::uint32_t threshold) {
  const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
  std::uint32_t keep = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    keep |= (word[w] & 0xFFFFu) >= threshold ? 1u << (2 * w) : 0u;
    keep |= (word[w] >> 16) >= threshold ? 2u << (2 * w) : 0u;
  }
  return keep;
}

// The sequence that token t belongs to: the last b < sequences with cu_seqlens[b] <= t
// (zero-length sequences are passed over); 0 where there is none.
__device__ __forceinline__ int sequence_of(const std::int32_t* cu_seqlens, int sequences, long t) {
  return last_of(sequences, [&](int b) { return cu_seqlens[b] <= t; });
}

// The counter that tells sequences apart.
__device__ __forceinline__ std::uint32_t counter_row(const Dropout& d, int sequence) {
  return static_cast<std::uint32_t>(d.example_ids ? d.example_ids[sequence] : sequence);
}

// Dropout on the hidden states of one token: what is constant along its row.
struct TokenDropout {
  std::uint64_t seed;
  std::uint32_t position, row, threshold;  // position inside the sequence, the counter's row
  float scale;
  bool on;

  __device__ __forceinline__ TokenDropout(const Dropout& d, const std::int32_t* cu_seqlens,
                                          long sequences, long t)
      : seed(0),
        position(0),
        row(0),
        threshold(d.threshold),
        scale(d.scale),
        on(d.seed != nullptr) {
    if (!on) return;
    seed = *d.seed;
    const int sequence = sequence_of(cu_seqlens, static_cast<int>(sequences), t);
    row = counter_row(d, sequence);
    position = static_cast<std::uint32_t>(t - cu_seqlens[sequence]);
  }
};

}  // namespace
}  // namespace bf::cuda
