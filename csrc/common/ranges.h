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

  // Up to `step` places from the front, or from the back: [*first, *end). False: none is left.
  bool take(std::uint32_t step, bool front, long* first, long* end) {
    std::uint64_t now = left.load(std::memory_order_relaxed);
    for (;;) {
      const auto low = static_cast<std::uint32_t>(now),
                 high = static_cast<std::uint32_t>(now >> 32);
      if (low >= high) return false;
      const std::uint32_t some = high - low < step ? high - low : step;
      *first = front ? low : high - some, *end = *first + some;
      const std::uint64_t first_left = front ? low + some : low,
                          end_left = front ? high : high - some;
      const std::uint64_t then = first_left | end_left << 32;
      if (left.compare_exchange_weak(now, then, std::memory_order_relaxed)) return true;
    }
  }
};

// Calls body(first, end, next, thread) for all places, up to `step` at a time; `next` is the place
// that the thread is likely to get then. `ranges`: one a thread.
template <class Body>
static void parallel_ranges(Range* ranges, int threads, long count, long step, Body body) {
  for (int i = 0; i < threads; ++i) ranges[i].set(count * i / threads, count * (i + 1) / threads);
  parallel_tasks(threads, threads, [&](long own, int thread) {
    long first, end;
    for (int i = 0; i < threads; ++i) {
      const bool front = i == 0;
      Range& range = ranges[(own + i) % threads];
      while (range.take(static_cast<std::uint32_t>(step), front, &first, &end))
        body(first, end, front ? end : first < step ? 0 : first - step, thread);
    }
  });
}

}  // namespace
}  // namespace bf::BF_ISA
