// Forward of attention: one block owns 64 queries of one head and walks the keys of its sequence.
#pragma once
#include "attention/block.cuh"

namespace bf::cuda {
namespace {

// Keys of a step: two steps' keys and values lie in shared memory beside the queries.
template <class T, int D>
constexpr int kForwardKeys = sizeof(T) == 2 ? 64
                             : D == 128     ? 16
                                            : 32;

template <class T, int D>
constexpr std::size_t kForwardShared = (kBlock + 4 * kForwardKeys<T, D>)*HeadTile<T, D>::kRowBytes;

// The running maximum and sum of two rows (g and g + 8) of a warp (Milakov and Gimelshein 2018), in
// powers of two. The sum is this lane's share until `finish`.
struct OnlineSoftmax {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  // Scores become 2^(score - max) of their row; `rescale` is what earlier sums are multiplied by.
  template <int N>
  __device__ __forceinline__ void step(float (&scores)[N / 8][4], float (&rescale)[2]) {
    float base[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = max[half];
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
        most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      base[half] = finite_base(most);
      rescale[half] = power2(max[half] - base[half]);
      max[half] = most;
      sum[half] *= rescale[half];
    }
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        scores[n][e] = power2(scores[n][e] - base[e / 2]);
        sum[e / 2] += scores[n][e];
      }
  }

  __device__ __forceinline__ void finish() {
    sum[0] = warp_sum<4>(sum[0]);
    sum[1] = warp_sum<4>(sum[1]);
  }
  // log sum exp of a row, natural.
  __device__ __forceinline__ float lse(int half) const {
    return max[half] * kLn2 + logf(sum[half]);
  }
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 || D == 128 ? 2 : 4)
    attention_fwd_kernel(const AttentionFwd p, const bool vector) {
  constexpr int N = kForwardKeys<T, D>, kKeyBytes = N * HeadTile<T, D>::kRowBytes;
  constexpr int kStepBytes = 2 * kKeyBytes;
  extern __shared__ __align__(kAlign) unsigned char shared[];
  const int head = blockIdx.y, size = static_cast<int>(p.head_size);
  const long width = p.heads * p.head_size;
  const int sequences = static_cast<int>(p.sequences);

  const Spare spare = find_spare(p.cu_seqlens, p.sequences, p.tokens, blockIdx.x);
  zero_rows(head_rows<T>(p.out, width, 0, head, size, vector), spare.first, spare.end);
  for (long i = spare.first + threadIdx.x; p.lse && i < spare.end; i += kThreads)
    p.lse[head * p.tokens + i] = 0.0f;

  const Work work = find_work(p.cu_seqlens, sequences, blockIdx.x);
  if (work.first >= work.length) return;
  const auto source = [&](int which) {
    return head_rows<const T>(p.qkv, p.qkv_stride, work.start, which * p.heads + head, size,
                              vector);
  };
  unsigned char* const steps = shared + kBlock * HeadTile<T, D>::kRowBytes;
  TileCopies<T, D, kBlock, 1>({source(0)}, work.first, work.length).load(shared);
  TileCopies<T, D, N, 2> copies({source(1), source(2)}, 0, work.length);
  copies.load(steps);
  cp_async_commit();

  const int warp = threadIdx.x / kWarp, query = work.first + warp * 16;
  unsigned char* const mine = shared + warp * 16 * HeadTile<T, D>::kRowBytes;
  const DropoutBits bits = dropout_bits(p.dropout, head, work.sequence);
  const float scale = p.scale * kLog2E;
  const LanePlace<T, D> place;
  OnlineSoftmax softmax;
  float out[D / 8][4] = {};
  for (int key = 0, at = 0; key < work.length; key += N, at ^= kStepBytes) {
    const int left = work.length - key;
    cp_async_wait<0>();
    __syncthreads();
    if (left > N) {
      copies.load(steps + (at ^ kStepBytes));
      cp_async_commit();
    }
    const unsigned char* tile = steps + at;
    float scores[N / 8][4] = {};
    product_nt<T, D, N>(scores, mine, tile, place, p.gpu.tf32);
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] *= scale;
    if (left < N) mask_columns<N>(scores, left);
    float rescale[2];
    softmax.step<N>(scores, rescale);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) out[n][e] *= rescale[e / 2];
    if (p.dropout.seed) {
#pragma unroll
      for (int n = 0; n < N / 8; n += 2) {
        const unsigned keep = bits.of<false>(query, key + n * 8);
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (!(keep >> e & 1)) scores[n + e / 4][e % 4] = 0.0f;
      }
    }
    product_nn<T, D, N>(out, scores, tile + kKeyBytes, place, p.gpu.tf32);
  }

  softmax.finish();
  const float kept = p.dropout.seed ? p.dropout.scale : 1.0f;
  const float inverse[2] = {kept / softmax.sum[0], kept / softmax.sum[1]};
  __syncwarp();
  store_rows<T, D>(mine, out, inverse, head_rows<T>(p.out, width, work.start, head, size, vector),
                   query, work.length);
  if (!p.lse) return;
  const int lane = threadIdx.x % kWarp, row = query + lane / 4;
  float* const lse = p.lse + head * p.tokens + work.start;
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (lane % 4 == half && row + half * 8 < work.length) lse[row + half * 8] = softmax.lse(half);
}

}  // namespace
}  // namespace bf::cuda
