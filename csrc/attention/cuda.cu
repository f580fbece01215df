// Flash attention (Milakov and Gimelshein 2018; Dao et al. 2022): out = dropout(softmax(scale q
// k^T)) v inside each sequence, with no [S, S] matrix. Per query a running maximum m and sum of
// exp(scale q k - m), in fp32; probabilities are rounded to the dtype before they meet v, sums are
// divided at the end. Saved: out and lse = m + log(sum). Backward computes the probabilities again.
//
// A block of 4 warps owns 64 rows of one head in one sequence, a warp 16 of them; the columns of
// the sequence pass through shared memory in steps, the next one loading (cp.async) while this one
// is computed. Every sum has one fixed order and one owner: no atomics. Products run on tensor
// cores (fp16, bf16, tf32 if allowed) or, for fp32, as multiply-adds in the same layout. Head sizes
// are filled with zeros to 32, 64 or 128.
//
// What must hold: cu_seqlens rises from 0 to at most `tokens`; rows beyond its end get out, lse and
// gradient 0. Blocks find their rows from cu_seqlens on the device, so a launch depends on
// `tokens`, `sequences` and `heads` only. Backward's workspace holds delta [heads, tokens].
#include "attention/backward.cuh"
#include "attention/forward.cuh"
#include "common/launch.cuh"
#include "common/limits.h"

namespace bf::cuda {
namespace {

// Runs the statements with D bound to the width of the tiles.
#define BF_DISPATCH_HEAD_SIZE(SIZE, D, ...) \
  if ((SIZE) <= 32) {                       \
    constexpr int D = 32;                   \
    __VA_ARGS__;                            \
  } else if ((SIZE) <= 64) {                \
    constexpr int D = 64;                   \
    __VA_ARGS__;                            \
  } else {                                  \
    constexpr int D = 128;                  \
    __VA_ARGS__;                            \
  }

template <class P>
void check_sizes(const P& p) {
  BF_LIMIT(kSize, p.tokens);
  BF_LIMIT(kHeadSize, p.head_size);
  BF_LIMIT(kHeads, p.heads);
}

template <class T, class P>
bool rows_are_vector(const P& p) {
  const long head = p.head_size * sizeof(T);
  return is_vector(p.qkv, head) && is_vector(p.out, p.qkv_stride * sizeof(T));
}

template <class T, int D>
void launch_fwd(const AttentionFwd& p) {
  const dim3 grid = work_grid(p.tokens, p.sequences, p.heads);
  const bool vector = rows_are_vector<T>(p);
  BF_LAUNCH((attention_fwd_kernel<T, D>), grid, kThreads, (kForwardShared<T, D>), p.gpu, p, vector);
}

template <class T, int D>
void launch_bwd(const AttentionBwd& p) {
  const dim3 grid = work_grid(p.tokens, p.sequences, p.heads);
  const bool vector = rows_are_vector<T>(p) && is_vector(p.dout, 16) && is_vector(p.dqkv, 16);
  constexpr std::size_t shared = kBackwardShared<T, D>;
  BF_LAUNCH((attention_bwd_kernel<T, D, false>), grid, kThreads, shared, p.gpu, p, vector);
  BF_LAUNCH((attention_bwd_kernel<T, D, true>), grid, kThreads, shared, p.gpu, p, vector);
}

}  // namespace

std::size_t attention_fwd_workspace(const AttentionFwd&) { return 0; }

void attention_fwd(const AttentionFwd& p) {
  if (p.tokens == 0) return;
  check_sizes(p);
  BF_DISPATCH_DTYPE(p.dtype, T, BF_DISPATCH_HEAD_SIZE(p.head_size, D, launch_fwd<T, D>(p)))
}

std::size_t attention_bwd_workspace(const AttentionBwd& p) {
  return static_cast<std::size_t>(p.heads * p.tokens) * sizeof(float);
}

void attention_bwd(const AttentionBwd& p) {
  if (p.tokens == 0) return;
  check_sizes(p);
  BF_DISPATCH_DTYPE(p.dtype, T, BF_DISPATCH_HEAD_SIZE(p.head_size, D, launch_bwd<T, D>(p)))
}

}  // namespace bf::cuda
