// lse[r] = log sum_v exp(x[rows[r]] weight[v]^T + bias[v]) and the label's logit, for the labelled
// rows only, and their backward: d = exp(logit - lse) - [v is the label], dx = scale d weight,
// dweight = scale d^T x, dbias = scale sum_r d. Never a [tokens, vocabulary] matrix.
//
// How many rows are labelled is read on the device: launches cover all tokens, surplus blocks exit.
// The labelled rows are gathered into one matrix first. Forward: a block owns 64 rows and 1024
// columns, a thread the online sums of a few rows in registers; the chunks are merged in order.
// Backward walks the vocabulary in slices so wide that a slice's d takes 64 MiB, 512 columns at the
// least, with three products a slice; sums are in fp32 and every element has one owner: no atomics.
// Saved between the two: lse. Products are those of product/gemm.cuh.
//
// Workspace: forward the gathered rows and 8 bytes for every row and 512 columns of the vocabulary;
// backward the gathered rows, d of a slice and dx in fp32 (per split where rows are few).
// What must hold: rows is a permutation of the tokens, labelled ones first; tokens, vocabulary and
// k below 2^31. lse and logit beyond `count`, and dx of rows without a label, become 0.
#include "common/limits.h"
#include "masked_cross_entropy/backward.cuh"
#include "masked_cross_entropy/forward.cuh"

namespace bf::cuda {
namespace {

template <class P>
void check_sizes(const P& p) {
  BF_LIMIT(kSize, p.labelled);
  BF_LIMIT(kColumns, p.vocabulary);
  BF_LIMIT(kColumns, p.k);
  BF_CHECK(p.count, "the number of labelled rows must be given");
}

template <class T>
std::size_t lay_out(const MaskedCrossEntropyFwd& p, void* base, T** x, Partial** partial) {
  Arena arena(base);
  *x = arena.take<T>(p.labelled * padded_width<T>(p.k));
  *partial = arena.take<Partial>(p.labelled * partials(p.vocabulary));
  return arena.used();
}

template <class T>
void forward(const MaskedCrossEntropyFwd& p) {
  T* x;
  Partial* partial;
  lay_out(p, p.gpu.workspace, &x, &partial);
  if constexpr (sizeof(T) == 4) {
    if (!p.gpu.tf32) return launch_fwd<T, true>(p, x, partial);
  }
  launch_fwd<T, false>(p, x, partial);
}

template <class T>
void backward(const MaskedCrossEntropyBwd& p) {
  if constexpr (sizeof(T) == 4) {
    if (!p.gpu.tf32) return launch_bwd<T, true>(p);
  }
  launch_bwd<T, false>(p);
}

}  // namespace

std::size_t masked_cross_entropy_fwd_workspace(const MaskedCrossEntropyFwd& p) {
  Partial* partial;
  BF_DISPATCH_DTYPE(p.dtype, T, T * x; return lay_out(p, nullptr, &x, &partial))
  return 0;
}

void masked_cross_entropy_fwd(const MaskedCrossEntropyFwd& p) {
  if (p.labelled == 0) return;
  check_sizes(p);
  BF_DISPATCH_DTYPE(p.dtype, T, forward<T>(p))
}

std::size_t masked_cross_entropy_bwd_workspace(const MaskedCrossEntropyBwd& p) {
  if (p.labelled == 0) return 0;
  BF_DISPATCH_DTYPE(p.dtype, T, return Plan<T>().lay_out(p, nullptr))
  return 0;
}

void masked_cross_entropy_bwd(const MaskedCrossEntropyBwd& p) {
  if (p.labelled == 0) return;
  check_sizes(p);
  BF_DISPATCH_DTYPE(p.dtype, T, backward<T>(p))
}

}  // namespace bf::cuda
