// Tasks over threads. Tasks are independent and write disjoint outputs, so results do not depend on
// who runs them.
#pragma once
#include "common/pool.h"
#include "common/runtime.h"
#include "common/simd.h"

namespace bf::BF_ISA {
namespace {

// Calls body(task, thread) for each task, the lowest first; thread < threads.
template <class Body>
static void parallel_tasks(int threads, long tasks, Body body) {
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1) {
    for (long i = 0; i < tasks; ++i) body(i, 0);
    return;
  }
  run_tasks(
      threads, tasks,
      [](void* of, long task, int thread) { (*static_cast<Body*>(of))(task, thread); }, &body);
}

BF_INLINE long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }
BF_INLINE long ceil_div(long n, long d) { return (n + d - 1) / d; }

// Hands out pieces of one scratch block, each 64-byte aligned. Sized first (with no base), then
// carved.
struct Carver {
  char* base = nullptr;
  long used = 0;
  template <class T>
  T* take(long count) {
    T* p = reinterpret_cast<T*>(base + used);
    used += round_up(count * static_cast<long>(sizeof(T)), 64);
    return p;
  }
};

}  // namespace
}  // namespace bf::BF_ISA
