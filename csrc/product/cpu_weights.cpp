#include <time.h>

#include "product/dot.h"
#include "product/int8.h"
#include "product/pack.h"
#include "product/weights.h"

namespace bf::BF_ISA {
namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Ten chains hide the latency of a multiply-add on every core this is compiled for. Returns the
// operations done.
double multiply_add_chains(long rounds) {
  constexpr int kChains = 10;
  F acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = splat(static_cast<float>(i));
  volatile float factor = 0.999f, term = 0.001f;  // not to be known: 1 x + y would be 1
  const F x = splat(factor), y = splat(term);
  for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
    for (int j = 0; j < kChains; ++j) acc[j] = acc[j] * x + y;
    asm volatile("");  // keeps the loop from being folded
  }
  F total = acc[0];
  for (int j = 1; j < kChains; ++j) total += acc[j];
  volatile float keep = sum_lanes(total);
  (void)keep;
  return 2.0 * kLanes * kChains * static_cast<double>(rounds);
}

// Panels of numbers, and of pairs (dot.h).
template <class T>
struct Layout {
  static constexpr long kTogether = 1;  // so many neighbours along k lie side by side
  static void pack(const T* weight, long stride, long rows, long k, T* panel) {
    pack_panel(weight, stride, rows, k, panel);
  }
};
#if defined(__AVX512BF16__)
template <>
struct Layout<bf16> {
  static constexpr long kTogether = 2;
  static void pack(const bf16* weight, long stride, long rows, long k, bf16* panel) {
    pack_pairs(weight, stride, rows, k, reinterpret_cast<Pair*>(panel));
  }
};
#endif

template <class T>
long panel_elements(long k) {
  return kNR * round_up(k, Layout<T>::kTogether);
}

template <class T>
void pack(const PackWeight& p) {
  parallel_tasks(p.threads, panels(p.n), [&](long panel, int) {
    Layout<T>::pack(static_cast<const T*>(p.weight) + panel * kNR * p.stride, p.stride,
                    p.n - panel * kNR, p.k,
                    static_cast<T*>(p.packed) + panel * panel_elements<T>(p.k));
  });
}

template <class T>
void unpack(const PackWeight& p) {
  constexpr long together = Layout<T>::kTogether;
  parallel_tasks(p.threads, p.n, [&](long row, int) {
    const T* panel =
        static_cast<const T*>(p.packed) + row / kNR * panel_elements<T>(p.k) + row % kNR * together;
    T* out = static_cast<T*>(p.weight) + row * p.stride;
    for (long c = 0; c < p.k; ++c) out[c] = panel[c / together * together * kNR + c % together];
  });
}

}  // namespace

long packed_size(long n, long k) { return panels(n) * panel_elements<bf16>(k); }
Int8Layout int8_layout() { return {kNR, kFold, kOffset}; }
void pack_weight(const PackWeight& p) { BF_DISPATCH_DTYPE(p.dtype, T, pack<T>(p)) }
void unpack_weight(const PackWeight& p) { BF_DISPATCH_DTYPE(p.dtype, T, unpack<T>(p)) }

double fma_peak(int wanted, double seconds) {
  double done[256] = {}, spent[256] = {};
  const int threads = wanted < 256 ? wanted : 256;
  parallel_tasks(threads, threads, [&](long task, int) {
    const double start = now();
    double operations = 0;
    while (now() - start < seconds) operations += multiply_add_chains(20000);
    done[task] = operations;
    spent[task] = now() - start;
  });
  double flops = 0;
  for (int i = 0; i < threads; ++i) flops += done[i] / spent[i];
  return flops;
}

}  // namespace bf::BF_ISA
