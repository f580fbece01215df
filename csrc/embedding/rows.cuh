// The rows of z = word[id] + position[p] + segment[s], and the kernels whose threads hold them:
// forward, and backward as far as dz.
#pragma once
#include "common/layernorm.cuh"
#include "embedding/op.h"

namespace bf::cuda {
namespace {

// What one token gathers.
template <class T>
struct TokenRows {
  const T* parts[3];
  bool inside;  // whether every id lies inside its table

  template <class P>
  __device__ __forceinline__ TokenRows(const P& p, long token) : inside(true) {
    const std::int64_t word = p.input_ids ? p.input_ids[token] : token;
    const std::int64_t position = p.position_ids[token], segment = p.segment_ids[token];
    if (p.input_ids) check(word, p.table_rows[0]);
    check(position, p.table_rows[1]);
    check(segment, p.table_rows[2]);
    parts[0] = static_cast<const T*>(p.word) + word * p.word_stride;
    parts[1] = static_cast<const T*>(p.position) + position * p.n;
    parts[2] = static_cast<const T*>(p.segment) + segment * p.n;
  }

  // A group of z. NaN, and nothing read, where an id lies outside.
  __device__ __forceinline__ void operator()(float (&z)[kGroup<T>], int first, int left,
                                             bool vector) const {
    if (!inside) {
#pragma unroll
      for (int e = 0; e < kGroup<T>; ++e) z[e] = NAN;
      return;
    }
    load_group(z, parts[0] + first, left, vector);
    add_group(z, parts[1] + first, left, vector);
    add_group(z, parts[2] + first, left, vector);
  }

  // A thread's part of z. Reads of several groups are on their way before the first is used.
  template <int warps>
  __device__ __forceinline__ void gather(const Row<T, warps>& row,
                                         typename Row<T, warps>::Values& z) const {
    if (!inside || !row.vector) {
      row.for_each_group(
          [&](int i, int first, int left, bool wide) { (*this)(z[i], first, left, wide); });
      return;
    }
    constexpr int kAhead = warps == 1 ? 4 : 2;  // a block has more of them
    Group<T> read[kAhead][3];
#pragma unroll
    for (int start = 0; start < Row<T, warps>::kGroups; start += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int first = row.first(start + i);
        if (first >= row.n) continue;
#pragma unroll
        for (int part = 0; part < 3; ++part)
          read[i][part] = *reinterpret_cast<const Group<T>*>(parts[part] + first);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
#pragma unroll
        for (int e = 0; e < kGroup<T>; ++e)
          z[start + i][e] = to_float(read[i][0].values[e]) + to_float(read[i][1].values[e]) +
                            to_float(read[i][2].values[e]);
    }
  }

 private:
  __device__ __forceinline__ void check(std::int64_t id, long rows) {
    inside = inside && id >= 0 && id < rows;
  }
};

// Whether every row that is gathered or normalised may be accessed in groups of 16 bytes.
template <class T, class P>
bool rows_are_vector(const P& p) {
  const long bytes = p.n * sizeof(T);
  return is_vector(p.word, p.word_stride * sizeof(T)) && is_vector(p.position, bytes) &&
         is_vector(p.segment, bytes) && is_vector(p.ln_weight, bytes);
}

template <class T, int warps>
__global__ void __launch_bounds__(kRowThreads, 2)  // or ptxas saves registers on sm_120, and spills
    embedding_fwd_kernel(const EmbeddingFwd p, bool vector) {
  using Part = Row<T, warps>;
  const long token = static_cast<long>(blockIdx.x) * Part::kRows + Part::index();
  if (token >= used_rows(p.gpu, p.rows)) return;
  const Part row{static_cast<int>(p.n), vector};
  const TokenRows<T> from(p, token);
  typename Part::Values z;
  from.gather(row, z);
  const TokenDropout dropout(p.dropout, p.cu_seqlens, p.sequences, token);
  normalise<T, warps>(row, z, static_cast<const T*>(p.ln_weight), static_cast<const T*>(p.ln_bias),
                      p.eps, static_cast<T*>(p.out) + token * p.n,
                      p.mean ? p.mean + token : nullptr, p.rstd ? p.rstd + token : nullptr,
                      [&](float (&v)[kGroup<T>], int first) { drop(dropout, v, first); });
}

// dz goes to `dy` (fp32, for the tables) and to dinputs, where not null.
template <class T, int warps>
__global__ void __launch_bounds__(kRowThreads)
    embedding_dz_kernel(const RowsBwd<EmbeddingBwd> rows) {
  const EmbeddingBwd& p = rows.op;
  extern __shared__ __align__(16) float shared[];
  layernorm_backward<T, T, warps>(
      rows, shared, [&](long token) { return TokenRows<T>(p, token); },
      [&](long token) {
        const TokenDropout dropout(p.dropout, p.cu_seqlens, p.sequences, token);
        const T* dout = static_cast<const T*>(p.dout) + token * p.n;
        return [=](float (&v)[kGroup<T>], int first, int left, bool vector) {
          load_group(v, dout + first, left, vector);
          drop(dropout, v, first);
        };
      },
      [&](long token) {
        float* const wide = rows.dy ? static_cast<float*>(rows.dy) + token * rows.stride : nullptr;
        T* const narrow = p.dinputs ? static_cast<T*>(p.dinputs) + token * p.n : nullptr;
        return [=](const float (&v)[kGroup<T>], int first, int left, bool vector) {
          if (narrow) store_group(narrow + first, v, left, vector);
          if (wide) store_group(wide + first, v, kGroup<T>, true);
        };
      });
}

}  // namespace
}  // namespace bf::cuda
