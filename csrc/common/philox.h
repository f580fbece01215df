// Dropout bits: Philox-4x32-10 (Salmon et al., SC 2011). Key: the 64-bit seed. Counter: (i / 8, j,
// head or 0, row), row = the low word of the example's id or, without ids, the sequence's index in
// the batch; one call serves 8 elements of 16 bits, low half of word 0 first. Dropped if bits <
// threshold = round(p * 65536).
#pragma once
#include "common/dropout.h"
#include "common/simd.h"

namespace bf::BF_ISA {
namespace {

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "philox writes words as pairs of 16-bit numbers: little-endian machines only"
#endif

constexpr long kPhiloxGroup = 8;

// The low and high words of a * c, lane by lane.
BF_INLINE U multiply_high(U a, std::uint32_t c) {
#if defined(__AVX512F__)  // the masked forms, as in simd.h
  const __m512i factor = (__m512i)(U{} + c);
  const __m512i even = _mm512_maskz_mul_epu32(0xff, (__m512i)a, factor);
  const __m512i odd =
      _mm512_maskz_mul_epu32(0xff, _mm512_maskz_srli_epi64(0xff, (__m512i)a, 32), factor);
  return (U)_mm512_mask_mov_epi32(_mm512_maskz_srli_epi64(0xff, even, 32), 0xaaaa, odd);
#elif defined(__AVX2__)
  const __m256i factor = (__m256i)(U{} + c);
  const __m256i even = _mm256_mul_epu32((__m256i)a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
  return (U)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#else
  U high;
  for (int l = 0; l < kLanes; ++l)
    high[l] = static_cast<std::uint32_t>((static_cast<std::uint64_t>(a[l]) * c) >> 32);
  return high;
#endif
}

// kLanes calls at once, of the groups first_group, first_group + 1, ...: 8 numbers a call.
static void philox(std::uint64_t seed, std::uint32_t first_group, std::uint32_t c1,
                   std::uint32_t c2, std::uint32_t c3, std::uint16_t out[kLanes * kPhiloxGroup]) {
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  U w0 = U{} + first_group, w1 = U{} + c1, w2 = U{} + c2, w3 = U{} + c3;
  for (int l = 0; l < kLanes; ++l) w0[l] += static_cast<std::uint32_t>(l);
  for (int round = 0; round < 10; ++round) {
    const U high0 = multiply_high(w0, 0xD2511F53u), low0 = w0 * 0xD2511F53u;
    const U high2 = multiply_high(w2, 0xCD9E8D57u), low2 = w2 * 0xCD9E8D57u;
    w0 = high2 ^ w1 ^ k0;
    w2 = high0 ^ w3 ^ k1;
    w1 = low2;
    w3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  // A call's words in order; the low half of a word comes first in memory too.
  for (int l = 0; l < kLanes; ++l) {
    const std::uint32_t words[4] = {w0[l], w1[l], w2[l], w3[l]};
    std::memcpy(out + l * kPhiloxGroup, words, sizeof words);
  }
}

// The counter that tells sequences apart.
inline std::uint32_t counter_row(const Dropout& d, long sequence) {
  return static_cast<std::uint32_t>(d.example_ids ? d.example_ids[sequence] : sequence);
}

// row[i] holds element first + i (first a multiple of 8): kept ones are scaled, the others become
// 0.
inline void dropout_row(const Dropout& d, float* row, long n, long first, long j, long head,
                        long sequence) {
  constexpr long kBatch = kLanes * kPhiloxGroup;
  const std::uint32_t c3 = counter_row(d, sequence);
  for (long i = 0; i < n; i += kBatch) {
    std::uint16_t bits[kBatch];
    philox(*d.seed, static_cast<std::uint32_t>((first + i) / kPhiloxGroup),
           static_cast<std::uint32_t>(j), static_cast<std::uint32_t>(head), c3, bits);
    const long m = n - i < kBatch ? n - i : kBatch;
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

inline void dropout_token(const Dropout& d, float* row, long n, const std::int32_t* cu_seqlens,
                          long sequences, long t) {
  const long b = sequence_of(cu_seqlens, sequences, t);
  dropout_row(d, row, n, 0, t - cu_seqlens[b], 0, b);
}

}  // namespace
}  // namespace bf::BF_ISA
