#include "common/runtime.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

namespace bf {
namespace {

struct Arena {
  void* data = nullptr;
  std::size_t size = 0;
  ~Arena() { std::free(data); }
};

}  // namespace

void* scratch(std::size_t bytes, Slot slot) {
  thread_local Arena arenas[static_cast<int>(Slot::kCount)];
  Arena& arena = arenas[static_cast<int>(slot)];
  if (bytes > arena.size) {
    std::free(arena.data);
    arena.data = nullptr;
    arena.size = 0;
    void* data = nullptr;
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    if (posix_memalign(&data, 64, rounded) != 0) throw std::bad_alloc();
    arena.data = data;
    arena.size = rounded;
  }
  return arena.data;
}

long l2_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long size = [] {
    const long s = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return s >= (128 << 10) && s <= (64 << 20) ? s : (512 << 10);
  }();
  return size;
#else
  return 512 << 10;
#endif
}

void longest_first(const std::int32_t* cu_seqlens, long sequences, std::int32_t* order) {
  std::iota(order, order + sequences, 0);
  std::stable_sort(order, order + sequences, [&](std::int32_t a, std::int32_t b) {
    return cu_seqlens[a + 1] - cu_seqlens[a] > cu_seqlens[b + 1] - cu_seqlens[b];
  });
}

}  // namespace bf
