// One pass a token: three rows are gathered and summed into one fp32 row in L1, normalised and
// written.
#include "common/layernorm.h"
#include "common/parallel.h"
#include "common/philox.h"
#include "embedding/op.h"

namespace bf::BF_ISA {
namespace {

constexpr long kRowsPerTask = 32;

template <class T>
void run(const EmbeddingFwd& p) {
  const T* word = static_cast<const T*>(p.word);
  const T* position = static_cast<const T*>(p.position);
  const T* segment = static_cast<const T*>(p.segment);
  T* out = static_cast<T*>(p.out);
  const long width = round_up(p.n, 16);
  float* memory = static_cast<float*>(scratch(4 * 2 * width * p.threads));
  parallel_tasks(p.threads, ceil_div(p.rows, kRowsPerTask), [&](long task, int thread) {
    float* z = memory + thread * 2 * width;
    float* y = z + width;
    for (long t = task * kRowsPerTask; t < p.rows && t < (task + 1) * kRowsPerTask; ++t) {
      const T* w = word + (p.input_ids ? p.input_ids[t] : t) * p.word_stride;
      const T* q = position + p.position_ids[t] * p.n;
      const T* s = segment + p.segment_ids[t] * p.n;
      for_lanes(p.n, [&](long i, int m) {  // the order in which BERT adds them
        store_some(z + i, load_some(w + i, m) + load_some(s + i, m) + load_some(q + i, m), m);
      });
      float* mean = p.mean ? p.mean + t : nullptr;
      float* rstd = p.rstd ? p.rstd + t : nullptr;
      const T* ln_weight = static_cast<const T*>(p.ln_weight);
      const T* ln_bias = static_cast<const T*>(p.ln_bias);
      if (!p.dropout.seed) {
        layernorm_row(z, p.n, ln_weight, ln_bias, p.eps, out + t * p.n, mean, rstd);
        continue;
      }
      layernorm_row(z, p.n, ln_weight, ln_bias, p.eps, y, mean, rstd);
      dropout_token(p.dropout, y, p.n, p.cu_seqlens, p.sequences, t);
      for_lanes(p.n, [&](long i, int m) { store_some(out + t * p.n + i, load_some(y + i, m), m); });
    }
  });
}

// A task owns some columns of a table and walks the tokens by id, so no two threads write one
// element.
template <class T>
void scatter(const EmbeddingTable& table, const float* dz, long rows, long n, int threads) {
  constexpr long kColumns = 4 * kLanes;
  parallel_tasks(threads, ceil_div(n, kColumns), [&](long task, int) {
    const long first = task * kColumns, width = n - first < kColumns ? n - first : kColumns;
    for (long i = 0; i < rows;) {
      const std::int64_t id = table.ids[table.order[i]];
      float sum[kColumns] = {};
      for (; i < rows && table.ids[table.order[i]] == id; ++i) {
        const float* row = dz + table.order[i] * n + first;
        for_lanes(width, [&](long c, int m) {
          store_some(sum + c, load(sum + c) + load_some(row + c, m), m);
        });
      }
      if (id == table.skip) continue;
      T* to = static_cast<T*>(table.dtable) + id * n + first;
      for_lanes(width, [&](long c, int m) { store_some(to + c, load(sum + c), m); });
    }
  });
}

template <class T>
void run_bwd(const EmbeddingBwd& p) {
  const long width = round_up(p.n, 16);
  float* dz = static_cast<float*>(scratch(4 * (p.rows * p.n + width), Slot::kRows));
  layernorm_bwd(p.rows, p.n, p.threads, static_cast<T*>(p.dln_weight), static_cast<T*>(p.dln_bias),
                [&](long t, float* dln_weight, float* dln_bias) {
                  const T* w = static_cast<const T*>(p.word) +
                               (p.input_ids ? p.input_ids[t] : t) * p.word_stride;
                  const T* q = static_cast<const T*>(p.position) + p.position_ids[t] * p.n;
                  const T* s = static_cast<const T*>(p.segment) + p.segment_ids[t] * p.n;
                  float* row = dz + t * p.n;
                  convert_row(static_cast<const T*>(p.dout) + t * p.n, row, p.n);
                  if (p.dropout.seed)
                    dropout_token(p.dropout, row, p.n, p.cu_seqlens, p.sequences, t);
                  layernorm_bwd_row(
                      [=](long i, int m) {
                        return load_some(w + i, m) + load_some(s + i, m) + load_some(q + i, m);
                      },
                      [=](long i, int m) { return load_some(row + i, m); }, p.n,
                      static_cast<const T*>(p.ln_weight), p.mean[t], p.rstd[t], row, dln_weight,
                      dln_bias);
                });
  for (const EmbeddingTable& table : p.tables)
    if (table.dtable) scatter<T>(table, dz, p.rows, p.n, p.threads);
  if (!p.dinputs) return;
  parallel_tasks(p.threads, p.rows, [&](long t, int) {
    for_lanes(p.n, [&](long i, int m) {
      store_some(static_cast<T*>(p.dinputs) + t * p.n + i, load_some(dz + t * p.n + i, m), m);
    });
  });
}

}  // namespace

void embedding_fwd(const EmbeddingFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }
void embedding_bwd(const EmbeddingBwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run_bwd<T>(p)) }

}  // namespace bf::BF_ISA
