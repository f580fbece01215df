// Instructions in which the lanes of a warp take part together: shfl, vote, match, redux, mma; and
// small change.
//
// Fragments of mma.m16n8kK as the PTX ISA lays them out, g = lane / 4, t = lane % 4. 16-bit types,
// k = 2t + {0, 1} (+8): A registers rows g, g + 8, then the same of the next 8 k; B column g; C row
// g columns 2t + {0, 1}, then row g + 8. tf32: one k = t (+4) a register. Products are summed in
// fp32 in the order of k, which is not a tensor core's.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "half.h"
#include "machine.h"

namespace ptx {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

enum Shuffle { kUp, kDown, kBfly, kIdx };

// slots: d, predicate, a, b, c, members. A lane that reads one that takes no part gets all ones, a
// NaN.
template <Shuffle How>
void shuffle(Warp& warp, const Ins& ins, uint32_t mask) {
  u32 source[kLanes], valid = 0;
  const u32* a = warp.row<u32>(ins, 2);
  for_lanes(mask, [&](int lane) {
    const u32 b = warp.row<u32>(ins, 3)[lane] & 31, c = warp.row<u32>(ins, 4)[lane];
    const int clamp = int(c & 31), segment = int(c >> 8 & 31);
    const int top = (lane & segment) | (clamp & ~segment), low = lane & segment;
    int from = lane;
    bool ok = false;
    if (How == kUp) from = lane - int(b), ok = from >= top;
    if (How == kDown) from = lane + int(b), ok = from <= top;
    if (How == kBfly) from = lane ^ int(b), ok = from <= top;
    if (How == kIdx) from = low | (int(b) & ~segment), ok = from <= top;
    if (!ok) from = lane;
    source[lane] = mask >> from & 1 ? a[from] : ~0u;
    valid |= u32(ok) << lane;
  });
  for_lanes(mask, [&](int lane) { warp.row<u32>(ins, 0)[lane] = source[lane]; });
  u32* out = warp.row<u32>(ins, 1);
  *out = (*out & ~mask) | (valid & mask);
}

enum Vote { kAll, kAny, kUni };
template <Vote How>
void vote(Warp& warp, const Ins& ins, uint32_t mask) {
  const u32 yes = *warp.row<u32>(ins, 1) & mask;
  const bool result = How == kAll ? yes == mask : How == kAny ? yes != 0 : yes == mask || !yes;
  u32* out = warp.row<u32>(ins, 0);
  *out = result ? *out | mask : *out & ~mask;
}
void ballot(Warp& warp, const Ins& ins, uint32_t mask) {
  const u32 yes = *warp.row<u32>(ins, 1) & mask;
  for_lanes(mask, [&](int lane) { warp.row<u32>(ins, 0)[lane] = yes; });
}

void activemask(Warp& warp, const Ins& ins, uint32_t mask) {
  for_lanes(mask, [&](int lane) { warp.row<u32>(ins, 0)[lane] = mask; });
}

template <class T>
void match_any(Warp& warp, const Ins& ins, uint32_t mask) {
  const T* a = warp.row<T>(ins, 1);
  u32 same[kLanes] = {};
  for_lanes(mask, [&](int lane) {
    for_lanes(mask, [&](int other) { same[lane] |= u32(a[other] == a[lane]) << other; });
  });
  for_lanes(mask, [&](int lane) { warp.row<u32>(ins, 0)[lane] = same[lane]; });
}
template <class T>
void match_all(Warp& warp, const Ins& ins, uint32_t mask) {
  const T* a = warp.row<T>(ins, 2);
  const T first = a[first_lane(mask)];
  bool all = true;
  for_lanes(mask, [&](int lane) { all &= a[lane] == first; });
  for_lanes(mask, [&](int lane) { warp.row<u32>(ins, 0)[lane] = all ? mask : 0; });
  u32* out = warp.row<u32>(ins, 1);
  *out = all ? *out | mask : *out & ~mask;
}

template <class T, auto F>
void redux(Warp& warp, const Ins& ins, uint32_t mask) {
  const T* a = warp.row<T>(ins, 1);
  T sum = a[first_lane(mask)];
  for_lanes(mask & (mask - 1), [&](int lane) { sum = F(sum, a[lane]); });
  for_lanes(mask, [&](int lane) { warp.row<T>(ins, 0)[lane] = sum; });
}

struct Tf32 {};

// One operand's registers as values[line][k], line a row of A or a column of B: four lanes side by
// side hold 16 bytes of one line.
template <class In, int K, int Lines>
void gather(Warp& warp, const Ins& ins, int slot, float (*values)[K]) {
  using Element = std::conditional_t<std::is_same_v<In, Tf32>, u32, uint16_t>;
  constexpr int kStep = 16 / sizeof(Element);
  for (int k0 = 0; k0 < K; k0 += kStep)
    for (int line = 0; line < Lines; line += 8) {
      const Element* from = warp.row<Element>(ins, slot++);
      for (int g = 0; g < 8; ++g)
        for (int k = 0; k < kStep; ++k) {
          const Element element = from[g * kStep + k];
          if constexpr (sizeof(Element) == 4)
            values[line + g][k0 + k] = bits<float>(element & 0xffffe000u);
          else
            values[line + g][k0 + k] = In::value(element);
        }
    }
}

template <int K>
void multiply(const float (*a)[K], const float (*b)[K], float (*c)[8]) {
  float columns[K][8];
  for (int n = 0; n < 8; ++n)
    for (int k = 0; k < K; ++k) columns[k][n] = b[n][k];
  for (int m = 0; m < 16; m += 2) {
    float x[8], y[8];
    std::memcpy(x, c[m], sizeof x), std::memcpy(y, c[m + 1], sizeof y);
    for (int k = 0; k < K; ++k)
      for (int n = 0; n < 8; ++n) {
        x[n] = __builtin_fmaf(a[m][k], columns[k][n], x[n]);
        y[n] = __builtin_fmaf(a[m + 1][k], columns[k][n], y[n]);
      }
    std::memcpy(c[m], x, sizeof x), std::memcpy(c[m + 1], y, sizeof y);
  }
}

// D = A B + C with fp32 C and D (4 registers each), or fp16 ones (2 each).
template <class In, int K, bool HalfOut>
void mma(Warp& warp, const Ins& ins, uint32_t) {
  constexpr int kOut = HalfOut ? 2 : 4, kA = std::is_same_v<In, Tf32> ? K / 2 : K / 4, kB = kA / 2;
  float a[16][K], b[8][K], c[16][8];
  gather<In, K, 16>(warp, ins, kOut, a);
  gather<In, K, 8>(warp, ins, kOut + kA, b);
  auto accumulators = [&](int slot, auto&& move) {
    for (int k = 0; k < kOut; ++k)
      for (int lane = 0; lane < kLanes; ++lane) {
        u32& word = warp.row<u32>(ins, slot + k)[lane];
        if constexpr (HalfOut)
          move(word, &c[lane / 4 + 8 * k][lane % 4 * 2]);
        else
          move(word, &c[lane / 4 + 8 * (k / 2)][lane % 4 * 2 + k % 2]);
      }
  };
  accumulators(kOut + kA + kB, [](u32& word, float* value) {
    if constexpr (HalfOut)
      value[0] = Half::value(uint16_t(word)), value[1] = Half::value(uint16_t(word >> 16));
    else
      *value = bits<float>(word);
  });
  multiply<K>(a, b, c);
  accumulators(0, [](u32& word, float* value) {
    if constexpr (HalfOut)
      word = u32(Half::round(value[0])) | u32(Half::round(value[1])) << 16;
    else
      word = bits<u32>(*value);
  });
}

template <class In, int K, bool HalfOut>
void enter_mma(const std::string& name) {
  constexpr int kOut = HalfOut ? 2 : 4, kA = std::is_same_v<In, Tf32> ? K / 2 : K / 4;
  std::string signature;
  for (int k = 0; k < kOut; ++k) signature += k ? ",4" : "4";
  signature += '=';
  for (int k = 0; k < kA + kA / 2 + kOut; ++k) signature += k ? ",4" : "4";
  enter("mma.m16n8k" + std::to_string(K) + name, signature, mma<In, K, HalfOut>);
}

u64 nanoseconds() { return u64(std::chrono::steady_clock::now().time_since_epoch().count()); }
template <class T>
void clock(Warp& warp, const Ins& ins, uint32_t mask) {
  const T now = T(nanoseconds());
  for_lanes(mask, [&](int lane) { warp.row<T>(ins, 0)[lane] = now; });
}

void nothing(Warp&, const Ins&, uint32_t) {}
void trap(Warp&, const Ins&, uint32_t mask) {
  throw Fault{"trap", first_lane(mask), kNoBuffer, 0, ""};
}

// The race clock of the warp moves where all its lanes meet.
void sync_warp(Warp& warp, const Ins&, uint32_t mask) {
  Races& races = warp.block->races;
  if (races.on && !races.tick(warp.index))
    throw Fault{"limit", first_lane(mask), kNoBuffer, 0, "too many synchronisations in one block"};
}

}  // namespace

void enter_warp() {
  enter("shfl.up.b32", "4,p=4,4,4,4", shuffle<kUp>);
  enter("shfl.down.b32", "4,p=4,4,4,4", shuffle<kDown>);
  enter("shfl.bfly.b32", "4,p=4,4,4,4", shuffle<kBfly>);
  enter("shfl.idx.b32", "4,p=4,4,4,4", shuffle<kIdx>);
  enter("vote.all.pred", "p=p,4", vote<kAll>);
  enter("vote.any.pred", "p=p,4", vote<kAny>);
  enter("vote.uni.pred", "p=p,4", vote<kUni>);
  enter("vote.ballot.b32", "4=p,4", ballot);
  enter("activemask.b32", "4=", activemask);
  enter("match.any.b32", "4=4,4", match_any<u32>);
  enter("match.any.b64", "4=8,4", match_any<u64>);
  enter("match.all.b32", "4,p=4,4", match_all<u32>);
  enter("match.all.b64", "4,p=8,4", match_all<u64>);
  using s32 = int32_t;
  enter("redux.add.u32", "4=4,4", redux<u32, [](u32 a, u32 b) { return a + b; }>);
  enter("redux.and.b32", "4=4,4", redux<u32, [](u32 a, u32 b) { return a & b; }>);
  enter("redux.or.b32", "4=4,4", redux<u32, [](u32 a, u32 b) { return a | b; }>);
  enter("redux.xor.b32", "4=4,4", redux<u32, [](u32 a, u32 b) { return a ^ b; }>);
  enter("redux.min.u32", "4=4,4", redux<u32, [](u32 a, u32 b) { return std::min(a, b); }>);
  enter("redux.max.u32", "4=4,4", redux<u32, [](u32 a, u32 b) { return std::max(a, b); }>);
  enter("redux.min.s32", "4=4,4", redux<s32, [](s32 a, s32 b) { return std::min(a, b); }>);
  enter("redux.max.s32", "4=4,4", redux<s32, [](s32 a, s32 b) { return std::max(a, b); }>);
  enter_mma<Half, 16, false>(".f32.f16.f16.f32");
  enter_mma<Half, 16, true>(".f16.f16.f16.f16");
  enter_mma<Half, 8, false>(".f32.f16.f16.f32");
  enter_mma<Half, 8, true>(".f16.f16.f16.f16");
  enter_mma<Brain, 16, false>(".f32.bf16.bf16.f32");
  enter_mma<Brain, 8, false>(".f32.bf16.bf16.f32");
  enter_mma<Tf32, 8, false>(".f32.tf32.tf32.f32");
  enter_mma<Tf32, 4, false>(".f32.tf32.tf32.f32");
  enter("clock.u32", "4=", clock<u32>);
  enter("clock.u64", "8=", clock<u64>);
  enter("nothing", "=", nothing);
  enter("trap", "=", trap);
  enter("bra", "=", nothing);
  enter("brx.idx", "=4", nothing);
  enter("exit", "=", nothing);
  enter("bar.warp.sync", "=4", sync_warp);
  enter("bar", "=4,4", nothing);  // id, threads (0: all)
  enter("bar.red.popc.u32", "4=4,4,p", nothing);
  enter("bar.red.and.pred", "p=4,4,p", nothing);
  enter("bar.red.or.pred", "p=4,4,p", nothing);
}

}  // namespace ptx
