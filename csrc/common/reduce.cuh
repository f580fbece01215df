// Sums and maxima over the lanes of a warp and over the warps of a block, in one fixed order, and a
// search by a warp; every lane receives the result.
#pragma once

namespace bf::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Over `lanes` (a power of two) neighbouring lanes.
template <int lanes = kWarp>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// A NaN in any lane is the result in every lane.
__device__ __forceinline__ float max_nan(float a, float b) {
  float m;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
}
template <int lanes = kWarp>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2)
    x = max_nan(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// The last i < count for which holds(i), which is true up to some i and false from there on; 0
// where it never is. The lanes of a warp, which ask for the same, look at 32 at a time.
template <class Holds>
__device__ __forceinline__ int last_of(int count, Holds holds) {
  const int lane = threadIdx.x % kWarp;
  int low = 0;
  while (count > 1) {
    const int step = (count + kWarp - 1) / kWarp, i = lane * step;
    const unsigned found = __ballot_sync(kAllLanes, i < count && holds(low + i));
    const int last = found ? 31 - __clz(static_cast<int>(found)) : 0;
    low += last * step;
    count = min(step, count - last * step);
  }
  return low;
}

// Over the first `warps` warps of the block, all of which call it. scratch: `warps` floats of
// shared memory that the next call may not use again: two taken in turn serve any number of calls.
template <int warps>
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (warps == 1) return x;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) sum += scratch[w];
  return sum;
}

}  // namespace
}  // namespace bf::cuda
