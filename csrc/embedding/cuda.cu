// z = word[id] + position[p] + segment[s], out = dropout(LN(z) weight + bias), and the gradients.
// One pass over memory each way: z is gathered into registers (common/layernorm.cuh), a row by one
// warp or, beyond 1024 features, by a block, and gathered again for backward. Saved: mean, rstd.
//
// Backward: one kernel computes dz = rstd (g - mean(g) - x mean(g x)) with g = dropped(dout) weight
// and, per block, the columns' sums for dweight and dbias; common/column_sums.cuh adds those. dz
// stands in the workspace in fp32 for the tables (tables.cuh), whose rows are sums over the tokens
// of one id in the order of the tokens: no atomics. Without ids dz is the gradient of the rows
// given.
//
// What must hold: n up to 8192; `order` sorts the ids, equal ones in the order of the tokens; the
// dtables are zeros. A token with an id outside its table gives a row of NaN, and adds to no table
// with that id.
// Workspace of backward: sums [blocks, 2, n], dz [rows, n] and the parts of the tables, all fp32.
#include "embedding/rows.cuh"
#include "embedding/tables.cuh"

namespace bf::cuda {
namespace {

struct Workspace {
  float *sums, *dz, *parts;
  long stride, piece;
  int pieces;
  std::size_t bytes;
};

Workspace lay_out(const EmbeddingBwd& p, void* base) {
  Workspace w = {};
  const bool tables = p.tables[0].dtable || p.tables[1].dtable || p.tables[2].dtable;
  w.stride = ceil_div(p.n, kPhiloxGroup) * kPhiloxGroup;
  w.piece = ceil_div(p.rows, kMaxPieces);
  w.piece = w.piece < kLeastPiece ? kLeastPiece : w.piece;
  w.pieces = static_cast<int>(ceil_div(p.rows, w.piece));
  Arena arena(base);
  w.sums = arena.take<float>(layernorm_bwd_blocks(p.rows, p.n) * 2 * w.stride);
  if (tables) {
    w.dz = arena.take<float>(p.rows * w.stride);
    w.parts = arena.take<float>(kTables * w.pieces * 2 * w.stride);
  }
  w.bytes = arena.used();
  return w;
}

template <class T>
void forward(const EmbeddingFwd& p) {
  const bool vector = rows_are_vector<T>(p) && is_vector(p.ln_bias, 0) && is_vector(p.out, 0);
  BF_LAUNCH_ROWS(embedding_fwd_kernel, (T), p.n, row_blocks(p.rows, p.n), 0, p.gpu, p, vector);
}

template <class T>
void backward(const EmbeddingBwd& p) {
  const Workspace w = lay_out(p, p.gpu.workspace);
  const bool vector = rows_are_vector<T>(p) && is_vector(p.dout, 0) && is_vector(p.dinputs, 0);
  const int walking = layernorm_bwd_blocks(p.rows, p.n);
  BF_LAUNCH_ROWS(embedding_dz_kernel, (T), p.n, walking, layernorm_bwd_shared(p.n), p.gpu,
                 RowsBwd<EmbeddingBwd>{p, w.sums, w.stride, w.dz, vector});
  ColumnSums sums = {};
  sums.add({w.sums, 2 * w.stride, walking, p.dln_weight, p.n});
  sums.add({w.sums + w.stride, 2 * w.stride, walking, p.dln_bias, p.n});
  launch_column_sums<T>(sums, p.gpu);
  if (!w.dz) return;
  TableSums tables{p, w.dz, w.parts, w.stride, w.piece, w.pieces, true};
  for (const EmbeddingTable& table : p.tables)
    tables.vector = tables.vector && is_vector(table.dtable, p.n * sizeof(T));
  launch_tables<T>(tables);
}

void check_sizes(long rows, long n) {
  BF_LIMIT(kSize, rows);
  BF_LIMIT(kFeatures, n);
}

}  // namespace

std::size_t embedding_fwd_workspace(const EmbeddingFwd&) { return 0; }

void embedding_fwd(const EmbeddingFwd& p) {
  if (p.rows == 0) return;
  check_sizes(p.rows, p.n);
  BF_DISPATCH_DTYPE(p.dtype, T, forward<T>(p))
}

std::size_t embedding_bwd_workspace(const EmbeddingBwd& p) { return lay_out(p, nullptr).bytes; }

void embedding_bwd(const EmbeddingBwd& p) {
  if (p.rows == 0) return;
  check_sizes(p.rows, p.n);
  BF_DISPATCH_DTYPE(p.dtype, T, backward<T>(p))
}

}  // namespace bf::cuda
