// The gradients of the tables: row i is the sum of dz over the tokens with id i, which follow each
// other in `order`.
//
// The sorted tokens are cut into at most 256 pieces of equal length, so that a table of two rows is
// summed by as many blocks as one of thousands. A warp owns one piece, one table and 32 groups of
// columns. A run of equal ids that begins and ends in its piece is written to the table at once;
// one that goes on leaves its part: in the piece's `tail` where it begins, in `head` where it has
// come from the piece before. A second kernel adds, from the piece where such a run begins, its
// tail and the heads that follow, in order. Rows without tokens keep the caller's zeros.
#pragma once
#include "common/launch.cuh"
#include "common/vector.cuh"
#include "embedding/op.h"

namespace bf::cuda {
namespace {

constexpr int kMaxPieces = 256, kLeastPiece = 16, kTables = 3;

struct TableSums {
  EmbeddingBwd op;
  const float* dz;  // [rows, stride]
  float* parts;     // [tables, pieces, 2 (head, tail), stride]
  long stride, piece;
  int pieces;
  bool vector;  // of the tables

  __device__ __forceinline__ float* part(int table, int piece_index, int which) const {
    return parts + ((static_cast<long>(table) * pieces + piece_index) * 2 + which) * stride;
  }
};

template <class T>
__device__ __forceinline__ void write_row(const TableSums& p, const EmbeddingTable& table,
                                          long table_rows, std::int64_t id, long column,
                                          const float (&sum)[kGroup<T>]) {
  if (id == table.skip || id < 0 || id >= table_rows) return;
  const long left = p.op.n - column;
  store_group(static_cast<T*>(table.dtable) + id * p.op.n + column, sum, left,
              p.vector && left >= kGroup<T>);
}

template <class T>
__global__ void __launch_bounds__(kWarp) sum_pieces(const TableSums p) {
  const EmbeddingTable table = p.op.tables[blockIdx.z];
  const long begin = blockIdx.x * p.piece, column = (blockIdx.y * kWarp + threadIdx.x) * kGroup<T>;
  const long end = begin + p.piece < p.op.rows ? begin + p.piece : p.op.rows;
  if (!table.dtable) return;
  const bool mine = column < p.op.n;
  const auto id_at = [&](long i) { return table.ids[table.order[i]]; };
  const auto put = [&](int which, const float (&sum)[kGroup<T>]) {
    store_group(p.part(blockIdx.z, blockIdx.x, which) + column, sum, kGroup<T>, true);
  };
  float sum[kGroup<T>] = {};
  std::int64_t id = id_at(begin);
  bool carried = begin > 0 && id_at(begin - 1) == id;  // the run has come from the piece before
  for (long first = begin; first < end; first += kWarp) {
    const long at = first + threadIdx.x;
    const std::int64_t token = at < end ? table.order[at] : 0;
    const std::int64_t its_id = at < end ? table.ids[token] : 0;
    const int count = static_cast<int>(end - first < kWarp ? end - first : kWarp);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const std::int64_t next = __shfl_sync(kAllLanes, its_id, i);
      const std::int64_t row = __shfl_sync(kAllLanes, token, i);
      if (next != id) {
        if (mine && carried)
          put(0, sum);
        else if (mine)
          write_row<T>(p, table, p.op.table_rows[blockIdx.z], id, column, sum);
#pragma unroll
        for (int e = 0; e < kGroup<T>; ++e) sum[e] = 0.0f;
        id = next, carried = false;
      }
      if (mine) add_group(sum, p.dz + row * p.stride + column, kGroup<T>, true);
    }
  }
  if (!mine) return;
  const bool goes_on = end < p.op.rows && id_at(end) == id;
  if (carried)
    put(0, sum);
  else if (goes_on)
    put(1, sum);
  else
    write_row<T>(p, table, p.op.table_rows[blockIdx.z], id, column, sum);
}

template <class T>
__global__ void __launch_bounds__(kWarp) join_pieces(const TableSums p) {
  const EmbeddingTable table = p.op.tables[blockIdx.z];
  const int piece = blockIdx.x;
  if (!table.dtable || piece + 1 >= p.pieces) return;
  const auto id_at = [&](long i) { return table.ids[table.order[i]]; };
  const long begin = piece * p.piece, end = begin + p.piece;
  const std::int64_t id = id_at(end - 1);
  if (id_at(end) != id) return;                                           // ends here
  if (id_at(begin) == id && begin > 0 && id_at(begin - 1) == id) return;  // begins elsewhere
  int heads = 0;  // pieces that the run reaches into, all behind one another
  for (int first = piece + 1; first < p.pieces; first += kWarp) {
    const int other = first + static_cast<int>(threadIdx.x);
    const bool reached = other < p.pieces && id_at(other * p.piece) == id;
    const int found = __popc(__ballot_sync(kAllLanes, reached));
    heads += found;
    if (found < kWarp) break;
  }
  const long column = (blockIdx.y * kWarp + threadIdx.x) * kGroup<T>;
  if (column >= p.op.n) return;
  float sum[kGroup<T>] = {};
  add_group(sum, p.part(blockIdx.z, piece, 1) + column, kGroup<T>, true);
#pragma unroll 4
  for (int i = 1; i <= heads; ++i)
    add_group(sum, p.part(blockIdx.z, piece + i, 0) + column, kGroup<T>, true);
  write_row<T>(p, table, p.op.table_rows[blockIdx.z], id, column, sum);
}

template <class T>
void launch_tables(const TableSums& p) {
  const dim3 grid(p.pieces, static_cast<unsigned>(ceil_div(p.op.n, kWarp * kGroup<T>)), kTables);
  BF_LAUNCH(sum_pieces<T>, grid, kWarp, 0, p.op.gpu, p);
  if (p.pieces > 1) BF_LAUNCH(join_pieces<T>, grid, kWarp, 0, p.op.gpu, p);
}

}  // namespace
}  // namespace bf::cuda
