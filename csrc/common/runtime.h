// What is compiled once for every instruction set: scratch memory, threads, the machine.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bf {

// Grow-only, 64-byte aligned memory of the calling thread; the next call for the same slot may
// return the same bytes. Throws std::bad_alloc. Call it before a parallel region, never inside.
enum class Slot {
  kThreads,
  kOperand,
  kRows,
  kPairs,
  kSums,
  kEncoder,
  kGroups,
  kCount
};  // a function that holds one slot may call one that takes another
void* scratch(std::size_t bytes, Slot slot = Slot::kThreads);

long l2_bytes();

// Indices of the sequences, longest first (stable).
void longest_first(const std::int32_t* cu_seqlens, long sequences, std::int32_t* order);

}  // namespace bf
