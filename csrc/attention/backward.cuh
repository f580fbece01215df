// Backward of attention. Two kernels of one shape. A block owns 64 rows of one head, 16 a warp, and
// walks the columns of the same sequence; rows are queries and columns keys (dQ), or the other way
// round (dK and dV):
//   scores = rows . columns (q k^T, or its transpose), probability P = 2^(scale scores - lse)
//   dP = (dout v^T, or its transpose), dropped and scaled as P was, dS = P (dP - delta)
//   dQ = scale dS k;   dK = scale dS^T q, dV = dropped(P)^T dout
// The dQ kernel computes delta[q] = sum(dout[q] out[q]) first and leaves it for the other.
#pragma once
#include "attention/block.cuh"

namespace bf::cuda {
namespace {

// Columns of a step: two steps' tiles lie in shared memory beside the two tiles of the rows.
template <class T, int D>
constexpr int kBackwardColumns = sizeof(T) == 4 ? (D == 128 ? 16 : 32)
                                 : D == 128     ? 32
                                                : 64;

template <class T, int D>
constexpr std::size_t kBackwardShared =
    (2 * kBlock + 4 * kBackwardColumns<T, D>)*HeadTile<T, D>::kRowBytes +
    4 * kBackwardColumns<T, D> * sizeof(float);

// delta of a warp's 16 rows from dout (in its tile) and out (in memory): every lane receives those
// of its rows g and g + 8, and those inside go to `delta`.
template <class T, int D>
__device__ __forceinline__ void row_products(const unsigned char* dout, const Rows<const T>& out,
                                             int first, int end, float* delta, float (&mine)[2]) {
  using Shape = HeadTile<T, D>;
  constexpr int kRows = kWarp / Shape::kChunks;  // in one go, kChunks lanes a row
  const int lane = threadIdx.x % kWarp, g = lane / 4, chunk = lane % Shape::kChunks;
#pragma unroll
  for (int i = 0; i < 16 / kRows; ++i) {
    const int row = i * kRows + lane / Shape::kChunks;
    const bool inside = first + row < end;
    const T* from = out.data + (inside ? first + row : 0) * out.stride;
    const Group<T> a = *reinterpret_cast<const Group<T>*>(dout + Shape::at(row, chunk));
    const Group<T> b =
        load_chunk(from, chunk * Shape::kElements, inside ? out.size : 0, out.vector);
    float sum = 0;
#pragma unroll
    for (int e = 0; e < Shape::kElements; ++e)
      sum = fmaf(to_float(a.values[e]), to_float(b.values[e]), sum);
    sum = warp_sum<Shape::kChunks>(sum);
    if (inside && chunk == 0) delta[first + row] = sum;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int wanted = g + 8 * half;
      const float found = __shfl_sync(kAllLanes, sum, wanted % kRows * Shape::kChunks);
      if (wanted / kRows == i) mine[half] = found;
    }
  }
}

// lse (in powers of two) and delta of the queries that a lane's elements belong to.
template <class T, int D, bool kKeys>
__device__ __forceinline__ void backward_step(const AttentionBwd& p, const unsigned char* rows,
                                              const unsigned char* columns,
                                              const float (&row_statistics)[2][2],
                                              const float* column_statistics, int valid,
                                              const LanePlace<T, D>& place, const DropoutBits& bits,
                                              int row0, int column0, float (&first)[D / 8][4],
                                              float (&second)[kKeys ? D / 8 : 1][4]) {
  constexpr int N = kBackwardColumns<T, D>, kBytes = HeadTile<T, D>::kRowBytes;
  const int t = threadIdx.x % 4;
  float s[N / 8][4] = {}, dp[N / 8][4] = {};
  product_nt<T, D, N>(s, rows, columns, place, p.gpu.tf32);
  product_nt<T, D, N>(dp, rows + kBlock * kBytes, columns + N * kBytes, place, p.gpu.tf32);
  const float scale = p.scale * kLog2E;
#pragma unroll
  for (int n = 0; n < N / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float lse = kKeys ? column_statistics[n * 8 + 2 * t + e % 2] : row_statistics[0][e / 2];
      s[n][e] = power2(fmaf(s[n][e], scale, -lse));
    }
  if (valid < N) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (n * 8 + 2 * t + e % 2 >= valid) s[n][e] = 0.0f;
  }
#pragma unroll
  for (int n = 0; n < N / 8; n += 2) {
    const unsigned keep = p.dropout.seed ? bits.of<kKeys>(row0, column0 + n * 8) : ~0u;
    const float kept = p.dropout.seed ? p.dropout.scale : 1.0f;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      float &x = s[n + e / 4][e % 4], &dx = dp[n + e / 4][e % 4];
      const bool stays = keep >> e & 1;
      const int column = (n + e / 4) * 8 + 2 * t + e % 2;
      const float delta = kKeys ? column_statistics[N + column] : row_statistics[1][e % 4 / 2];
      dx = x * ((stays ? dx * kept : 0.0f) - delta);
      x = stays ? x : 0.0f;
    }
  }
  product_nn<T, D, N>(first, dp, columns, place, p.gpu.tf32);
  if constexpr (kKeys) product_nn<T, D, N>(second, s, columns + N * kBytes, place, p.gpu.tf32);
}

template <class T, int D, bool kKeys>
__global__ void __launch_bounds__(kThreads, 2)
    attention_bwd_kernel(const AttentionBwd p, const bool vector) {
  constexpr int N = kBackwardColumns<T, D>, kBytes = HeadTile<T, D>::kRowBytes;
  constexpr int kStepBytes = 2 * N * kBytes;
  extern __shared__ __align__(kAlign) unsigned char shared[];
  const int head = blockIdx.y, size = static_cast<int>(p.head_size);
  const long width = p.heads * p.head_size;
  const int sequences = static_cast<int>(p.sequences);
  const auto gradient = [&](int which, long token) {
    return head_rows<T>(p.dqkv, 3 * width, token, which * p.heads + head, size, vector);
  };
  const Spare spare = find_spare(p.cu_seqlens, p.sequences, p.tokens, blockIdx.x);
  zero_rows(gradient(kKeys ? 1 : 0, 0), spare.first, spare.end);
  if (kKeys) zero_rows(gradient(2, 0), spare.first, spare.end);

  const Work work = find_work(p.cu_seqlens, sequences, blockIdx.x);
  if (work.first >= work.length) return;
  const auto part = [&](int which) {
    return head_rows<const T>(p.qkv, p.qkv_stride, work.start, which * p.heads + head, size,
                              vector);
  };
  const Rows<const T> dout = head_rows<const T>(p.dout, width, work.start, head, size, vector);
  const Rows<const T> scores_rows = part(kKeys ? 1 : 0), scores_columns = part(kKeys ? 0 : 1);
  const Rows<const T> dp_rows = kKeys ? part(2) : dout, dp_columns = kKeys ? dout : part(2);
  const long statistics = head * p.tokens + work.start;
  const float* const lse = p.lse + statistics;
  float* const delta = static_cast<float*>(p.gpu.workspace) + statistics;

  unsigned char* const steps = shared + 2 * kBlock * kBytes;
  float* const columns = reinterpret_cast<float*>(steps + 4 * N * kBytes);
  TileCopies<T, D, kBlock, 2>({scores_rows, dp_rows}, work.first, work.length).load(shared);
  TileCopies<T, D, N, 2> copies({scores_columns, dp_columns}, 0, work.length);
  const auto load_step = [&](int first, int parity) {
    copies.load(steps + parity * kStepBytes);
    cp_async_commit();
    if (kKeys && threadIdx.x < N) {
      const int query = first + threadIdx.x;
      float* at = columns + parity * 2 * N + threadIdx.x;
      at[0] = query < work.length ? lse[query] * kLog2E : 0.0f;
      at[N] = query < work.length ? delta[query] : 0.0f;
    }
  };
  load_step(0, 0);

  const int warp = threadIdx.x / kWarp, row = work.first + warp * 16;
  unsigned char* const mine = shared + warp * 16 * kBytes;
  const DropoutBits bits = dropout_bits(p.dropout, head, work.sequence);
  const LanePlace<T, D> place;
  float rows[2][2] = {};  // lse and delta of the rows g and g + 8
  if constexpr (!kKeys) {
    cp_async_wait<0>();
    __syncthreads();
    const Rows<const T> out = head_rows<const T>(p.out, width, work.start, head, size, vector);
    row_products<T, D>(mine + kBlock * kBytes, out, row, work.length, delta, rows[1]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = row + threadIdx.x % kWarp / 4 + 8 * half;
      rows[0][half] = query < work.length ? lse[query] * kLog2E : 0.0f;
    }
  }
  float first[D / 8][4] = {}, second[kKeys ? D / 8 : 1][4] = {};
  for (int column = 0, parity = 0; column < work.length; column += N, parity ^= 1) {
    const int left = work.length - column;
    cp_async_wait<0>();
    __syncthreads();
    if (left > N) load_step(column + N, parity ^ 1);
    backward_step<T, D, kKeys>(p, mine, steps + parity * kStepBytes, rows, columns + parity * 2 * N,
                               left, place, bits, row, column, first, second);
  }
  const float scale[2] = {p.scale, p.scale};
  __syncwarp();
  store_rows<T, D>(mine, first, scale, gradient(kKeys ? 1 : 0, work.start), row, work.length);
  if constexpr (kKeys) {
    const float kept = p.dropout.seed ? p.dropout.scale : 1.0f, both[2] = {kept, kept};
    store_rows<T, D>(mine + kBlock * kBytes, second, both, gradient(2, work.start), row,
                     work.length);
  }
}

}  // namespace
}  // namespace bf::cuda
