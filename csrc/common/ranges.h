// Places 0 .. count - 1 shared out to threads: each takes from the front of its own range, so what
// it reads lies side by side and what comes next is known; who has nothing left takes from the back
// of another's, so nobody waits for a thread that is slow, or that never came.
#pragma once
#include <atomic>

#include "common/parallel.h"

namespace bf::BF_ISA {
namespace {

struct alignas(64) Range {
  std::atomic<std::uint64_t> left;  // first place in the low half, end in the high half

  void set(std::uint64_t first, std::uint64_t end) { left.store(first | end << 32); }

  // A place from the front, or from the back; -1: none is left.
  long take(bool front) {
    std::uint64_t now = left.load(std::memory_order_relaxed);
    for (;;) {
      const std::uint64_t first = now & 0xffffffff, end = now >> 32;
      if (first >= end) return -1;
      const std::uint64_t then = front ? (first + 1) | end << 32 : first | (end - 1) << 32;
      if (left.compare_exchange_weak(now, then, std::memory_order_relaxed))
        return static_cast<long>(front ? first : end - 1);
    }
  }
};

// Calls body(place, next, thread) for all places; `next` is the one that the thread is likely to
// get then, which may not exist. `ranges`: one a thread.
template <class Body>
static void parallel_ranges(Range* ranges, int threads, long count, Body body) {
  for (int i = 0; i < threads; ++i) ranges[i].set(count * i / threads, count * (i + 1) / threads);
  parallel_tasks(threads, threads, [&](long own, int thread) {
    for (int i = 0; i < threads; ++i) {
      const bool front = i == 0;
      Range& range = ranges[(own + i) % threads];
      for (long place; (place = range.take(front)) >= 0;)
        body(place, front ? place + 1 : place - 1, thread);
    }
  });
}

}  // namespace
}  // namespace bf::BF_ISA
