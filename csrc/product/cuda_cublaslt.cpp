#include "product/cuda_cublaslt.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "common/check.h"

namespace bf::cuda {
namespace {

using Opaque = void*;  // a handle, a descriptor, a layout or a preference

// The types and values of cuBLASLt's ABI, the same in 12 and 13.
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
constexpr int kSum32 = 68, kSumTf32 = 77;                           // cublasComputeType_t
constexpr int kR32 = 0, kR16 = 2, kR16B = 14;                       // cudaDataType_t
constexpr int kTurnA = 3, kTurnB = 4, kEpilogue = 7;                // of a product's description
constexpr int kVector = 8;                                          // the same: its address
constexpr std::uint32_t kPlain = 1, kBias = 4, kGradientOfB = 512;  // cublasLtEpilogue_t
constexpr int kMostWorkspace = 1, kReductions = 3;                  // of a preference
constexpr int kAlignments[] = {5, 6, 7, 8};                         // the same: of a, b, c and d
constexpr std::uint32_t kPartsInFp32 = 2;  // of a cut sum: no other way is taken

#define BF_FOR_EACH_FUNCTION(X)                                                                   \
  X(Create, Opaque*)                                                                              \
  X(MatmulDescCreate, Opaque*, int, int)                                                          \
  X(MatmulDescDestroy, Opaque)                                                                    \
  X(MatmulDescSetAttribute, Opaque, int, const void*, std::size_t)                                \
  X(MatrixLayoutCreate, Opaque*, int, std::uint64_t, std::uint64_t, std::int64_t)                 \
  X(MatrixLayoutDestroy, Opaque)                                                                  \
  X(MatmulPreferenceCreate, Opaque*)                                                              \
  X(MatmulPreferenceDestroy, Opaque)                                                              \
  X(MatmulPreferenceSetAttribute, Opaque, int, const void*, std::size_t)                          \
  X(MatmulAlgoGetHeuristic, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, int, Choice*, \
    int*)                                                                                         \
  X(Matmul, Opaque, Opaque, const void*, const void*, Opaque, const void*, Opaque, const void*,   \
    const void*, Opaque, void*, Opaque, const Algorithm*, void*, std::size_t, void*)

struct Library {
#define BF_POINTER(NAME, ...) int (*NAME)(__VA_ARGS__) = nullptr;
  BF_FOR_EACH_FUNCTION(BF_POINTER)
#undef BF_POINTER

  // Whether all functions are there.
  bool open(const char* name) {
    void* found = dlopen(name, RTLD_NOW | RTLD_NOLOAD);  // kept: its functions stay
    if (!found) return false;
    bool all = true;
#define BF_LOOK_UP(NAME, ...)                                                    \
  NAME = reinterpret_cast<int (*)(__VA_ARGS__)>(dlsym(found, "cublasLt" #NAME)); \
  all = all && NAME;
    BF_FOR_EACH_FUNCTION(BF_LOOK_UP)
#undef BF_LOOK_UP
    return all;
  }
};

std::mutex mutex;  // of what follows

const Library* library() {
  static Library& found = *new Library;  // for ever, as all here: torch ends in its own order
  static bool open = false;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"})
    open = open || found.open(name);
  return open ? &found : nullptr;
}

void check(int status, const char* what) {
  if (status == 0) return;
  throw std::runtime_error(std::string("cuBLASLt: ") + what + " gave status " +
                           std::to_string(status));
}

// A thing that one function makes and another takes back.
class Made {
 public:
  template <class Make, class... Args>
  Made(const char* what, int (*end)(Opaque), Make make, Args... args) : end_(end) {
    check(make(&thing_, args...), what);
  }
  Made(Made&& other) noexcept : thing_(other.thing_), end_(other.end_) { other.thing_ = nullptr; }
  Made& operator=(Made&&) = delete;
  ~Made() {
    if (thing_) end_(thing_);
  }
  operator Opaque() const { return thing_; }

 private:
  Opaque thing_ = nullptr;
  int (*end_)(Opaque);
};

Made layout(const Library& lt, int type, long rows, long columns, long ld) {
  return {"a matrix's layout",
          lt.MatrixLayoutDestroy,
          lt.MatrixLayoutCreate,
          type,
          static_cast<std::uint64_t>(rows),
          static_cast<std::uint64_t>(columns),
          static_cast<std::int64_t>(ld)};
}

// What is kept of products of one kind.
struct Plan {
  Made a, b, d;
  Choice choice;
};

struct Problem {
  const LtProduct& p;
  DType dtype;
  bool tf32;
  int device;

  int type() const {
    return dtype == DType::kFloat32 ? kR32 : dtype == DType::kFloat16 ? kR16 : kR16B;
  }

  // Made for each product: it holds the vector's address.
  Made description(const Library& lt) const {
    Made made("a product's description", lt.MatmulDescDestroy, lt.MatmulDescCreate,
              dtype == DType::kFloat32 && tf32 ? kSumTf32 : kSum32, kR32);
    const auto set = [&](int attribute, const auto& value) {
      check(lt.MatmulDescSetAttribute(made, attribute, &value, sizeof value), "its attribute");
    };
    set(kTurnA, std::int32_t{p.turn_a});
    set(kTurnB, std::int32_t{p.turn_b});
    if (p.kind == LtVector::kNone) return made;
    set(kEpilogue, p.kind == LtVector::kBias ? kBias : kGradientOfB);
    set(kVector, p.vector);
    return made;
  }

  using Key = std::array<long, 16>;
  Key key() const {
    return {device,
            static_cast<long>(dtype),
            tf32,
            p.m,
            p.n,
            p.k,
            p.lda,
            p.ldb,
            p.ldd,
            p.turn_a,
            p.turn_b,
            static_cast<long>(p.kind),
            alignment(p.a),
            alignment(p.b),
            alignment(p.d),
            alignment(p.vector)};
  }
  // A power of two, 256 at most.
  static std::uint32_t alignment(const void* address) {
    const auto bits = reinterpret_cast<std::uintptr_t>(address) | 256;
    return static_cast<std::uint32_t>(bits & -bits);
  }

  std::shared_ptr<Plan> plan(const Library& lt, Opaque handle, Opaque description) const {
    const auto matrix = [&](long rows, long columns, bool turned, long ld) {
      return layout(lt, type(), turned ? columns : rows, turned ? rows : columns, ld);
    };
    std::shared_ptr<Plan> made(new Plan{matrix(p.m, p.k, p.turn_a, p.lda),
                                        matrix(p.k, p.n, p.turn_b, p.ldb),
                                        matrix(p.m, p.n, false, p.ldd),
                                        {}});
    const Made preference("a preference", lt.MatmulPreferenceDestroy, lt.MatmulPreferenceCreate);
    const auto prefer = [&](int attribute, const auto& value) {
      check(lt.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
            "a preference's attribute");
    };
    prefer(kMostWorkspace, kLtWorkspace);
    prefer(kReductions, kPartsInFp32);
    const void* addresses[] = {p.a, p.b, p.d, p.d};
    for (int i = 0; i < 4; ++i) prefer(kAlignments[i], alignment(addresses[i]));
    int count = 0;
    const int status = lt.MatmulAlgoGetHeuristic(handle, description, made->a, made->b, made->d,
                                                 made->d, preference, 1, &made->choice, &count);
    if (status || !count || made->choice.state) {
      const auto size = [](long n) { return std::to_string(n); };
      throw std::runtime_error("cuBLASLt has nothing for a product of " + size(p.m) + " x " +
                               size(p.n) + " x " + size(p.k) + ": status " + size(status));
    }
    return made;
  }
};

Opaque handle_of(const Library& lt, int device) {
  static auto& handles = *new std::map<int, Opaque>;
  Opaque& handle = handles[device];
  if (!handle) check(lt.Create(&handle), "a handle");
  return handle;
}

std::shared_ptr<Plan> plan_of(const Library& lt, Opaque handle, const Problem& problem,
                              Opaque description) {
  constexpr std::size_t kMost = 1024;  // ragged batches have ever other numbers of rows
  static auto& plans = *new std::map<Problem::Key, std::shared_ptr<Plan>>;
  const Problem::Key key = problem.key();
  const auto known = plans.find(key);
  if (known != plans.end()) return known->second;
  auto plan = problem.plan(lt, handle, description);
  if (plans.size() >= kMost) plans.clear();  // who runs one of them holds it
  return plans[key] = plan;
}

}  // namespace

std::string cublaslt_refuses() {
  const std::lock_guard<std::mutex> lock(mutex);
  return library() ? "" : "no libcublasLt.so.13 or .12 is loaded";
}

void cublaslt_product(const LtProduct& p, DType dtype, const Gpu& gpu, void* workspace) {
  const auto aligned = [&](const void* address, long ld) {
    return reinterpret_cast<std::uintptr_t>(address) % 16 == 0 && ld * dtype_bytes(dtype) % 16 == 0;
  };
  BF_CHECK(
      aligned(p.a, p.lda) && aligned(p.b, p.ldb) && aligned(p.d, p.ldd) && aligned(p.vector, 0),
      "cuBLASLt: expected addresses and rows that are multiples of 16 bytes");
  Problem problem{p, dtype, gpu.tf32, 0};
  if (cudaGetDevice(&problem.device) != cudaSuccess)
    throw std::runtime_error("cuBLASLt: no current device");
  std::unique_lock<std::mutex> lock(mutex);
  const Library* lt = library();
  BF_CHECK(lt != nullptr, "cuBLASLt: no libcublasLt.so.13 or .12 is loaded");
  const Opaque handle = handle_of(*lt, problem.device);
  const Made description = problem.description(*lt);
  const std::shared_ptr<Plan> plan = plan_of(*lt, handle, problem, description);
  lock.unlock();
  const float one = 1, zero = 0;
  check(lt->Matmul(handle, description, &one, p.a, plan->a, p.b, plan->b, &zero, p.d, plan->d, p.d,
                   plan->d, &plan->choice.algorithm, workspace, plan->choice.workspace, gpu.stream),
        "a product");
}

}  // namespace bf::cuda
