// Tiles of the operands of a product in shared memory, and how a block brings them in.
//
// A tile is kept as it lies in global memory, 64 bytes deep along k. The 16-byte groups of a shared
// row are exchanged (swizzled) so that neither the copies nor the reads of fragments meet a bank
// twice. All offsets are in bytes.
#pragma once
#include "common/async.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

namespace bf::cuda {
namespace {

constexpr int kDepthBytes = 64;

// Block tile kM x kN, shared by warps that own kWarpM x kWarpN each; `blocks` of them are to fit on
// a multiprocessor's registers.
template <int m, int n, int warp_m, int warp_n, int blocks>
struct Tile {
  static constexpr int kBlocks = blocks;
  static constexpr int kM = m, kN = n, kWarpM = warp_m, kWarpN = warp_n;
  static constexpr int kWarpsN = n / warp_n, kWarps = m / warp_m * kWarpsN;
  static constexpr int kThreads = kWarps * kWarp;
  static_assert((warp_m & (warp_m - 1)) == 0 && (warp_n & (warp_n - 1)) == 0,
                "fragments of a swizzled row are told apart by bits");

  // Where the part of this thread's warp begins.
  __device__ static __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / kWarp / kWarpsN * kWarpM;
  }
  __device__ static __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x) / kWarp % kWarpsN * kWarpN;
  }
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
  static constexpr int kGroups = kColumns / kGroup<T>, kRowBytes = kColumns * sizeof(T);
  static constexpr int kBytes = kRows * kRowBytes;
  static constexpr int kSwizzled = along ? 8 : sizeof(T) == 2 ? 8 : 4;  // rows until it repeats

  // Where a 16-byte group lies. Along k, 8 rows at one group are read together (ldmatrix); of
  // 16-bit elements across k likewise; of 32-bit ones across k 4 rows at 2 neighbouring groups.
  __device__ static __forceinline__ int offset(int row, int group) {
    const int swizzle = along ? row >> 1 & 3 : sizeof(T) == 2 ? row & 7 : (row & 3) << 1;
    return row * kRowBytes + (group ^ swizzle) * 16;
  }

  // Brings in the tile at (row, column) of the operand, zeros where it ends: any tile, slowly.
  template <int threads>
  __device__ static __forceinline__ void load(char* shared, const Operand& from, int row,
                                              int column) {
    const T* origin = static_cast<const T*>(from.data) + row * from.stride + column;
    const int rows = from.rows - row, columns = from.columns - column;
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kGroups; i += threads) {
      const int r = i / kGroups, group = i % kGroups;
      const int left = min(columns - group * kGroup<T>, kGroup<T>);
      const int count = r < rows && left > 0 ? left : 0;
      const T* p = count > 0 ? origin + r * from.stride + group * kGroup<T> : origin;
      char* to = shared + offset(r, group);
      if (from.vector)
        cp_async16(shared_address(to), p, count * static_cast<int>(sizeof(T)));
      else
        gather(to, p, count);
    }
  }

  // A thread's share of whole tiles, one behind the other along k: a group of every kStep-th row,
  // whose addresses differ by constants. Groups outside of the operand become zeros.
  template <int threads>
  struct Stream {
    static constexpr int kStep = threads / kGroups;
    static_assert(kStep % kSwizzled == 0, "the groups' offsets differ by whole rows");
    const char* from;
    long step;     // to the next group
    int to, rows;  // its place in the tile; rows from here to the end, 0 outside of the columns

    // Whether the tiles at this row or column, across k, have whole groups only.
    __device__ static __forceinline__ bool fits(const Operand& of, int place) {
      return of.vector &&
             (along || (of.columns - place) % kGroup<T> == 0 || of.columns - place >= kColumns);
    }
    __device__ __forceinline__ void aim(const Operand& of, int row, int column) {
      const int r = static_cast<int>(threadIdx.x) / kGroups, group = threadIdx.x % kGroups;
      const long stride = of.stride * static_cast<long>(sizeof(T));
      column += group * kGroup<T>;
      from = static_cast<const char*>(of.data) + (row + r) * stride +
             column * static_cast<long>(sizeof(T));
      step = keep(kStep * stride);
      to = offset(r, group), rows = column < of.columns ? of.rows - row - r : 0;
    }
    // Brings in this tile and goes on to the next; across k all rows are there.
    __device__ __forceinline__ void load(unsigned shared) {
      const char* p = from;
#pragma unroll
      for (int i = 0; i < kRows / kStep; ++i, p = keep(p + step))
        cp_async16(shared + to + i * kStep * kRowBytes, p, (along ? i * kStep : 0) < rows ? 16 : 0);
      from = along ? from + kDepthBytes : p;
    }
  };

 private:
  __device__ static __forceinline__ void gather(char* to, const T* p, int count) {
    Group<T> group;
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) group.values[e] = e < count ? p[e] : from_float<T>(0.0f);
    *reinterpret_cast<Group<T>*>(to) = group;
  }
};

}  // namespace
}  // namespace bf::cuda
