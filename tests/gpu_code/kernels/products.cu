// Tensor-core products: fragments filled by the tables of the PTX ISA, and a pipelined product by
// ldmatrix and cp.async.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// One warp: out [16][8] = a [16][16] b [16][8], each lane gathering its elements as the ISA's
// figures place them.
template <typename T>
__device__ void fragments(const T* a, const T* b, float* out) {
  const int group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
  T held_a[8], held_b[4];
  for (int i = 0; i < 8; ++i)
    held_a[i] = a[(group + i / 2 % 2 * 8) * 16 + pair + i % 2 + i / 4 * 8];
  for (int i = 0; i < 4; ++i) held_b[i] = b[(pair + i % 2 + i / 2 * 8) * 8 + group];
  unsigned bits_a[4], bits_b[2];
  memcpy(bits_a, held_a, 16);
  memcpy(bits_b, held_b, 8);
  float d[4] = {};
  mma(d, bits_a, bits_b, T());
  for (int i = 0; i < 4; ++i) out[(group + i / 2 * 8) * 8 + pair + i % 2] = d[i];
}

extern "C" __global__ void fragments_f16(const __half* a, const __half* b, float* out) {
  fragments(a, b, out);
}
extern "C" __global__ void fragments_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b,
                                          float* out) {
  fragments(a, b, out);
}

// One warp: out [16][8] = a [16][8] b [8][8] in tf32.
extern "C" __global__ void fragments_tf32(const unsigned* a, const unsigned* b, float* out) {
  const int group = threadIdx.x / 4, in = threadIdx.x % 4;
  float d[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[group * 8 + in]), "r"(a[(group + 8) * 8 + in]), "r"(a[group * 8 + in + 4]),
        "r"(a[(group + 8) * 8 + in + 4]), "r"(b[in * 8 + group]), "r"(b[(in + 4) * 8 + group]));
  for (int i = 0; i < 4; ++i) out[(group + i / 2 * 8) * 8 + in * 2 + i % 2] = d[i];
}

constexpr int kStages = 3, kTile = 16, kColumns = 64;

__device__ void copy(const void* to, const void* from, int bytes) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)),
      "l"(from), "r"(bytes)
      : "memory");
}

// out [64][64] = a [64][k] b [k][64]: 4 warps of 16 rows; k a multiple of 8, its last tile filled
// up with zeros.
template <typename T>
__device__ void pipelined(const T* a, const T* b, float* out, int k) {
  __shared__ __align__(16) T tile_a[kStages][64][kTile + 8], tile_b[kStages][kTile][kColumns + 8];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, tiles = (k + kTile - 1) / kTile;
  auto fetch = [&](int tile) {
    const int row_a = tid / 2, k_a = tile * kTile + tid % 2 * 8, row_b = tid / 8,
              k_b = tile * kTile + row_b;
    copy(&tile_a[tile % kStages][row_a][tid % 2 * 8], a + row_a * k + min(k_a, k - 8),
         k_a < k ? 16 : 0);
    copy(&tile_b[tile % kStages][row_b][tid % 8 * 8], b + min(k_b, k - 1) * kColumns + tid % 8 * 8,
         k_b < k ? 16 : 0);
  };
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < tiles) fetch(tile);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  float sums[8][4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();
    if (tile + kStages - 1 < tiles) fetch(tile + kStages - 1);
    asm volatile("cp.async.commit_group;" ::: "memory");
    unsigned frag_a[4], frag_b[4];
    const T* from_a = &tile_a[tile % kStages][warp * 16 + lane % 16][lane / 16 * 8];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(frag_a[0]), "=r"(frag_a[1]), "=r"(frag_a[2]), "=r"(frag_a[3])
                 : "r"((unsigned)__cvta_generic_to_shared(from_a))
                 : "memory");
    for (int pair = 0; pair < 4; ++pair) {
      const T* from_b = &tile_b[tile % kStages][lane % 16][pair * 16 + lane / 16 * 8];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(frag_b[0]), "=r"(frag_b[1]), "=r"(frag_b[2]), "=r"(frag_b[3])
                   : "r"((unsigned)__cvta_generic_to_shared(from_b))
                   : "memory");
      mma(sums[pair * 2], frag_a, {frag_b[0], frag_b[1]}, T());
      mma(sums[pair * 2 + 1], frag_a, {frag_b[2], frag_b[3]}, T());
    }
  }
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i)
      out[(warp * 16 + lane / 4 + i / 2 * 8) * kColumns + n * 8 + lane % 4 * 2 + i % 2] =
          sums[n][i];
}

extern "C" __global__ void pipelined_f16(const __half* a, const __half* b, float* out, int k) {
  pipelined(a, b, out, k);
}
extern "C" __global__ void pipelined_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b,
                                          float* out, int k) {
  pipelined(a, b, out, k);
}
