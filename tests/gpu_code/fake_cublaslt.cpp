// A cuBLASLt for machines without a GPU: the functions that bertfast looks up, multiplying on the
// CPU. What the real one refuses is refused, and some of what it would take but slowly or at
// another precision: matrices that are not 16-byte aligned, a product that is not the one that
// the algorithm was chosen for, memory that is less aligned than was said, another stream than the
// caller's. Types are the library's ABI, written out so that no CUDA header is needed.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kInternalError = 14;
constexpr int kNotSupported = 15;
constexpr int kSum32 = 68, kSumTf32 = 77, kR32 = 0, kR16 = 2, kR16B = 14;
constexpr std::uint32_t kPlain = 1, kBias = 4, kGradientOfA = 256, kGradientOfB = 512;
constexpr std::size_t kNeeded = 1 << 20;  // the workspace of every algorithm

struct Description {
  int compute, scale;
  std::int32_t turn[2] = {};  // of a, of b
  std::uint32_t epilogue = kPlain;
  std::uintptr_t vector = 0;
};
struct Layout {
  int type;
  std::uint64_t rows, columns;
  std::int64_t ld;
};
struct Preference {
  std::uint64_t workspace = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256}, reductions = 7;
};
struct Algorithm {
  std::uint64_t data[8];
};
struct Choice {
  Algorithm algorithm;
  std::size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

// A block of memory that a product reads or writes: `count` pieces of `bytes`, `stride` bytes
// apart.
struct Touched {
  std::uintptr_t address;
  std::uint64_t bytes, count, stride;
  std::int32_t written;
};
// Told of each product before it is computed; returns 0, or what keeps it from being computed.
using Watch = int (*)(const Touched* touched, int count);

// Lets what is launched on a stream run now or, where that is recorded, at each replay.
using Launch = int (*)(void* stream, int (*job)(void*), void (*end)(void*), void* data);

Watch watch = nullptr;
Launch launch = nullptr;
std::atomic<long> made{0}, ended{0}, chosen{0}, handles{0};
std::atomic<std::uint32_t> reductions{0};

int bytes_of(int type) { return type == kR32 ? 4 : type == kR16 || type == kR16B ? 2 : 0; }

float from_half(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                     : exponent == 31 ? (fraction ? NAN : INFINITY)
                                      : std::ldexp(1024.0f + fraction, exponent - 25);
  return bits >> 15 ? -size : size;
}
std::uint16_t to_half(float x) {
  const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (std::isnan(x)) return 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent;
  std::frexp(size, &exponent);
  const int step = std::max(exponent - 11, -24);                                // of the last bit
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, -step)));  // ties to even
  return static_cast<std::uint16_t>(sign | (step == -24 ? units : ((step + 24) << 10) + units));
}
float load(int type, const void* from, long i) {
  if (type == kR32) return static_cast<const float*>(from)[i];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(from)[i];
  if (type == kR16) return from_half(bits);
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}
void store(int type, void* to, long i, float x) {
  if (type == kR32) {
    static_cast<float*>(to)[i] = x;
  } else if (type == kR16) {
    static_cast<std::uint16_t*>(to)[i] = to_half(x);
  } else {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = std::isnan(x) ? 0x7fc00000 : bits + 0x7fff + (bits >> 16 & 1);
    static_cast<std::uint16_t*>(to)[i] = static_cast<std::uint16_t>(bits >> 16);
  }
}
// As tensor cores take it: 10 bits of the fraction, to nearest, ties away.
float tf32(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x1000) & ~std::uint32_t{0x1fff};
  std::memcpy(&x, &bits, 4);
  return x;
}

std::uintptr_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

// What tells products apart, as an algorithm remembers it.
std::uint64_t digest(const Description& d, const Layout* const (&layouts)[4]) {
  std::uint64_t hash = 1469598103934665603u;
  const auto add = [&](std::uint64_t value) { hash = (hash ^ value) * 1099511628211u; };
  add(d.compute), add(d.turn[0]), add(d.turn[1]), add(d.epilogue);
  for (const Layout* l : layouts) add(l->type), add(l->rows), add(l->columns), add(l->ld);
  return hash;
}

int refusal(const Description& d, const Layout* const (&layouts)[4]) {
  const Layout &a = *layouts[0], &b = *layouts[1], &c = *layouts[2], &to = *layouts[3];
  const auto rows = [](const Layout& l, bool turned) { return turned ? l.columns : l.rows; };
  const std::uint64_t m = rows(a, d.turn[0]), k = rows(a, !d.turn[0]), n = rows(b, !d.turn[1]);
  if (rows(b, d.turn[1]) != k || to.rows != m || to.columns != n) return kInvalidValue;
  if (c.rows != m || c.columns != n || c.ld != to.ld) return kInvalidValue;
  if (a.type != b.type || a.type != c.type || a.type != to.type) return kNotSupported;
  if (d.scale != kR32 || (d.compute == kSumTf32 && a.type != kR32)) return kNotSupported;
  if (d.epilogue != kPlain && !d.vector) return kInvalidValue;
  for (const Layout* l : layouts)
    if (l->ld * bytes_of(l->type) % 16) return kNotSupported;
  return kSuccess;
}

// A product that was accepted: what is done when the stream comes to it.
struct Job {
  Description what;
  Layout la, lb, ld;
  const void *a, *b;
  void *d, *workspace;
  std::size_t bytes;
  float scale, old;

  int run() const;
  static int start(void* job) { return static_cast<Job*>(job)->run(); }
  static void end(void* job) { delete static_cast<Job*>(job); }
};

int Job::run() const {
  const int type = ld.type, size = bytes_of(type);
  const long m = static_cast<long>(ld.rows), n = static_cast<long>(ld.columns);
  const long k = static_cast<long>(what.turn[0] ? la.rows : la.columns);
  const bool gradient = what.epilogue == kGradientOfA || what.epilogue == kGradientOfB;
  const long length = what.epilogue == kGradientOfB ? n : m;
  if (watch) {
    const auto matrix = [&](const void* at, const Layout& l, bool written) {
      return Touched{number(at), l.rows * size, l.columns, static_cast<std::uint64_t>(l.ld) * size,
                     written};
    };
    const std::uint64_t vector = what.epilogue == kPlain ? 0 : length * size;
    const Touched touched[] = {matrix(a, la, false),
                               matrix(b, lb, false),
                               {what.vector, vector, vector ? 1u : 0u, vector, gradient},
                               {number(workspace), bytes, 1, bytes, true},
                               matrix(d, ld, true)};
    if (watch(touched, 5)) return kInternalError;
  }
  const bool rounds = what.compute == kSumTf32;
  const auto operand = [&](const void* from, const Layout& l, bool turned) {  // [rows, k] packed
    const long rows = static_cast<long>(turned ? l.columns : l.rows);
    const long depth = static_cast<long>(turned ? l.rows : l.columns);
    std::vector<float> packed(rows * depth);
    for (long i = 0; i < rows; ++i)
      for (long j = 0; j < depth; ++j) {
        const float x = load(type, from, turned ? j + i * l.ld : i + j * l.ld);
        packed[i * depth + j] = rounds ? tf32(x) : x;
      }
    return packed;
  };
  const std::vector<float> left = operand(a, la, what.turn[0]);
  const std::vector<float> right = operand(b, lb, !what.turn[1]);
  if (old != 0) return kNotSupported;
  std::memset(workspace, 0xff, kNeeded);  // nobody else has anything there
  void* vector = reinterpret_cast<void*>(what.vector);
  for (long j = 0; j < n; ++j)
    for (long i = 0; i < m; ++i) {
      double sum = 0;
      for (long q = 0; q < k; ++q) sum += static_cast<double>(left[i * k + q]) * right[j * k + q];
      float x = scale * static_cast<float>(sum);
      if (what.epilogue == kBias) x += load(type, vector, i);
      store(type, d, i + j * ld.ld, x);
    }
  for (long i = 0; gradient && i < length; ++i) {
    double sum = 0;
    for (long q = 0; q < k; ++q) sum += (what.epilogue == kGradientOfA ? left : right)[i * k + q];
    store(type, vector, i, static_cast<float>(sum));
  }
  return kSuccess;
}

}  // namespace

EXPORT void fake_cublaslt_watch(Watch function, Launch launcher) {
  watch = function;
  launch = launcher;
}
// Things made and not yet taken back; handles; algorithms chosen; how sums might be cut.
EXPORT long fake_cublaslt_left() { return made - ended; }
EXPORT long fake_cublaslt_handles() { return handles; }
EXPORT long fake_cublaslt_chosen() { return chosen; }
EXPORT long fake_cublaslt_reductions() { return reductions; }

EXPORT int cublasLtCreate(void** handle) {
  *handle = reinterpret_cast<void*>(static_cast<std::uintptr_t>(0x1000 + ++handles));
  return kSuccess;
}

EXPORT int cublasLtMatmulDescCreate(void** description, int compute, int scale) {
  if (compute != kSum32 && compute != kSumTf32) return kInvalidValue;
  *description = new Description{compute, scale};
  return ++made, kSuccess;
}
EXPORT int cublasLtMatmulDescDestroy(void* description) {
  delete static_cast<Description*>(description);
  return ++ended, kSuccess;
}
EXPORT int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value,
                                          std::size_t bytes) {
  auto* d = static_cast<Description*>(description);
  const auto set = [&](auto& member) {
    if (!value || bytes != sizeof member) return kInvalidValue;
    std::memcpy(&member, value, bytes);
    return kSuccess;
  };
  if (attribute == 3 || attribute == 4) {
    std::int32_t& turn = d->turn[attribute - 3];
    return set(turn) || turn < 0 || turn > 1 ? kInvalidValue : kSuccess;
  }
  if (attribute == 7) {
    const std::uint32_t known[] = {kPlain, kBias, kGradientOfA, kGradientOfB};
    const bool bad = set(d->epilogue) || !std::count(known, known + 4, d->epilogue);
    return bad ? kInvalidValue : kSuccess;
  }
  return attribute == 8 ? set(d->vector) : kInvalidValue;
}

EXPORT int cublasLtMatrixLayoutCreate(void** layout, int type, std::uint64_t rows,
                                      std::uint64_t columns, std::int64_t ld) {
  if (!bytes_of(type) || !rows || !columns) return kInvalidValue;
  if (ld < static_cast<std::int64_t>(rows)) return kInvalidValue;  // columns would overlap
  *layout = new Layout{type, rows, columns, ld};
  return ++made, kSuccess;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Layout*>(layout);
  return ++ended, kSuccess;
}

EXPORT int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = new Preference;
  return ++made, kSuccess;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete static_cast<Preference*>(preference);
  return ++ended, kSuccess;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value,
                                                std::size_t bytes) {
  auto* p = static_cast<Preference*>(preference);
  const auto set = [&](auto& member) {
    if (!value || bytes != sizeof member) return kInvalidValue;
    std::memcpy(&member, value, bytes);
    return kSuccess;
  };
  if (attribute == 1) return set(p->workspace);
  if (attribute == 3) return set(p->reductions);
  if (attribute < 5 || attribute > 8) return kInvalidValue;
  std::uint32_t& least = p->alignment[attribute - 5];
  return set(least) || !least || (least & (least - 1)) ? kInvalidValue : kSuccess;
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* a, void* b,
                                          void* c, void* d, void* preference, int asked,
                                          Choice* choices, int* count) {
  *count = 0;
  if (!handle) return kNotInitialized;
  if (asked < 1) return kInvalidValue;
  const Layout* layouts[] = {static_cast<Layout*>(a), static_cast<Layout*>(b),
                             static_cast<Layout*>(c), static_cast<Layout*>(d)};
  const auto& what = *static_cast<Description*>(description);
  if (const int error = refusal(what, layouts)) return error;
  const auto& p = *static_cast<Preference*>(preference);
  if (p.workspace < kNeeded) return kNotSupported;
  for (std::uint32_t least : p.alignment)
    if (least < 16) return kNotSupported;
  reductions |= p.reductions;
  ++chosen;
  choices[0] = {{{digest(what, layouts), p.alignment[0], p.alignment[1], p.alignment[2],
                  p.alignment[3], number(handle)}},
                kNeeded,
                kSuccess,
                1.0f,
                {}};
  *count = 1;
  return kSuccess;
}

EXPORT int cublasLtMatmul(void* handle, void* description, const void* alpha, const void* a,
                          void* a_layout, const void* b, void* b_layout, const void* beta,
                          const void* c, void* c_layout, void* d, void* d_layout,
                          const Algorithm* algorithm, void* workspace, std::size_t bytes,
                          void* stream) {
  if (!handle || !alpha || !beta || !algorithm) return kInvalidValue;
  const auto& what = *static_cast<Description*>(description);
  const Layout* layouts[] = {static_cast<Layout*>(a_layout), static_cast<Layout*>(b_layout),
                             static_cast<Layout*>(c_layout), static_cast<Layout*>(d_layout)};
  if (const int error = refusal(what, layouts)) return error;
  const auto& chosen_for = algorithm->data;
  if (chosen_for[0] != digest(what, layouts) || chosen_for[5] != number(handle))
    return kNotSupported;
  const void* matrices[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (!matrices[i] || number(matrices[i]) % chosen_for[1 + i]) return kInvalidValue;
  if (what.vector % 16 || bytes < kNeeded || !workspace || number(workspace) % 16)
    return kInvalidValue;
  auto* job = new Job{what,
                      *layouts[0],
                      *layouts[1],
                      *layouts[3],
                      a,
                      b,
                      d,
                      workspace,
                      bytes,
                      *static_cast<const float*>(alpha),
                      *static_cast<const float*>(beta)};
  return launch ? launch(stream, Job::start, Job::end, job) : (Job::end(job), kNotInitialized);
}
