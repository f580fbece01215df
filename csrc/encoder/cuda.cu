// All layers in one call: layer.h and backward.h walk, the operations' own host code launches.
// Between them three kernels of this file: the sum of two gradients that meet, the first rows of
// the sequences, and such rows' way back among zeros.
//
// The workspace of a call is laid out once: rows on their way through a layer (all layers use the
// same), then what the operations ask for, the most of any. How much that is, a walk tells that
// launches nothing: it has addresses, which are not read, because some sizes depend on which
// results are wanted. What must hold: all weights contiguous, cu_seqlens as attention asks.
#include "common/launch.cuh"
#include "common/philox.cuh"
#include "common/vector.cuh"
#include "encoder/lists.h"

#define BF_ISA cuda
#include "encoder/backward.h"

namespace bf::cuda {
namespace {

constexpr int kThreads = 256;

// to += from; in fp32, rounded once.
template <class T>
__global__ void __launch_bounds__(kThreads) add_rows(T* to, const T* from, long size) {
  const long first = (static_cast<long>(blockIdx.x) * kThreads + threadIdx.x) * kGroup<T>;
  const long left = size - first;
  if (left <= 0) return;
  const bool vector = left >= kGroup<T>;
  float sum[kGroup<T>];
  load_group(sum, to + first, left, vector);
  add_group(sum, from + first, left, vector);
  store_group(to + first, sum, left, vector);
}

// A row of `bytes` from `from`, or zeros where that is null, by the threads of a block.
template <class Word>
__device__ __forceinline__ void copy_row(const char* from, char* to, long bytes) {
#pragma unroll 1
  for (long i = threadIdx.x * sizeof(Word); i < bytes; i += kThreads * sizeof(Word))
    *reinterpret_cast<Word*>(to + i) = from ? *reinterpret_cast<const Word*>(from + i) : Word{};
}
__device__ __forceinline__ void copy_row(const char* from, char* to, long bytes, bool vector) {
  vector ? copy_row<uint4>(from, to, bytes) : copy_row<std::uint16_t>(from, to, bytes);
}

// A block a sequence. `ones` is told that each of these rows is a sequence.
__global__ void __launch_bounds__(kThreads)
    take_first_rows(const char* from, char* to, const std::int32_t* cu_seqlens, std::int32_t* ones,
                    long bytes, bool vector) {
  const long i = blockIdx.x, start = cu_seqlens[i];
  if (threadIdx.x == 0) ones[i] = static_cast<std::int32_t>(i);
  if (threadIdx.x == 0 && i + 1 == gridDim.x) ones[i + 1] = static_cast<std::int32_t>(i + 1);
  copy_row(start < cu_seqlens[i + 1] ? from + start * bytes : nullptr, to + i * bytes, bytes,
           vector);
}

// A block a token: a row where it is its sequence's first, else zeros.
__global__ void __launch_bounds__(kThreads)
    spread_first_rows(const char* from, char* to, const std::int32_t* cu_seqlens, int sequences,
                      long bytes, bool vector) {
  const long token = blockIdx.x;
  const int i = sequence_of(cu_seqlens, sequences, token);
  const bool first = cu_seqlens[i] == token && token < cu_seqlens[i + 1];
  copy_row(first ? from + i * bytes : nullptr, to + token * bytes, bytes, vector);
}

// How a GPU runs a layer's operations and moves rows; or, where `most` is given, only asks how much
// workspace the operations take.
struct Card {
  static constexpr bool kSlopeInProduct = true;
  Gpu gpu;
  std::size_t* most;

#define BF_RUN(NAME, OP)                           \
  void run_part(OP q) const {                      \
    const bool cublaslt = q.gpu.cublaslt;          \
    q.gpu = gpu, q.gpu.cublaslt = cublaslt;        \
    if (!most) return NAME(q);                     \
    const std::size_t bytes = NAME##_workspace(q); \
    if (bytes > *most) *most = bytes;              \
  }
  BF_FOR_EACH_PART(BF_RUN)
#undef BF_RUN

  void first_rows(const Stream& s, const char* from, long bytes, char* to) const {
    if (most) return;
    BF_LAUNCH(take_first_rows, static_cast<unsigned>(s.sequences), kThreads, 0, gpu, from, to,
              s.cu_seqlens, s.ones, bytes, is_vector(from, bytes) && is_vector(to, bytes));
  }

  void spread(const Stream& s, const char* from, long bytes, char* to) const {
    if (most) return;
    BF_LAUNCH(spread_first_rows, static_cast<unsigned>(s.tokens), kThreads, 0, gpu, from, to,
              s.cu_seqlens, static_cast<int>(s.sequences), bytes,
              is_vector(from, bytes) && is_vector(to, bytes));
  }

  void clear_strays(const Stream&, char*, long) const {}  // the kernel of attention does

  void add(const Stream&, DType dtype, char* to, const char* from, long count) const {
    if (most) return;
    BF_DISPATCH_DTYPE(
        dtype, T,
        BF_LAUNCH(add_rows<T>, static_cast<unsigned>(ceil_div(count, kThreads * kGroup<T>)),
                  kThreads, 0, gpu, reinterpret_cast<T*>(to), reinterpret_cast<const T*>(from),
                  count))
  }
};

struct Encoder : Layers<EncoderFwd, Card> {
  using Layers::Layers;

  void run(Arena& arena) {
    Stream s = whole();
    const bool keeps = p.saved.size && !p.recompute;
    keeps ? carve_first(arena, s, p.sequences) : carve(arena, s, p.tokens, p.sequences);
    char* next = p.saved.size || p.states ? nullptr : arena.take<char>(p.tokens * row);
    gpu.workspace = arena.rest();
    for (long layer = 0; layer < p.layers; ++layer) {
      if (keeps) save_to(s, layer);
      s.out = out_of(layer, next);
      forward(s, layer);
      s.x = s.out;
    }
  }

  char* out_of(long layer, char* next) const {
    if (p.saved.size) return saved(layer, kRows);
    if (layer + 1 == p.layers) return static_cast<char*>(p.out);
    return p.states ? static_cast<char*>(p.states) + layer * p.tokens * row : next;
  }
};

void walk(const EncoderFwd& p, Card card, Arena& arena) {
  check_lists(p);
  Encoder(p, card).run(arena);
}

void walk(const EncoderBwd& p, Card card, Arena& arena) {
  check_grads(p);
  Backward<Card> backward(p, card);
  Stream s = backward.whole();
  Grads grads;
  backward.carve_all(arena, grads, s);
  backward.gpu.workspace = arena.rest();
  backward.run(s, grads);
}

template <class Params>
void launch_all(const Params& p) {
  Arena arena(p.gpu.workspace);
  walk(p, {p.gpu, nullptr}, arena);
}

template <class Params>
std::size_t workspace_of(const Params& p) {
  std::size_t most = 0;
  Arena arena(reinterpret_cast<void*>(kWorkspaceAlignment));
  walk(p, {p.gpu, &most}, arena);
  return arena.used() + most;
}

}  // namespace

std::size_t encoder_fwd_workspace(const EncoderFwd& p) { return workspace_of(p); }
void encoder_fwd(const EncoderFwd& p) { launch_all(p); }

std::size_t encoder_bwd_workspace(const EncoderBwd& p) { return workspace_of(p); }
void encoder_bwd(const EncoderBwd& p) { launch_all(p); }

}  // namespace bf::cuda
