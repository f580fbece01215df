#include "common/runtime.h"

#include <sys/mman.h>
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

constexpr std::size_t kPage = 4096, kHugePage = 2 << 20;

// Memory of several huge pages is to be made of these: rows lie kilobytes apart, each in a small
// page of its own, of which the processor knows too few.
void* allocate(std::size_t bytes) {
  void* data = nullptr;
  const bool huge = bytes >= 2 * kHugePage;
  if (posix_memalign(&data, huge ? kHugePage : 64, bytes) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (huge) madvise(data, bytes, MADV_HUGEPAGE);  // a wish: nothing depends on the answer
#endif
  return data;
}

}  // namespace

void* scratch(std::size_t bytes, Slot slot) {
  thread_local Arena arenas[static_cast<int>(Slot::kCount)];
  Arena& arena = arenas[static_cast<int>(slot)];
  if (bytes > arena.size) {
    std::free(arena.data);
    arena.data = nullptr;
    arena.size = 0;
    const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    arena.data = allocate(rounded);
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
