// The product core: a block computes one tile of c = a b in fp32, a thread's share in registers.
//
// a is [m, k] and b is [k, n]; each lies in memory either along k (rows of k neighbours, as x and
// weight in x weight^T) or across it (rows of m or n neighbours). Tiles of either (tile.cuh) are
// brought in by cp.async, kStages - 1 of them ahead of the arithmetic; rows that are no multiple of
// 16 bytes, or not aligned, are read element by element instead.
//
// 16-bit elements: mma m16n8k16 on fragments from ldmatrix (transposed where the operand lies
// across k). fp32: the same with tf32 m16n8k8, or, where that is not allowed, fused multiply-adds
// with a thread owning every 4th row and every 8th column (or 4 neighbours) of its warp's part.
// What must hold: all threads of the block call accumulate() and for_each_group() together.
#pragma once
#include <type_traits>

#include "common/launch.cuh"
#include "common/mma.cuh"
#include "product/tile.cuh"

namespace bf::cuda {
namespace {

constexpr int kStages = 4;

// The arithmetic of a warp on one depth of both tiles, and where its results lie. Fma: plain fp32.
template <class T, class Tile, bool a_along, bool b_along, bool sums>
struct TensorMath {
  static constexpr int kTilesM = Tile::kWarpM / 16, kTilesN = Tile::kWarpN / 8;
  using A = SharedTile<T, Tile::kM, a_along>;
  using B = SharedTile<T, Tile::kN, b_along>;

  float c[kTilesM][kTilesN][4] = {};
  float total[sums ? kTilesM : 1][4] = {};  // row sums of a, of which 0 (row g) and 2 (g + 8) count

  // Where this lane reads its warp's first fragments; the others lie at constants from there.
  template <class Shared, bool along, bool left>
  __device__ static __forceinline__ int fragment_at(int first) {
    const int lane = threadIdx.x % kWarp, low = lane >> 3 & 1, high = lane >> 4;
    if constexpr (along)
      return Shared::offset(first + lane % 8 + 8 * (left ? low : high), left ? high : low);
    else if constexpr (sizeof(T) == 2)
      return Shared::offset(lane % 8 + 8 * (left ? high : low), first / 8 + (left ? low : high));
    else
      return Shared::offset(lane % 4, first / 4 + lane / 16) + lane / 4 % 4 * 4;
  }
  const int left_at = fragment_at<A, a_along, true>(Tile::first_row());
  const int right_at = fragment_at<B, b_along, false>(Tile::first_column());

  // Registers of the i-th fragment of 16 rows (of a) or 2 x 8 columns (of b), 32 bytes deep along k
  // from group 2 * step on. Groups of a swizzled row are told apart by bits.
  template <class Shared, bool along, bool left>
  __device__ static __forceinline__ void fragment(unsigned (&r)[4], const char* shared, int at,
                                                  int i, int step) {
    if constexpr (along) {
      ldmatrix_x4(r, shared_address(shared + (at ^ 32 * step)) + 16 * i * Shared::kRowBytes);
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_x4_trans(r, shared_address(shared + (at ^ 32 * i)) + 16 * step * Shared::kRowBytes);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = 2 * i + (left ? j & 1 : j >> 1);
        const int row = 2 * step + (left ? j >> 1 : j & 1);
        const char* from = shared + (at ^ 32 * column) + 4 * row * Shared::kRowBytes;
        r[j] = *reinterpret_cast<const unsigned*>(from);
      }
    }
  }

  // a lies at `tile` of shared memory, b behind it.
  __device__ __forceinline__ void multiply(const char* shared, int tile, bool sum) {
    const int a = left_at + tile, b = right_at + tile + A::kBytes;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      unsigned left[kTilesM][4], right[kTilesN / 2][4];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) fragment<A, a_along, true>(left[i], shared, a, i, step);
#pragma unroll
      for (int j = 0; j < kTilesN / 2; ++j) {
        fragment<B, b_along, false>(right[j], shared, b, j, step);
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
  __device__ __forceinline__ void multiply(const char* shared, int tile, bool sum) {
    const char *a = shared + tile, *b = a + A::kBytes;
    const int warp_m = Tile::first_row(), warp_n = Tile::first_column();
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

  // Adds the depths [first, last) of the list of `parts`' depths, part by part: left(part) and
  // right(part) are its operands, `depths` of them each. With `sum` rows of a are summed as well.
  template <class Left, class Right>
  __device__ __forceinline__ void accumulate(char* shared, Left left, Right right, int row,
                                             int column, int depths, int first, int last,
                                             bool sum = false) {
    typename A::template Stream<Tile::kThreads> a;
    typename B::template Stream<Tile::kThreads> b;
    int part = first / depths, depth = first % depths, next = first, ahead = 0;
    const auto stream = [&](int tile) {
      a.load(shared_address(shared) + tile);
      b.load(shared_address(shared) + tile + A::kBytes);
      cp_async_commit();
    };
    // The next depth; `ahead` are whole ones behind it, which stream() brings in.
    const auto load_next = [&](int tile) {
      if (ahead > 0) return --ahead, stream(tile);
      if (next == last) return cp_async_commit();
      const Operand from_a = left(part), from_b = right(part);
      const int k = depth * kDepth, row_a = a_along ? row : k, column_a = a_along ? k : row;
      const int row_b = b_along ? column : k, column_b = b_along ? k : column;
      if (a.fits(from_a, row) && b.fits(from_b, column))
        ahead = min((a_along ? from_a.columns : from_a.rows) / kDepth - depth, last - next);
      const int count = max(ahead, 1);
      next += count, depth += count;
      if (depth == depths) depth = 0, ++part;
      if (ahead > 0) {
        a.aim(from_a, row_a, column_a), b.aim(from_b, row_b, column_b);
        return --ahead, stream(tile);
      }
      A::template load<Tile::kThreads>(shared + tile, from_a, row_a, column_a);
      B::template load<Tile::kThreads>(shared + tile + A::kBytes, from_b, row_b, column_b);
      cp_async_commit();
    };
    const auto arrive = [] {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // a tile is there for all, and the one before is free
    };
    int tile = 0, free = kSharedBytes - kStageBytes;
#pragma unroll 1
    for (int to = 0; to < free; to += kStageBytes) load_next(to);
    arrive();
    for (int left = last - first; left > 0;) {
      load_next(free);
      left -= ahead + 1;
      for (;; --ahead) {
        math.multiply(shared, tile, sum);
        free = tile, tile = tile + kStageBytes < kSharedBytes ? tile + kStageBytes : 0;
        arrive();
        if (ahead == 0) break;
        stream(free);
      }
    }
    math.finish();
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
        body(v, Tile::first_row() + 16 * s + row, Tile::first_column() + column);
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
