// Kernels of rows around the layers: first rows of sequences and such rows' way back among zeros, a
// padded batch's tokens laid end to end and their way back, the sum of two gradients that meet.
// Every row, and every element of a sum, has one owner.
#pragma once
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"
#include "encoder/padded.h"

namespace bf::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsAtOnce = kThreads / kWarp;
constexpr int kPackThreads = 512, kPackWarps = kPackThreads / kWarp;

// to += from; in fp32, rounded once.
template <class T>
__global__ void __launch_bounds__(kThreads) add_rows(T* to, const T* from, long size) {
  const long first = (static_cast<long>(blockIdx.x) * kThreads + threadIdx.x) * kGroup<T>;
  const long left = size - first;
  if (left <= 0) return;
  const bool vector = left >= kGroup<T>;
  float sum[kGroup<T>];
  load_group(sum, to + first, left, vector);
  add_group(sum, from + first, left, vector);
  store_group(to + first, sum, left, vector);
}

// A row of `bytes` from `from`, or zeros where that is null, by `threads` threads.
template <class Word>
__device__ __forceinline__ void copy_row(const char* from, char* to, long bytes, int thread,
                                         int threads) {
#pragma unroll 1
  for (long i = thread * sizeof(Word); i < bytes; i += threads * sizeof(Word))
    *reinterpret_cast<Word*>(to + i) = from ? *reinterpret_cast<const Word*>(from + i) : Word{};
}
__device__ __forceinline__ void copy_row(const char* from, char* to, long bytes, bool vector,
                                         int thread, int threads) {
  vector ? copy_row<uint4>(from, to, bytes, thread, threads)
         : copy_row<std::uint16_t>(from, to, bytes, thread, threads);
}

// A block a sequence. `ones`, where not null, is told that each of these rows is a sequence.
__global__ void __launch_bounds__(kThreads)
    take_first_rows(const char* from, char* to, const std::int32_t* cu_seqlens, std::int32_t* ones,
                    long bytes, bool vector) {
  const long i = blockIdx.x, start = cu_seqlens[i];
  if (ones && threadIdx.x == 0) ones[i] = static_cast<std::int32_t>(i);
  if (ones && threadIdx.x == 0 && i + 1 == gridDim.x)
    ones[i + 1] = static_cast<std::int32_t>(i + 1);
  copy_row(start < cu_seqlens[i + 1] ? from + start * bytes : nullptr, to + i * bytes, bytes,
           vector, threadIdx.x, kThreads);
}

// A block a token: a row where it is its sequence's first, else zeros.
__global__ void __launch_bounds__(kThreads)
    spread_first_rows(const char* from, char* to, const std::int32_t* cu_seqlens, int sequences,
                      long bytes, bool vector) {
  const long token = blockIdx.x;
  const int i = sequence_of(cu_seqlens, sequences, token);
  const bool first = cu_seqlens[i] == token && token < cu_seqlens[i + 1];
  copy_row(first ? from + i * bytes : nullptr, to + token * bytes, bytes, vector, threadIdx.x,
           kThreads);
}

// The real tokens of a padded batch, and where they lie among all.
struct Packed {
  std::int64_t *input_ids, *position_ids, *token_type_ids;  // [batch * length], the real ones first
  std::int32_t* cu_seqlens;                                 // [batch + 1]
  std::int32_t* rows;  // [batch, length]: of the place's token among the real ones; -1: padding
};

// Of the threads with `is`: how many there are in the block, and how many before this one.
struct Ranked {
  int all, before;
  __device__ __forceinline__ Ranked(bool is, int (&counts)[kPackWarps]) : all(0), before(0) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
    const unsigned lanes = __ballot_sync(kAllLanes, is);
    __syncthreads();  // who reads the last counts has them
    if (lane == 0) counts[warp] = __popc(lanes);
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kPackWarps; ++w) {
      all += counts[w];
      before += w < warp ? counts[w] : 0;
    }
    before += __popc(lanes & ((1u << lane) - 1));
  }
};

// A block a sequence, which counts the tokens before it itself, so that no block waits for another.
__global__ void __launch_bounds__(kPackThreads)
    pack_tokens(const PaddedTokens p, const Packed to, const long length) {
  __shared__ int counts[kPackWarps];
  const long first = blockIdx.x * length;
  long row = p.mask ? 0 : first;
  for (long at = 0; p.mask && at < first; at += kPackThreads) {
    const long place = at + threadIdx.x;
    row += __syncthreads_count(place < first && p.mask[place]);
  }
  if (first == 0 && threadIdx.x == 0) to.cu_seqlens[0] = 0;
  for (long at = 0; at < length; at += kPackThreads) {
    const long column = at + threadIdx.x, place = first + column;
    const bool real = column < length && (!p.mask || p.mask[place]);
    const Ranked rank(real, counts);
    const long mine = row + rank.before;
    if (column < length) to.rows[place] = real ? static_cast<std::int32_t>(mine) : -1;
    if (real) {
      to.input_ids[mine] = p.input_ids[place];
      to.position_ids[mine] = p.position_ids ? p.position_ids[place] : column;
      to.token_type_ids[mine] = p.token_type_ids ? p.token_type_ids[place] : 0;
    }
    row += rank.all;
  }
  if (threadIdx.x == 0) to.cu_seqlens[blockIdx.x + 1] = static_cast<std::int32_t>(row);
}

// A warp a place of the padded batch: its token's row, or zeros.
__global__ void __launch_bounds__(kThreads)
    unpack_rows(const char* from, char* to, const std::int32_t* rows, long places, long bytes,
                bool vector) {
  const long place = static_cast<long>(blockIdx.x) * kRowsAtOnce + threadIdx.x / kWarp;
  if (place >= places) return;
  const int row = rows[place];
  copy_row(row < 0 ? nullptr : from + row * bytes, to + place * bytes, bytes, vector,
           threadIdx.x % kWarp, kWarp);
}

}  // namespace
}  // namespace bf::cuda
