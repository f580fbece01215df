// Tiles of attention in shared memory, and the products of one warp on them.
//
// A tile is [rows, D] elements, a row D elements wide whatever the head size (the rest is zeros).
// It is cut in chunks of 16 bytes; chunk c of row r lies at c ^ swizzle(r), so that eight rows of
// one column of chunks fall on eight different bank groups: neither ldmatrix nor the 4-byte reads
// of the fp32 paths conflict. A warp computes 16 rows; lane = 4 g + t holds of every 16 x 8 block
// the elements (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1), as mma.sync does, in every dtype.
#pragma once
#include <type_traits>

#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

namespace bf::cuda {
namespace {

constexpr int kThreads = 128;  // of a block: 4 warps of 16 rows
constexpr int kBlock = 64;     // rows that a block owns
constexpr int kAlign = 512;    // of shared memory: the longest row of a tile

template <class T, int D>
struct HeadTile {
  static constexpr int kElements = kGroup<T>;    // of a chunk
  static constexpr int kChunks = D / kElements;  // of a row
  static constexpr int kRowBytes = D * sizeof(T);
  static constexpr int kSkip = kChunks < 8 ? 8 / kChunks : 1;  // rows that share 128 bytes

  static constexpr __host__ __device__ int swizzle(int row) {
    return row / kSkip % (8 / kSkip) << 4;
  }
  // Byte offset of a chunk. Tiles lie on whole rows, so that even chunks further on are told apart
  // by bits: at(row, chunk + k) is at(row, chunk) ^ k << 4 for chunk 0 or 1.
  static __device__ __forceinline__ int at(int row, int chunk) {
    return row * kRowBytes + (chunk << 4 ^ swizzle(row));
  }
  // Byte offset of an element.
  static __device__ __forceinline__ int element(int row, int column) {
    return at(row, column / kElements) + column % kElements * static_cast<int>(sizeof(T));
  }
};

// Where a lane reads its part of the first 16 rows and 2 chunks of a tile, 8 rows at a time down
// the rows first or across the chunks first. All others lie at constants from there.
template <class T, int D>
struct LanePlace {
  int down, across;

  __device__ __forceinline__ LanePlace() {
    const int lane = threadIdx.x % kWarp;
    down = keep(HeadTile<T, D>::at(lane % 16, lane / 16));
    across = keep(HeadTile<T, D>::at(lane % 8 + lane / 16 * 8, lane / 8 % 2));
  }
};

// 16 bytes of a row from element `first` on; zeros from `size` on.
template <class T>
__device__ __forceinline__ Group<T> load_chunk(const T* row, int first, int size, bool vector) {
  if (vector && first < size) return *reinterpret_cast<const Group<T>*>(row + first);
  Group<T> chunk;
#pragma unroll
  for (int e = 0; e < kGroup<T>; ++e)
    chunk.values[e] = first + e < size ? row[first + e] : from_float<T>(0.0f);
  return chunk;
}

// Two neighbouring values rounded to T, in one register (16-bit types) or two.
__device__ __forceinline__ float2 round_pair(float x, float y, float) { return {x, y}; }
__device__ __forceinline__ __half2 round_pair(float x, float y, __half) {
  return __floats2half2_rn(x, y);
}
__device__ __forceinline__ __nv_bfloat162 round_pair(float x, float y, __nv_bfloat16) {
  return __floats2bfloat162_rn(x, y);
}
template <class T>
__device__ __forceinline__ unsigned pack(float x, float y) {
  const auto pair = round_pair(x, y, T());
  return *reinterpret_cast<const unsigned*>(&pair);
}

// What is in global memory: rows `stride` elements apart, each `size` <= D elements. `vector`:
// every row starts on 16 bytes and `size` is a multiple of a chunk.
template <class T>
struct Rows {
  T* data;
  long stride;
  int size;
  bool vector;
};

// A thread's share of what a block copies, asynchronously where it can: tiles of ROWS rows of each
// source, one source's behind the other's, from row `first` on; rows from `end` on become zeros. A
// thread copies a chunk of every kStep-th row, at addresses that differ by constants.
template <class T, int D, int ROWS, int SOURCES>
struct TileCopies {
  using Shape = HeadTile<T, D>;
  static constexpr int kStep = kThreads / Shape::kChunks;
  static_assert(ROWS % kStep == 0, "every thread copies as many chunks");
  const char* from[SOURCES];
  long step[SOURCES];      // bytes to the next chunk
  int to, rows, elements;  // the first chunk's place in its tile; what is left from there on
  bool vector;

  __device__ __forceinline__ TileCopies(const Rows<const T> (&sources)[SOURCES], int first, int end)
      : vector(sources[0].vector) {
    const int row = threadIdx.x / Shape::kChunks, chunk = threadIdx.x % Shape::kChunks;
#pragma unroll
    for (int s = 0; s < SOURCES; ++s) {
      const long stride = sources[s].stride * static_cast<long>(sizeof(T));
      from[s] =
          reinterpret_cast<const char*>(sources[s].data) + (first + row) * stride + chunk * 16;
      step[s] = keep(kStep * stride);
    }
    to = keep(Shape::at(row, chunk)), elements = sources[0].size - chunk * Shape::kElements;
    rows = elements > 0 ? end - first - row : 0;
  }
  // Copies the next tiles.
  __device__ __forceinline__ void load(unsigned char* tiles) {
    const auto place = [&](int s, int i) {
      return tiles + (to ^ Shape::swizzle(i * kStep)) + (s * ROWS + i * kStep) * Shape::kRowBytes;
    };
#pragma unroll
    for (int s = 0; s < SOURCES; ++s) {
      const char* p = from[s];
      if (vector) {
#pragma unroll
        for (int i = 0; i < ROWS / kStep; ++i, p = keep(p + step[s]))
          cp_async16(shared_address(place(s, i)), p, i * kStep < rows ? 16 : 0);
      } else {
#pragma unroll 1
        for (int i = 0; i < ROWS / kStep; ++i, p += step[s])
          *reinterpret_cast<Group<T>*>(place(s, i)) =
              load_chunk(reinterpret_cast<const T*>(p), 0, i * kStep < rows ? elements : 0, false);
      }
      from[s] = p;
    }
    rows -= ROWS;
  }
};

// One warp writes its 16 rows of fp32 sums, scaled by scale[0] (rows below 8) and scale[1], into
// the tile and from there to rows [first, end) in memory. All lanes are through with reading the
// tile: a __syncwarp() stands before.
template <class T, int D>
__device__ __forceinline__ void store_rows(unsigned char* tile, const float (&sums)[D / 8][4],
                                           const float (&scale)[2], const Rows<T>& target,
                                           int first, int end) {
  using Shape = HeadTile<T, D>;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned char* to = tile + Shape::element(g + 8 * half, n * 8 + 2 * t);
      const auto pair =
          round_pair(sums[n][2 * half] * scale[half], sums[n][2 * half + 1] * scale[half], T());
      *reinterpret_cast<std::remove_const_t<decltype(pair)>*>(to) = pair;
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Shape::kChunks / 2; ++i) {
    const int index = i * kWarp + lane;
    const int row = index / Shape::kChunks, chunk = index % Shape::kChunks;
    const int column = chunk * Shape::kElements;
    if (first + row >= end || column >= target.size) continue;
    const unsigned char* from = tile + Shape::at(row, chunk);
    T* to = target.data + (first + row) * target.stride + column;
    if (target.vector) {  // as uint4: a struct of elements would be stored one by one
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
#pragma unroll
      for (int e = 0; e < Shape::kElements; ++e)
        if (column + e < target.size) to[e] = reinterpret_cast<const T*>(from)[e];
    }
  }
}

// The whole block writes zeros to rows [first, end).
template <class T>
__device__ __forceinline__ void zero_rows(const Rows<T>& target, long first, long end) {
  const long elements = target.vector ? 16 / sizeof(T) : 1, chunks = target.size / elements;
  for (long i = threadIdx.x; i < (end - first) * chunks; i += kThreads) {
    T* to = target.data + (first + i / chunks) * target.stride + i % chunks * elements;
    if (target.vector)
      *reinterpret_cast<uint4*>(to) = uint4{};
    else
      *to = from_float<T>(0.0f);
  }
}

// c[16, N] += a[16, D] b[N, D]^T on tensor cores, both tiles in shared memory.
template <class T, int D, int N>
__device__ __forceinline__ void product_nt_mma(float (&c)[N / 8][4], const unsigned char* a,
                                               const unsigned char* b,
                                               const LanePlace<T, D>& place) {
  using Shape = HeadTile<T, D>;
  const unsigned left = shared_address(a) + place.down, right = shared_address(b) + place.across;
#pragma unroll
  for (int k = 0; k < Shape::kChunks; k += 2) {
    unsigned fa[4], fb[4];
    ldmatrix_x4(fa, left ^ k << 4);
    round_fragment<T>(fa);
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
      ldmatrix_x4(fb, (right ^ k << 4) + n * 8 * Shape::kRowBytes);
      round_fragment<T>(fb);
      mma(c[n], fa, fb[0], fb[1], T());
      mma(c[n + 1], fa, fb[2], fb[3], T());
    }
  }
}

// The same in fp32 multiply-adds.
template <int D, int N>
__device__ __forceinline__ void product_nt_fp32(float (&c)[N / 8][4], const unsigned char* a,
                                                const unsigned char* b) {
  using Shape = HeadTile<float, D>;
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll 1
  for (int k = 0; k < Shape::kChunks; ++k) {
    const auto low = *reinterpret_cast<const Group<float>*>(a + Shape::at(g, k));
    const auto high = *reinterpret_cast<const Group<float>*>(a + Shape::at(g + 8, k));
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const auto column =
            *reinterpret_cast<const Group<float>*>(b + Shape::at(n * 8 + 2 * t + e, k));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          c[n][e] = fmaf(low.values[i], column.values[i], c[n][e]);
          c[n][2 + e] = fmaf(high.values[i], column.values[i], c[n][2 + e]);
        }
      }
    }
  }
}

// c[16, D] += a[16, N] b[N, D]: a in registers, as the products above leave it, rounded to T here.
template <class T, int D, int N>
__device__ __forceinline__ void product_nn_16bit(float (&c)[D / 8][4], const float (&a)[N / 8][4],
                                                 const unsigned char* b,
                                                 const LanePlace<T, D>& place) {
  using Shape = HeadTile<T, D>;
  const unsigned right = shared_address(b) + place.down;
#pragma unroll
  for (int n = 0; n < N / 8; n += 2) {
    const unsigned fa[4] = {pack<T>(a[n][0], a[n][1]), pack<T>(a[n][2], a[n][3]),
                            pack<T>(a[n + 1][0], a[n + 1][1]), pack<T>(a[n + 1][2], a[n + 1][3])};
#pragma unroll
    for (int d = 0; d < D / 8; d += 2) {
      unsigned fb[4];
      ldmatrix_x4_trans(fb, (right ^ d << 4) + n * 8 * Shape::kRowBytes);
      mma(c[d], fa, fb[0], fb[1], T());
      mma(c[d + 1], fa, fb[2], fb[3], T());
    }
  }
}

// tf32: a sum over rows of b has no order, so inner index t stands for row 2t and t + 4 for row
// 2t + 1, which are the ones that this lane holds of a.
template <int D, int N>
__device__ __forceinline__ void product_nn_tf32(float (&c)[D / 8][4], const float (&a)[N / 8][4],
                                                const unsigned char* b) {
  using Shape = HeadTile<float, D>;
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  const int even = Shape::element(2 * t, g), odd = Shape::element(2 * t + 1, g);
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const unsigned char* const rows = b + n * 8 * Shape::kRowBytes;
    const unsigned fa[4] = {to_tf32(a[n][0]), to_tf32(a[n][2]), to_tf32(a[n][1]), to_tf32(a[n][3])};
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      const float x = *reinterpret_cast<const float*>(rows + (even ^ d << 5));
      const float y = *reinterpret_cast<const float*>(rows + (odd ^ d << 5));
      mma(c[d], fa, to_tf32(x), to_tf32(y), 0.0f);
    }
  }
}

template <int D, int N>
__device__ __forceinline__ void product_nn_fp32(float (&c)[D / 8][4], const float (&a)[N / 8][4],
                                                const unsigned char* b) {
  using Shape = HeadTile<float, D>;
  const int lane = threadIdx.x % kWarp, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
#pragma unroll 1
    for (int k = 0; k < 8; ++k) {
      const int holder = lane / 4 * 4 + k / 2;
      const float low = __shfl_sync(kAllLanes, k % 2 ? a[n][1] : a[n][0], holder);
      const float high = __shfl_sync(kAllLanes, k % 2 ? a[n][3] : a[n][2], holder);
#pragma unroll
      for (int d = 0; d < D / 8; ++d) {
        const float2 pair =
            *reinterpret_cast<const float2*>(b + Shape::element(n * 8 + k, d * 8 + 2 * t));
        c[d][0] = fmaf(low, pair.x, c[d][0]);
        c[d][1] = fmaf(low, pair.y, c[d][1]);
        c[d][2] = fmaf(high, pair.x, c[d][2]);
        c[d][3] = fmaf(high, pair.y, c[d][3]);
      }
    }
  }
}

template <class T, int D, int N>
__device__ __forceinline__ void product_nt(float (&c)[N / 8][4], const unsigned char* a,
                                           const unsigned char* b, const LanePlace<T, D>& place,
                                           bool tensor_cores) {
  if constexpr (sizeof(T) == 4) {
    if (!tensor_cores) return product_nt_fp32<D, N>(c, a, b);
  }
  product_nt_mma<T, D, N>(c, a, b, place);
}

template <class T, int D, int N>
__device__ __forceinline__ void product_nn(float (&c)[D / 8][4], const float (&a)[N / 8][4],
                                           const unsigned char* b, const LanePlace<T, D>& place,
                                           bool tensor_cores) {
  if constexpr (sizeof(T) == 4) {
    if (tensor_cores)
      product_nn_tf32<D, N>(c, a, b);
    else
      product_nn_fp32<D, N>(c, a, b);
  } else {
    product_nn_16bit<T, D, N>(c, a, b, place);
  }
}

}  // namespace
}  // namespace bf::cuda
