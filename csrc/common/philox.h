// Dropout bits: Philox-4x32-10 (Salmon et al., SC 2011). Key: the 64-bit seed. Counter: (i / 8, j, head or 0, batch row);
// one call serves 8 elements of 16 bits, low half of word 0 first. Dropped if bits < threshold = round(p * 65536).
#pragma once
#include "common/dropout.h"
#include "common/simd.h"

namespace bf {

namespace BF_ISA {
namespace {

constexpr long kPhiloxGroup = 8;

static void philox(std::uint64_t seed, std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                   std::uint16_t out[kPhiloxGroup]) {
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
    c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(b);
    c3 = static_cast<std::uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const std::uint32_t words[4] = {c0, c1, c2, c3};
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = static_cast<std::uint16_t>(words[i]);
    out[2 * i + 1] = static_cast<std::uint16_t>(words[i] >> 16);
  }
}

// row[i] holds element first + i (first a multiple of 8): kept ones are scaled, the others become 0.
inline void dropout_row(const Dropout& d, float* row, long n, long first, long j, long head, long batch_row) {
  for (long i = 0; i < n; i += kPhiloxGroup) {
    std::uint16_t bits[kPhiloxGroup];
    philox(*d.seed, static_cast<std::uint32_t>((first + i) / kPhiloxGroup), static_cast<std::uint32_t>(j),
           static_cast<std::uint32_t>(head), static_cast<std::uint32_t>(batch_row), bits);
    const long m = n - i < kPhiloxGroup ? n - i : kPhiloxGroup;
    for (long e = 0; e < m; ++e) row[i + e] = bits[e] < d.threshold ? 0.0f : row[i + e] * d.scale;
  }
}

// The sequence that token t belongs to (zero-length sequences are passed over).
inline long sequence_of(const std::int32_t* cu_seqlens, long sequences, long t) {
  long low = 0, high = sequences;  // the last b with cu_seqlens[b] <= t
  while (high - low > 1) {
    const long middle = (low + high) / 2;
    (cu_seqlens[middle] <= t ? low : high) = middle;
  }
  return low;
}

inline void dropout_token(const Dropout& d, float* row, long n, const std::int32_t* cu_seqlens, long sequences, long t) {
  const long b = sequence_of(cu_seqlens, sequences, t);
  dropout_row(d, row, n, 0, t - cu_seqlens[b], 0, b);
}

}  // namespace
}  // namespace BF_ISA
}  // namespace bf
