// All layers in one call: layer.h and backward.h walk, the operations' own host code launches.
// Between them the kernels of rows.cuh. A padded batch (padded.h): its tokens are laid end to end,
// embedded, and taken through the layers as a call with room for all places; `used` tells the
// kernels where the real ones end.
//
// The workspace of a call is laid out once: rows on their way through a layer (all layers use the
// same), then what the operations ask for, the most of any. How much that is, a walk tells that
// launches nothing: it has addresses, which are not read, because some sizes depend on which
// results are wanted. What must hold: all weights contiguous, cu_seqlens as attention asks.
#include "common/launch.cuh"
#include "common/philox.cuh"
#include "encoder/lists.h"
#include "encoder/rows.cuh"

#define BF_ISA cuda
#include "encoder/backward.h"

namespace bf::cuda {
namespace {

// How a GPU runs a layer's operations and moves rows; or, where `most` is given, only asks how much
// workspace the operations take.
struct Card {
  static constexpr bool kSlopeInProduct = true;
  Gpu gpu;
  std::size_t* most;

#define BF_RUN(NAME, OP)                           \
  void run_part(OP q) const {                      \
    const Gpu own = q.gpu;                         \
    q.gpu = gpu;                                   \
    q.gpu.cublaslt = own.cublaslt;                 \
    q.gpu.used = own.used;                         \
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

  void run(Arena& arena) { run(arena, whole(), static_cast<char*>(p.out)); }

  void run(Arena& arena, Stream s, char* last) {
    const bool keeps = p.saved.size && !p.recompute;
    keeps ? carve_first(arena, s, p.sequences) : carve(arena, s, p.tokens, p.sequences);
    char* next = p.saved.size || p.states ? nullptr : arena.take<char>(p.tokens * row);
    gpu.workspace = arena.rest();
    for (long layer = 0; layer < p.layers; ++layer) {
      if (keeps) save_to(s, layer);
      s.out = out_of(layer, next, last);
      forward(s, layer);
      s.x = s.out;
    }
  }

  char* out_of(long layer, char* next, char* last) const {
    if (p.saved.size) return saved(layer, kRows);
    if (layer + 1 == p.layers) return last;
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

// Tokens of a padded batch, end to end, and their rows before and behind the layers.
struct Unpadded : Packed {
  char *x, *out;  // out: null with first_only

  Unpadded(const PaddedEncoderFwd& p, Arena& arena) {
    const long places = p.batch * p.length,
               bytes = places * p.encoder.hidden * dtype_bytes(p.dtype);
    input_ids = arena.take<std::int64_t>(places);
    position_ids = arena.take<std::int64_t>(places);
    token_type_ids = arena.take<std::int64_t>(places);
    cu_seqlens = p.cu_seqlens;
    rows = arena.take<std::int32_t>(places);
    x = arena.take<char>(bytes);
    out = p.encoder.first_only ? nullptr : arena.take<char>(bytes);
  }
  const std::int32_t* used(const PaddedEncoderFwd& p) const {
    return p.mask ? cu_seqlens + p.batch : nullptr;
  }
};

void pack(const PaddedEncoderFwd& p, const Unpadded& rows) {
  const PaddedTokens tokens{p.mask, p.input_ids, p.position_ids, p.token_type_ids};
  BF_LAUNCH(pack_tokens, static_cast<unsigned>(p.batch), kPackThreads, 0, p.gpu, tokens,
            static_cast<const Packed&>(rows), p.length);
}

void embed(const PaddedEncoderFwd& p, const Unpadded& rows) {
  EmbeddingFwd q = p.embedding;
  q.input_ids = rows.input_ids, q.position_ids = rows.position_ids;
  q.segment_ids = rows.token_type_ids, q.rows = p.batch * p.length, q.out = rows.x;
  q.dtype = p.dtype, q.gpu = p.gpu, q.gpu.used = rows.used(p);
  embedding_fwd(q);
}

void unpack(const PaddedEncoderFwd& p, const Unpadded& rows) {
  const long places = p.batch * p.length, bytes = p.encoder.hidden * dtype_bytes(p.dtype);
  char *const out = static_cast<char*>(p.out), *const first = static_cast<char*>(p.first);
  BF_LAUNCH(unpack_rows, static_cast<unsigned>(ceil_div(places, kRowsAtOnce)), kThreads, 0, p.gpu,
            static_cast<const char*>(rows.out), out, static_cast<const std::int32_t*>(rows.rows),
            places, bytes, is_vector(out, bytes));
  BF_LAUNCH(take_first_rows, static_cast<unsigned>(p.batch), kThreads, 0, p.gpu,
            static_cast<const char*>(rows.out), first,
            static_cast<const std::int32_t*>(rows.cu_seqlens), static_cast<std::int32_t*>(nullptr),
            bytes, is_vector(first, bytes));
}

void walk(const PaddedEncoderFwd& p, Card card, Arena& arena) {
  check_lists(p.encoder);
  const Unpadded rows(p, arena);
  if (!card.most) pack(p, rows), embed(p, rows);
  Encoder layers(p.encoder, card);
  Stream s = layers.whole();
  s.x = rows.x, s.cu_seqlens = rows.cu_seqlens, s.used = rows.used(p);
  layers.run(arena, s, rows.out ? rows.out : static_cast<char*>(p.first));
  if (!card.most && rows.out) unpack(p, rows);
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

std::size_t padded_encoder_fwd_workspace(const PaddedEncoderFwd& p) { return workspace_of(p); }
void padded_encoder_fwd(const PaddedEncoderFwd& p) {
  if (p.batch * p.length > 0) launch_all(p);
}

}  // namespace bf::cuda
