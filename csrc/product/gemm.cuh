// The product core: a block computes one tile of c = a b in fp32, a thread's share in registers.
//
// a is [m, k] and b is [k, n]; each lies in memory either along k (rows of k neighbours, as x and
// weight in x weight^T) or across it (rows of m or n neighbours). A tile of either is kept in
// shared memory as it lies in global memory, 64 bytes deep along k, and brought in by cp.async,
// kStages - 1 tiles ahead of the arithmetic. The 16-byte groups of a shared row are exchanged
// (swizzled) so that neither the copies nor the reads of fragments meet a bank twice.
// Rows that are no multiple of 16 bytes, or not aligned, are read element by element instead.
//
// 16-bit elements: mma m16n8k16 on fragments from ldmatrix (transposed where the operand lies
// across k). fp32: the same with tf32 m16n8k8, or, where that is not allowed, fused multiply-adds
// with a thread owning every 4th row and every 8th column (or 4 neighbours) of its warp's part.
// What must hold: all threads of the block call accumulate() and for_each_group() together.
#pragma once
#include <type_traits>

#include "common/async.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

namespace bf::cuda {
namespace {

constexpr int kStages = 4, kDepthBytes = 64;

// Block tile kM x kN, shared by warps that own kWarpM x kWarpN each; `blocks` of them are to fit on
// a multiprocessor's registers.
template <int m, int n, int warp_m, int warp_n, int blocks>
struct Tile {
  static constexpr int kBlocks = blocks;
  static constexpr int kM = m, kN = n, kWarpM = warp_m, kWarpN = warp_n;
  static constexpr int kWarpsN = n / warp_n, kWarps = m / warp_m * kWarpsN;
  static constexpr int kThreads = kWarps * kWarp;
};

// One operand as it lies in memory.
struct Operand {
  const void* data;
  long stride;  // elements between rows
  int rows, columns;
  bool vector;  // 16-byte accesses are possible
};

// A tile of an operand in shared memory: `extent` along m or n, one depth along k.
template <class T, int extent, bool along>
struct SharedTile {
  static constexpr int kDepth = kDepthBytes / sizeof(T);
  static constexpr int kRows = along ? extent : kDepth, kColumns = along ? kDepth : extent;
  static constexpr int kGroups = kColumns / kGroup<T>, kBytes = kRows * kColumns * sizeof(T);

  // Byte offset of a 16-byte group. Along k, 8 rows at one group are read together (ldmatrix); of
  // 16-bit elements across k likewise; of 32-bit ones across k 4 rows at 2 neighbouring groups.
  __device__ static __forceinline__ int offset(int row, int group) {
    const int swizzle = along ? row >> 1 & 3 : sizeof(T) == 2 ? row & 7 : (row & 3) << 1;
    return (row * kGroups + (group ^ swizzle)) * 16;
  }

  // Brings in the tile at (row, column) of the operand, zeros where it ends.
  template <int threads>
  __device__ static __forceinline__ void load(char* shared, const Operand& from, int row,
                                              int column) {
    const T* origin = static_cast<const T*>(from.data) + row * from.stride + column;
    const int rows = from.rows - row, columns = from.columns - column;
    const auto group_at = [&](int i, auto body) {
      const int index = static_cast<int>(threadIdx.x) + i * threads;
      const int r = index / kGroups, group = index % kGroups;
      const int left = min(columns - group * kGroup<T>, kGroup<T>), count = r < rows ? left : 0;
      const T* p = count > 0 ? origin + r * from.stride + group * kGroup<T> : origin;
      body(shared + offset(r, group), p, max(count, 0));
    };
    if (from.vector) {
#pragma unroll
      for (int i = 0; i < kRows * kGroups / threads; ++i)
        group_at(i, [](char* to, const T* p, int count) {
          cp_async16(shared_address(to), p, count * static_cast<int>(sizeof(T)));
        });
    } else {
#pragma unroll 1
      for (int i = 0; i < kRows * kGroups / threads; ++i) group_at(i, gather);
    }
  }

 private:
  __device__ static __forceinline__ void gather(char* to, const T* p, int count) {
    Group<T> group;
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) group.values[e] = e < count ? p[e] : from_float<T>(0.0f);
    *reinterpret_cast<Group<T>*>(to) = group;
  }
};

// The arithmetic of a warp on one depth of both tiles, and where its results lie. Fma: plain fp32.
template <class T, class Tile, bool a_along, bool b_along, bool sums>
struct TensorMath {
  static constexpr int kTilesM = Tile::kWarpM / 16, kTilesN = Tile::kWarpN / 8;
  using A = SharedTile<T, Tile::kM, a_along>;
  using B = SharedTile<T, Tile::kN, b_along>;

  float c[kTilesM][kTilesN][4] = {};
  float total[sums ? kTilesM : 1][4] = {};  // row sums of a, of which 0 (row g) and 2 (g + 8) count

  // Registers of the fragment of 16 rows (of a) or 2 x 8 columns (of b) from `first` on, 32 bytes
  // deep along k from group 2 * step on.
  template <class Shared, bool along, bool left>
  __device__ static __forceinline__ void fragment(unsigned (&r)[4], const char* shared, int first,
                                                  int step) {
    const int lane = threadIdx.x % kWarp, low = lane >> 3 & 1, high = lane >> 4;
    if constexpr (along) {
      const int row = first + lane % 8 + 8 * (left ? low : high);
      ldmatrix_x4(r, shared_address(shared + Shared::offset(row, 2 * step + (left ? high : low))));
    } else if constexpr (sizeof(T) == 2) {
      const int row = 16 * step + lane % 8 + 8 * (left ? high : low);
      ldmatrix_x4_trans(
          r, shared_address(shared + Shared::offset(row, first / 8 + (left ? low : high))));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = first + lane / 4 + 8 * (left ? i & 1 : i >> 1);
        const int row = 8 * step + lane % 4 + 4 * (left ? i >> 1 : i & 1);
        r[i] =
            *reinterpret_cast<const unsigned*>(shared + Shared::offset(row, at / 4) + at % 4 * 4);
      }
    }
  }

  __device__ __forceinline__ void multiply(const char* a, const char* b, int warp_m, int warp_n,
                                           bool sum) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      unsigned left[kTilesM][4], right[kTilesN / 2][4];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i)
        fragment<A, a_along, true>(left[i], a, warp_m + 16 * i, step);
#pragma unroll
      for (int j = 0; j < kTilesN / 2; ++j) {
        fragment<B, b_along, false>(right[j], b, warp_n + 16 * j, step);
        round_fragment<T>(right[j]);
      }
      if (sums && sum) add_rows(left);
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        round_fragment<T>(left[i]);
#pragma unroll
        for (int j = 0; j < kTilesN; ++j)
          mma(c[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1], T{});
      }
    }
  }

  __device__ __forceinline__ void finish() {}

  // 16-bit elements times ones on the tensor cores; fp32 by adds, exact where tf32 would not be.
  __device__ __forceinline__ void add_rows(const unsigned (&left)[kTilesM][4]) {
#pragma unroll
    for (int i = 0; i < (sums ? kTilesM : 0); ++i) {
      if constexpr (sizeof(T) == 2) {
        const unsigned one = std::is_same<T, __half>::value ? 0x3c003c00u : 0x3f803f80u;
        mma(total[i], left[i], one, one, T{});
      } else {
        total[i][0] += __uint_as_float(left[i][0]) + __uint_as_float(left[i][2]);
        total[i][2] += __uint_as_float(left[i][1]) + __uint_as_float(left[i][3]);
      }
    }
  }
  // Calls body(row of the warp's part, sum) in one lane for each row.
  template <class Body>
  __device__ __forceinline__ void for_each_sum(Body body) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < (sums ? kTilesM : 0); ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = total[i][2 * half];
        if constexpr (sizeof(T) == 4) sum = warp_sum<4>(sum);
        if (lane % 4 == 0) body(16 * i + 8 * half + lane / 4, sum);
      }
  }

  // Writes the warp's rows [16 slab, 16 slab + 16) to shared memory, `stride` floats apart.
  __device__ __forceinline__ void write_slab(float* to, int stride, int slab) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int j = 0; j < kTilesN; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* at = to + (lane / 4 + 8 * half) * stride + 8 * j + lane % 4 * 2;
        *reinterpret_cast<float2*>(at) = {c[slab][j][2 * half], c[slab][j][2 * half + 1]};
      }
  }
};

// fp32 by fused multiply-adds: lane = 8 y + x owns the rows y + 4i (a along k) or 4y + 16(i / 4) +
// i % 4 (across), and the columns x + 8j or 4x + 32(j / 4) + j % 4.
template <class Tile, bool a_along, bool b_along, bool sums>
struct FmaMath {
  static constexpr int kM = Tile::kWarpM / 4, kN = Tile::kWarpN / 8;
  using A = SharedTile<float, Tile::kM, a_along>;
  using B = SharedTile<float, Tile::kN, b_along>;

  // The sum over k so far, and that of the depths since it was added to: one long chain of adds
  // would lose twice what torch's products lose.
  static constexpr int kRun = 4;
  float c[kM][kN] = {}, run[kM][kN] = {};
  float total[sums ? kM : 1] = {};
  int depths = 0;

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < kM; ++i)
#pragma unroll
      for (int j = 0; j < kN; ++j) c[i][j] += run[i][j], run[i][j] = 0.0f;
    depths = 0;
  }
  __device__ static __forceinline__ float4 read(const char* shared, int offset) {
    return *reinterpret_cast<const float4*>(shared + offset);
  }
  __device__ __forceinline__ void multiply(const char* a, const char* b, int warp_m, int warp_n,
                                           bool sum) {
    const int x = threadIdx.x % 8, y = threadIdx.x % kWarp / 8;
#pragma unroll 1
    for (int group = 0; group < A::kDepth / 4; ++group) {  // 4 deep along k
      float left[kM][4];
      if constexpr (a_along) {
#pragma unroll
        for (int i = 0; i < kM; ++i) {
          const float4 v = read(a, A::offset(warp_m + y + 4 * i, group));
          left[i][0] = v.x, left[i][1] = v.y, left[i][2] = v.z, left[i][3] = v.w;
        }
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int i = 0; i < kM; i += 4) {
            const float4 v = read(a, A::offset(4 * group + k, warp_m / 4 + y + i));
            left[i][k] = v.x, left[i + 1][k] = v.y, left[i + 2][k] = v.z, left[i + 3][k] = v.w;
          }
      }
      if (sums && sum)
#pragma unroll
        for (int i = 0; i < (sums ? kM : 0); ++i)
          total[i] += (left[i][0] + left[i][1]) + (left[i][2] + left[i][3]);
      if constexpr (b_along) {
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          const float4 v = read(b, B::offset(warp_n + x + 8 * j, group));
#pragma unroll
          for (int i = 0; i < kM; ++i) {
            run[i][j] = fmaf(left[i][0], v.x, run[i][j]);
            run[i][j] = fmaf(left[i][1], v.y, run[i][j]);
            run[i][j] = fmaf(left[i][2], v.z, run[i][j]);
            run[i][j] = fmaf(left[i][3], v.w, run[i][j]);
          }
        }
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int j = 0; j < kN; j += 4) {
            const float4 v = read(b, B::offset(4 * group + k, warp_n / 4 + x + 2 * j));
#pragma unroll
            for (int i = 0; i < kM; ++i) {
              run[i][j] = fmaf(left[i][k], v.x, run[i][j]);
              run[i][j + 1] = fmaf(left[i][k], v.y, run[i][j + 1]);
              run[i][j + 2] = fmaf(left[i][k], v.z, run[i][j + 2]);
              run[i][j + 3] = fmaf(left[i][k], v.w, run[i][j + 3]);
            }
          }
      }
    }
    if (++depths == kRun) finish();
  }
  template <class Body>
  __device__ __forceinline__ void for_each_sum(Body body) const {
    const int x = threadIdx.x % 8, y = threadIdx.x % kWarp / 8;
#pragma unroll
    for (int i = 0; i < (sums ? kM : 0); ++i)
      if (x == 0) body(a_along ? y + 4 * i : 4 * y + 16 * (i / 4) + i % 4, total[i]);
  }
  __device__ __forceinline__ void write_slab(float* to, int stride, int slab) const {
    const int x = threadIdx.x % 8, y = threadIdx.x % kWarp / 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* row = to + (a_along ? y + 4 * i : 4 * y + i) * stride;
      const float (&from)[kN] = c[4 * slab + i];
#pragma unroll
      for (int j = 0; j < kN; ++j)
        row[b_along ? x + 8 * j : 4 * x + 32 * (j / 4) + j % 4] = from[j];
    }
  }
};

template <class T, class Tile, bool a_along, bool b_along, bool sums, bool fma>
using Math = std::conditional_t<fma, FmaMath<Tile, a_along, b_along, sums>,
                                TensorMath<T, Tile, a_along, b_along, sums>>;

// A block's tile: the loop over k and the way out of the registers. Shared memory: kSharedBytes,
// 16-byte aligned.
template <class T, class Tile, bool a_along, bool b_along, bool sums = false, bool fma = false>
struct Core {
  using Arithmetic = Math<T, Tile, a_along, b_along, sums, fma>;
  using A = SharedTile<T, Tile::kM, a_along>;
  using B = SharedTile<T, Tile::kN, b_along>;
  static constexpr int kDepth = A::kDepth, kStageBytes = A::kBytes + B::kBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kSlabStride = Tile::kWarpN + 8;  // neighbouring rows lie 8 banks apart
  static_assert(Tile::kWarps * 16 * kSlabStride * 4 <= kSharedBytes, "the way out needs room");

  Arithmetic math;

  __device__ static __forceinline__ int warp_m() {
    return static_cast<int>(threadIdx.x) / kWarp / Tile::kWarpsN * Tile::kWarpM;
  }
  __device__ static __forceinline__ int warp_n() {
    return static_cast<int>(threadIdx.x) / kWarp % Tile::kWarpsN * Tile::kWarpN;
  }

  // Adds the depths [first, last) of the list of `parts`' depths, part by part: left(part) and
  // right(part) are its operands, `depths` of them each. With `sum` rows of a are summed as well.
  template <class Left, class Right>
  __device__ __forceinline__ void accumulate(char* shared, Left left, Right right, int row,
                                             int column, int depths, int first, int last,
                                             bool sum = false) {
    int part = first / depths, depth = first % depths, loaded = first;
    const auto load_next = [&](int stage) {
      if (loaded < last) {
        char* to = shared + stage * kStageBytes;
        const int k = depth * kDepth;
        A::template load<Tile::kThreads>(to, left(part), a_along ? row : k, a_along ? k : row);
        B::template load<Tile::kThreads>(to + A::kBytes, right(part), b_along ? column : k,
                                         b_along ? k : column);
        ++loaded;
        if (++depth == depths) depth = 0, ++part;
      }
      cp_async_commit();
    };
#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) load_next(stage);
    for (int at = first, stage = 0; at < last; ++at) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // the depth has arrived for all, and the stage before is free
      load_next(stage == 0 ? kStages - 1 : stage - 1);
      const char* tile = shared + stage * kStageBytes;
      math.multiply(tile, tile + A::kBytes, warp_m(), warp_n(), sum);
      if (++stage == kStages) stage = 0;
    }
    math.finish();
    __syncthreads();  // shared memory is free: all copies have been waited for
  }

  // Calls body(values, row, column) for each group of kGroup<T> neighbours of the tile, row by
  // row, so that a warp's groups lie side by side in memory.
  template <class Body>
  __device__ __forceinline__ void for_each_group(char* shared, Body body) {
    constexpr int kValues = kGroup<T>, kLanes = Tile::kWarpN / kValues, kRows = kWarp / kLanes;
    const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    float* slab = reinterpret_cast<float*>(shared) + warp * 16 * kSlabStride;
#pragma unroll
    for (int s = 0; s < Tile::kWarpM / 16; ++s) {
      math.write_slab(slab, kSlabStride, s);
      __syncwarp();
#pragma unroll 1  // bodies are long
      for (int pass = 0; pass < 16 / kRows; ++pass) {
        const int row = pass * kRows + lane / kLanes, column = lane % kLanes * kValues;
        float v[kValues];
        read_group(v, slab + row * kSlabStride + column, lane);
        body(v, warp_m() + 16 * s + row, warp_n() + column);
      }
      if (s + 1 < Tile::kWarpM / 16) __syncwarp();
    }
  }

 private:
  __device__ static __forceinline__ void read_group(float (&v)[4], const float* from, int) {
    const float4 a = *reinterpret_cast<const float4*>(from);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  }
  // Every other 4 lanes read their upper half first, so that 8 lanes meet 8 different bank groups.
  __device__ static __forceinline__ void read_group(float (&v)[8], const float* from, int lane) {
    const int flip = lane & 4;
    const float4 a = *reinterpret_cast<const float4*>(from + flip);
    const float4 b = *reinterpret_cast<const float4*>(from + (flip ^ 4));
    const float4 low = flip ? b : a, high = flip ? a : b;
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }
};

// Blocks in an order in which neighbours share rows of a and columns of b: 8 tiles of rows at a
// time, column by column.
struct TilePlace {
  int row, column;
};
__device__ __forceinline__ TilePlace place_tile(int index, int tiles_m, int tiles_n) {
  constexpr int kBand = 8;
  const int band = index / (kBand * tiles_n), inside = index % (kBand * tiles_n);
  const int height = min(tiles_m - band * kBand, kBand);
  return {band * kBand + inside % height, inside / height};
}

}  // namespace
}  // namespace bf::cuda
