// One pass a token: three rows are gathered and summed into one fp32 row in L1, normalised and written.
#include "embedding/op.h"

#include "common/layernorm.h"
#include "common/philox.h"
#include "common/parallel.h"

namespace bf {
namespace BF_ISA {
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

}  // namespace

void embedding_fwd(const EmbeddingFwd& p) { BF_DISPATCH_DTYPE(p.dtype, T, run<T>(p)) }

}  // namespace BF_ISA
}  // namespace bf
