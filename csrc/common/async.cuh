// cp.async: copies from global to shared memory that run beside the arithmetic (sm_80 and newer).
// A thread sees its own copies after cp_async_wait; the others see them after a barrier beyond it.
#pragma once

namespace bf::cuda {
namespace {

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// x, kept in a register from here on: a compiler would rather compute addresses of a loop anew.
template <class V>
__device__ __forceinline__ V keep(V x) {
  if constexpr (sizeof(V) == 8)
    asm volatile("" : "+l"(x));
  else
    asm volatile("" : "+r"(x));
  return x;
}

// 16 bytes, both addresses 16-byte aligned; only the first `bytes` are read, the rest become zeros.
__device__ __forceinline__ void cp_async16(unsigned to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `pending` of the newest groups are under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace
}  // namespace bf::cuda
