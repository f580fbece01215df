// Shared memory, atomics and asynchronous copies.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// out [columns][rows] = x [rows][columns]^T through a 32 x 33 tile; blocks of 32 x 8 threads.
extern "C" __global__ void transpose(const float* x, float* out, int rows, int columns) {
  __shared__ float tile[32][33];
  const int column = blockIdx.x * 32 + threadIdx.x, top = blockIdx.y * 32;
  for (int y = threadIdx.y; y < 32; y += 8)
    if (top + y < rows && column < columns) tile[y][threadIdx.x] = x[(top + y) * columns + column];
  __syncthreads();
  const int row = top + threadIdx.x, left = blockIdx.x * 32;
  for (int y = threadIdx.y; y < 32; y += 8)
    if (left + y < columns && row < rows) out[(left + y) * rows + row] = tile[threadIdx.x][y];
}

// counts [16] of x % 16 by shared and global atomics; found: max, min, and, or, xor, a sum by CAS,
// float and double sums.
extern "C" __global__ void atomics(const int* x, int size, int* counts, int* found, float* sum,
                                   double* sum64) {
  __shared__ int local[16];
  const int tid = threadIdx.x, i = blockIdx.x * blockDim.x + tid;
  if (tid < 16) local[tid] = 0;
  __syncthreads();
  if (i < size) {
    const int value = x[i];
    atomicAdd(&local[value & 15], 1);
    atomicMax(found + 0, value);
    atomicMin(found + 1, value);
    atomicAnd(found + 2, value);
    atomicOr(found + 3, value);
    atomicXor(found + 4, value);
    int old = found[5], assumed;
    do {
      assumed = old;
      old = atomicCAS(found + 5, assumed, assumed + value);
    } while (old != assumed);
    atomicAdd(sum, (float)value);
    atomicAdd(sum64, (double)value);
  }
  __syncthreads();
  if (tid < 16) atomicAdd(counts + tid, local[tid]);
}

// Half sums: out [2] of one half2 += x by every thread.
extern "C" __global__ void half_atomics(const __half2* x, __half2* out) {
  atomicAdd(out, x[blockIdx.x * blockDim.x + threadIdx.x]);
}

// The last block to arrive adds what the others left: total = sum of x [gridDim.x * 64].
extern "C" __global__ void last_block(const int* x, int* partial, unsigned* arrived, int* total) {
  __shared__ bool last;
  int value = __reduce_add_sync(~0u, x[blockIdx.x * 64 + threadIdx.x]);
  if (threadIdx.x % 32 == 0) atomicAdd(partial + blockIdx.x, value);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int all = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) all += atomicAdd(partial + block, 0);
    *total = all;
  }
}

// out [64] ints: 16-byte copies of which only `bytes` come from x, the rest is zero; every lane
// waits for all.
extern "C" __global__ void short_copies(const int* x, int* out, int bytes) {
  __shared__ __align__(16) int tile[64];
  const unsigned to = (unsigned)__cvta_generic_to_shared(tile + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(x + 4 * threadIdx.x),
               "r"(bytes)
               : "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  for (int i = threadIdx.x; i < 64; i += blockDim.x) out[i] = tile[63 - i];
}
