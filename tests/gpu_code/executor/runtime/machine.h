// What every part of the runtime shares: instructions, buffers, warps, blocks, and how a handler is
// made.
//
// A kernel is an array of `Ins`. Each names a handler, a function that does one PTX operation for
// the 32 lanes of a warp under a mask. Operands are rows of the warp's register file: 32 values
// side by side, or one word of 32 bits where the operand is a predicate. Immediates and special
// registers are rows too, filled before a block starts.
#pragma once

#include <cfenv>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "races.h"

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kFull = ~0u;

struct Warp;
struct Ins;
using Handler = void (*)(Warp&, const Ins&, uint32_t mask);

// What the scheduler does with an instruction; all but kPlain steer lanes or bring them together.
enum Kind : int32_t { kPlain, kBranch, kIndexed, kExit, kAligned, kMembers, kWarpSync, kBarrier };
enum Flag : int32_t { kWideAddress = 1, kStrong = 2, kZeroFill = 4, kIgnore = 8, kArrive = 16 };
enum Space { kGlobal, kShared, kLocal, kParam, kGeneric };
enum Mode : int32_t { kIn, kOut, kInOut };

// One instruction as the assembler writes it. `slot` are byte offsets into the register file; guard
// 0 is "always".
struct Record {
  int32_t handler, kind, guard, negate;
  int64_t imm;
  int32_t target, flags;
  int32_t slot[16];
};

struct Ins : Record {
  Handler fn;
};

// A range of global memory that a kernel may touch. Arrays with one entry a byte are null where
// nobody asked.
struct Buffer {
  uint64_t base, size;
  uint8_t* written;  // 1 where initialised
  uint8_t* touched;  // bit 0 read, bit 1 written, in this launch
  uint32_t* owner;   // last writer: block index + 1, top bit where it was an atomic
  int64_t bytes_read, bytes_written;
  int32_t mode, padding;
};

// Thrown by handlers; the launch adds the block and the instruction.
struct Fault {
  const char* kind;
  int lane;
  int buffer;  // index, or kNoBuffer, kSharedBuffer, kLocalBuffer, kParamBuffer
  int64_t offset;
  std::string detail;
};
enum { kNoBuffer = -1, kSharedBuffer = -2, kLocalBuffer = -3, kParamBuffer = -4 };

// One cp.async of a warp that has not been waited for.
struct Copy {
  uint32_t mask;
  int bytes;
  uint32_t to[kLanes], group[kLanes];
  uint8_t data[kLanes][16];
};

// What one launch fixes for all its blocks.
struct Machine {
  std::vector<Ins> code;
  const int32_t* targets;  // of brx.idx
  Buffer* buffers;
  int32_t buffer_count;
  uint8_t* params;
  uint64_t param_bytes, shared_bytes, local_bytes;
  uint32_t block_threads;
  bool check;
  int lane_order[kLanes];
  int64_t* moved;          // bytes of global accesses by log2 of what one lane moves
  uint64_t last_read = 0;  // address and width last read: lanes that share them move it once
};

struct Block {
  Machine& machine;
  uint32_t index;  // linear id of the block in the grid
  uint8_t* shared;
  std::vector<uint8_t> local;  // [threads rounded up to warps][local_bytes]
  Races races;
  std::vector<int> hints;  // buffer that an instruction found last
};

struct Warp {
  Block* block;
  int index;
  uint8_t* file;
  uint32_t active, live, parked;
  int pc, next;
  int pcs[kLanes];
  uint32_t group[kLanes];  // cp.async groups that a lane committed
  std::vector<Copy> copies;
  bool waiting;

  template <class T>
  T* row(const Ins& ins, int k) const {
    return reinterpret_cast<T*>(file + ins.slot[k]);
  }
  uint8_t* local(int lane) const {
    return block->local.data() + (index * kLanes + lane) * block->machine.local_bytes;
  }
};

template <class F>
inline void for_lanes(uint32_t mask, F&& body) {
  for (; mask; mask &= mask - 1) body(__builtin_ctz(mask));
}

inline int first_lane(uint32_t mask) { return __builtin_ctz(mask); }

// The handlers by name, each with the widths of its operands: "4=4,8" one destination of 4 bytes,
// two sources; p is a predicate, a an address of 4 or 8 bytes.
struct Entry {
  std::string name, signature;
  Handler fn;
};
std::vector<Entry>& table();
inline void enter(const std::string& name, const std::string& signature, Handler fn) {
  table().push_back({name, signature, fn});
}

struct Pred {};
template <class T>
struct Operand {
  using Row = const T*;
  static T get(Row row, int lane) { return row[lane]; }
  static char width() { return char('0' + sizeof(T)); }
};
template <>
struct Operand<Pred> {
  using Row = const uint32_t*;
  static bool get(Row row, int lane) { return (*row >> lane) & 1; }
  static char width() { return 'p'; }
};

template <auto F, class D, class... S, size_t... K>
inline void each_lane(Warp& warp, const Ins& ins, uint32_t mask, std::index_sequence<K...>) {
  auto rows =
      std::make_tuple(reinterpret_cast<typename Operand<S>::Row>(warp.file + ins.slot[K + 1])...);
  auto value = [&](int lane) { return F(Operand<S>::get(std::get<K>(rows), lane)...); };
  if constexpr (std::is_same_v<D, Pred>) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t(bool(value(lane))) << lane;
    uint32_t* out = warp.row<uint32_t>(ins, 0);
    *out = (*out & ~mask) | (bits & mask);
  } else {
    D* out = warp.row<D>(ins, 0);
    if (mask == kFull) {
#pragma GCC ivdep
      for (int lane = 0; lane < kLanes; ++lane) out[lane] = D(value(lane));
    } else {
      for_lanes(mask, [&](int lane) { out[lane] = D(value(lane)); });
    }
  }
}

// What a function takes and returns, where bool stands for a predicate.
template <class F>
struct Shape : Shape<decltype(&F::operator())> {};
template <class C, class R, class... A>
struct Shape<R (C::*)(A...) const> : Shape<R (*)(A...)> {};
template <class R, class... A>
struct Shape<R (*)(A...)> {
  template <class T>
  using Of = std::conditional_t<std::is_same_v<T, bool>, Pred, T>;
  template <auto F>
  static void run(Warp& warp, const Ins& ins, uint32_t mask) {
    each_lane<F, Of<R>, Of<A>...>(warp, ins, mask, std::index_sequence_for<A...>{});
  }
  static std::string signature() {
    std::string text{Operand<Of<R>>::width(), '='};
    ((text += Operand<Of<A>>::width(), text += ','), ...);
    text.pop_back();
    return text;
  }
};

// A handler that computes F of a lane's sources.
template <auto F>
void each(Warp& warp, const Ins& ins, uint32_t mask) {
  Shape<decltype(F)>::template run<F>(warp, ins, mask);
}
template <auto F>
void add(const std::string& name) {
  enter(name, Shape<decltype(F)>::signature(), each<F>);
}

// The same under another rounding mode: opcode.rz, .rm and .rp.
template <int Mode, auto F>
void rounded(Warp& warp, const Ins& ins, uint32_t mask) {
  const int before = std::fegetround();
  std::fesetround(Mode);
  each<F>(warp, ins, mask);
  std::fesetround(before);
}
template <auto F>
void directed(const std::string& opcode, const std::string& type) {
  const std::string signature = Shape<decltype(F)>::signature();
  enter(opcode + ".rz" + type, signature, rounded<FE_TOWARDZERO, F>);
  enter(opcode + ".rm" + type, signature, rounded<FE_DOWNWARD, F>);
  enter(opcode + ".rp" + type, signature, rounded<FE_UPWARD, F>);
}

void enter_integer();
void enter_float();
void enter_convert();
void enter_memory();
void enter_warp();

}  // namespace ptx
