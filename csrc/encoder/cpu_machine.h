// How a CPU runs a layer's operations, moves rows and finds memory for them.
#pragma once
#include "common/parallel.h"
#include "encoder/groups.h"
#include "encoder/layer.h"

namespace bf::BF_ISA {
namespace {

struct Processor {
  static constexpr bool kSlopeInProduct = false;  // a panel of dx is stored where it was summed
#define BF_RUN(NAME, OP) \
  void run_part(const OP& q) const { NAME(q); }
  BF_FOR_EACH_PART(BF_RUN)
#undef BF_RUN

  // The first row of every sequence; zeros for an empty one.
  void first_rows(const Stream& s, const char* from, long bytes, char* to) const {
    for (long i = 0; i < s.sequences; ++i, to += bytes)
      if (s.cu_seqlens[i + 1] > s.cu_seqlens[i])
        std::memcpy(to, from + s.cu_seqlens[i] * bytes, bytes);
      else
        std::memset(to, 0, bytes);
  }

  // Rows of first tokens to their places among zeros.
  void spread(const Stream& s, const char* from, long bytes, char* to) const {
    std::memset(to, 0, s.tokens * bytes);
    for (long i = 0; i < s.sequences; ++i)
      if (s.cu_seqlens[i + 1] > s.cu_seqlens[i])
        std::memcpy(to + s.cu_seqlens[i] * bytes, from + i * bytes, bytes);
  }

  // Zeros in the rows of no sequence, which attention's backward leaves as they are.
  void clear_strays(const Stream& s, char* rows, long bytes) const {
    const long used = s.cu_seqlens[s.sequences];
    std::memset(rows + used * bytes, 0, (s.tokens - used) * bytes);
  }

  void add(const Stream& s, DType dtype, char* to, const char* from, long count) const {
    constexpr long kPiece = 1 << 14;
    BF_DISPATCH_DTYPE(dtype, T, {
      parallel_tasks(s.threads, ceil_div(count, kPiece), [&](long task, int) {
        const long first = task * kPiece, left = count - first;
        T* sum = reinterpret_cast<T*>(to) + first;
        const T* other = reinterpret_cast<const T*>(from) + first;
        for_lanes(left < kPiece ? left : kPiece, [&](long i, int m) {
          store_some(sum + i, load_some(sum + i, m) + load_some(other + i, m), m);
        });
      });
    })
  }
};

BF_INLINE char* take(long bytes, long tokens) {
  try {
    return static_cast<char*>(scratch(bytes, Slot::kEncoder));
  } catch (...) {
    no_memory_for_layers(bytes, tokens);
  }
}

// One block of memory, laid out by lay_out(carver, stream).
template <class LayOut>
static void take(Stream& s, LayOut lay_out) {
  Carver size;
  Stream none = s;
  lay_out(size, none);
  Carver memory{take(size.used, s.tokens), 0};
  lay_out(memory, s);
  for (long i = 0; s.ones && i <= s.sequences; ++i) s.ones[i] = static_cast<std::int32_t>(i);
}

}  // namespace
}  // namespace bf::BF_ISA
