// Warp-level instructions: shuffles, votes, matches and reductions; every result is written by
// lane.
#include <cuda_runtime.h>

// out [7][32]: idx, up, down, xor, the same inside halves of a warp (width 16), and a 64-bit
// shuffle's low word.
extern "C" __global__ void shuffles(const int* x, int* out) {
  const int lane = threadIdx.x, value = x[lane];
  out[0 * 32 + lane] = __shfl_sync(~0u, value, 5);
  out[1 * 32 + lane] = __shfl_up_sync(~0u, value, 3);
  out[2 * 32 + lane] = __shfl_down_sync(~0u, value, 7);
  out[3 * 32 + lane] = __shfl_xor_sync(~0u, value, 9);
  out[4 * 32 + lane] = __shfl_sync(~0u, value, lane + 1, 16);
  out[5 * 32 + lane] = __shfl_down_sync(~0u, value, 7, 16);
  const long long wide = (long long)value << 32 | (unsigned)~value;
  out[6 * 32 + lane] = (int)__shfl_xor_sync(~0u, wide, 1);
}

// out [8][32]: ballot, any, all, match_any, match_all, and redux add, max, xor; odd lanes take the
// second branch.
extern "C" __global__ void votes(const int* x, unsigned* out) {
  const int lane = threadIdx.x, value = x[lane];
  out[0 * 32 + lane] = __ballot_sync(~0u, value > 0);
  out[1 * 32 + lane] = __any_sync(~0u, value == 3);
  out[2 * 32 + lane] = __all_sync(~0u, value < 100);
  out[3 * 32 + lane] = __match_any_sync(~0u, value);
  int same;
  __match_all_sync(~0u, value, &same);
  out[4 * 32 + lane] = same;
  const unsigned odd = 0xAAAAAAAAu;
  unsigned sum;
  if (lane & 1)
    sum = __reduce_add_sync(odd, value);
  else
    sum = __popc(__ballot_sync(~odd, value < 0));
  __syncwarp();
  out[5 * 32 + lane] = sum;
  out[6 * 32 + lane] = __reduce_max_sync(~0u, value);
  out[7 * 32 + lane] = __reduce_xor_sync(~0u, (unsigned)value);
}

// Lanes that leave a loop at different times meet again: out[lane] = the number of Collatz steps
// from lane + 1.
extern "C" __global__ void divergence(int* out) {
  unsigned n = threadIdx.x + 1;
  int steps = 0;
  while (n != 1) {
    n = n & 1 ? 3 * n + 1 : n / 2;
    ++steps;
  }
  __syncwarp();
  out[threadIdx.x] = steps + 1000 * __popc(__ballot_sync(~0u, true));
}
