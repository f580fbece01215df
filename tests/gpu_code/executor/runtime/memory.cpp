// ld, st, cp.async, ldmatrix, atom and red: addresses to bytes, with the checks on the way.
#include <algorithm>
#include <cmath>

#include "half.h"
#include "machine.h"

namespace ptx {
namespace {

[[noreturn]] void refuse(const char* kind, int lane, int buffer, int64_t offset,
                         std::string detail = "") {
  throw Fault{kind, lane, buffer, offset, std::move(detail)};
}

std::string other(uint32_t stamp) {
  return "warp " + std::to_string(Races::warp_of(stamp)) + " lane " +
         std::to_string(Races::lane_of(stamp));
}

// The registered buffer that holds n bytes at an address.
Buffer& find(Warp& warp, int lane, uint64_t at, uint64_t n) {
  Machine& machine = warp.block->machine;
  int& hint = warp.block->hints[warp.pc];
  auto holds = [&](const Buffer& b) { return at - b.base < b.size && n <= b.size - (at - b.base); };
  if (holds(machine.buffers[hint])) return machine.buffers[hint];
  int near = kNoBuffer;
  int64_t offset = int64_t(at), distance = INT64_MAX;
  for (int k = 0; k < machine.buffer_count; ++k) {
    const Buffer& b = machine.buffers[k];
    if (holds(b)) return machine.buffers[hint = k];
    const int64_t from = int64_t(at - b.base);
    const int64_t gap = from < 0 ? -from : std::max<int64_t>(0, from - int64_t(b.size));
    if (gap < distance) near = k, offset = from, distance = gap;
  }
  refuse("out of bounds", lane, near, offset, std::to_string(n) + " bytes");
}

void aligned(int lane, int buffer, uint64_t at, int64_t offset, int n) {
  if (at & uint64_t(n - 1))
    refuse("misaligned", lane, buffer, offset, std::to_string(n) + " bytes");
}

void touch(Buffer& b, uint64_t offset, int n, uint8_t bit, int64_t& count) {
  uint8_t* t = b.touched + offset;
  for (int i = 0; i < n; ++i) {
    count += !(t[i] & bit);
    t[i] |= bit;
  }
}

// width: of the access that these n bytes belong to; a cp.async may read fewer than it brings.
const uint8_t* read_global(Warp& warp, int lane, uint64_t at, int n, int width) {
  Buffer& b = find(warp, lane, at, n);
  const int id = int(&b - warp.block->machine.buffers);
  const uint64_t offset = at - b.base;
  aligned(lane, id, at, int64_t(offset), n);
  if (warp.block->machine.check) {
    for (int i = 0; b.written && i < n; ++i)
      if (!b.written[offset + i]) refuse("unwritten read", lane, id, int64_t(offset + i));
    if (b.touched) touch(b, offset, n, 1, b.bytes_read);
  }
  Machine& machine = warp.block->machine;
  const uint64_t read = at << 5 | uint64_t(width);
  if (machine.last_read != read) machine.moved[__builtin_ctz(width)] += n;
  machine.last_read = read;
  return reinterpret_cast<const uint8_t*>(at);
}

// Returns where to write; `data` null for an atomic.
uint8_t* write_global(Warp& warp, int lane, uint64_t at, int n, const uint8_t* data) {
  Buffer& b = find(warp, lane, at, n);
  const int id = int(&b - warp.block->machine.buffers);
  const uint64_t offset = at - b.base;
  aligned(lane, id, at, int64_t(offset), n);
  if (b.mode == kIn) refuse("write to an input", lane, id, int64_t(offset));
  uint8_t* now = reinterpret_cast<uint8_t*>(at);
  if (warp.block->machine.check && b.owner) {
    const uint32_t me = (warp.block->index + 1) & 0x7fffffff;
    const uint32_t mine = me | (data ? 0 : 0x80000000u);
    for (int i = 0; i < n; ++i) {
      uint32_t& owner = b.owner[offset + i];
      const bool strange = owner && (owner & 0x7fffffff) != me;
      const bool harmless = data ? !(owner >> 31) && now[i] == data[i] : owner >> 31;
      if (strange && !harmless)
        refuse("two blocks", lane, id, int64_t(offset + i),
               "also written by linear block " + std::to_string((owner & 0x7fffffff) - 1));
      owner = mine;
    }
  }
  if (warp.block->machine.check && b.touched) touch(b, offset, n, 2, b.bytes_written);
  if (b.written) std::memset(b.written + offset, 1, n);
  warp.block->machine.moved[__builtin_ctz(n)] += n;
  return now;
}

uint32_t in_shared(Warp& warp, int lane, uint32_t at, int n) {
  const uint64_t size = warp.block->machine.shared_bytes;
  if (at > size || uint64_t(n) > size - at)
    refuse("out of bounds", lane, kSharedBuffer, at, std::to_string(n) + " bytes");
  aligned(lane, kSharedBuffer, at, at, n);
  return at;
}

struct Culprit {
  uint32_t at = 0, by = 0;
};

void judge(Races::Verdict verdict, const char* action, int lane, const Culprit& culprit) {
  if (verdict == Races::kOrdered) return;
  const std::string by = other(culprit.by);
  if (verdict == Races::kUnwritten) refuse("unwritten read", lane, kSharedBuffer, culprit.at);
  if (verdict == Races::kUnwaited)
    refuse("cp.async before its wait", lane, kSharedBuffer, culprit.at, "copied by " + by);
  refuse("race", lane, kSharedBuffer, culprit.at, std::string(action) + ", no barrier after " + by);
}

const uint8_t* read_shared(Warp& warp, int lane, uint32_t at, int n, bool strong) {
  in_shared(warp, lane, at, n);
  Races& races = warp.block->races;
  if (races.on) {
    Culprit who;
    const auto verdict = races.on_read(warp.index, lane, at, n, strong, &who.at, &who.by);
    judge(verdict, "read", lane, who);
  }
  return warp.block->shared + at;
}

uint8_t* write_shared(Warp& warp, int lane, uint32_t at, int n, const uint8_t* data, bool strong) {
  in_shared(warp, lane, at, n);
  Races& races = warp.block->races;
  uint8_t* now = warp.block->shared + at;
  if (races.on) {
    Culprit who;
    const auto verdict =
        races.on_write(warp.index, lane, at, n, now, data, strong, &who.at, &who.by);
    judge(verdict, "write", lane, who);
  }
  return now;
}

uint8_t* in_local(Warp& warp, int lane, uint64_t at, int n) {
  const uint64_t size = warp.block->machine.local_bytes;
  if (at > size || uint64_t(n) > size - at)
    refuse("out of bounds", lane, kLocalBuffer, int64_t(at), std::to_string(n) + " bytes");
  aligned(lane, kLocalBuffer, at, int64_t(at), n);
  return warp.local(lane) + at;
}

const uint8_t* in_params(Warp& warp, int lane, uint64_t at, int n) {
  const uint64_t size = warp.block->machine.param_bytes;
  if (at > size || uint64_t(n) > size - at)
    refuse("out of bounds", lane, kParamBuffer, int64_t(at), std::to_string(n) + " bytes");
  return warp.block->machine.params + at;
}

// A generic address is a real one: its window is found by range, and `at` becomes the offset in it.
Space resolve(Warp& warp, int lane, uint64_t& at) {
  const Machine& machine = warp.block->machine;
  auto inside = [&](const uint8_t* base, uint64_t size) {
    const uint64_t offset = at - reinterpret_cast<uint64_t>(base);
    if (offset >= size) return false;
    at = offset;
    return true;
  };
  if (inside(warp.block->shared, machine.shared_bytes)) return kShared;
  if (inside(warp.local(lane), machine.local_bytes)) return kLocal;
  if (inside(machine.params, machine.param_bytes)) return kParam;
  return kGlobal;
}

inline uint64_t address(const Warp& warp, const Ins& ins, int k, int lane) {
  return (ins.flags & kWideAddress ? warp.row<uint64_t>(ins, k)[lane]
                                   : warp.row<uint32_t>(ins, k)[lane]) +
         uint64_t(ins.imm);
}

const uint8_t* read(Space space, Warp& warp, const Ins& ins, int lane, uint64_t at, int n) {
  if (space == kGeneric) space = resolve(warp, lane, at);
  switch (space) {
    case kShared:
      return read_shared(warp, lane, uint32_t(at), n, ins.flags & kStrong);
    case kLocal:
      return in_local(warp, lane, at, n);
    case kParam:
      return in_params(warp, lane, at, n);
    default:
      return read_global(warp, lane, at, n, n);
  }
}

uint8_t* write(Space space, Warp& warp, const Ins& ins, int lane, uint64_t at, int n,
               const uint8_t* data) {
  if (space == kGeneric) space = resolve(warp, lane, at);
  switch (space) {
    case kShared:
      return write_shared(warp, lane, uint32_t(at), n, data, ins.flags & kStrong);
    case kLocal:
      return in_local(warp, lane, at, n);
    case kParam:
      refuse("write to an input", lane, kParamBuffer, int64_t(at));
    default:
      return write_global(warp, lane, at, n, data);
  }
}

// slots: V destinations, address
template <Space S, class T, int V>
void load(Warp& warp, const Ins& ins, uint32_t mask) {
  using Wide = std::conditional_t<sizeof(T) == 1, uint16_t, T>;
  for_lanes(mask, [&](int lane) {
    T value[V];
    std::memcpy(value, read(S, warp, ins, lane, address(warp, ins, V, lane), sizeof value),
                sizeof value);
    for (int v = 0; v < V; ++v) warp.row<Wide>(ins, v)[lane] = value[v];
  });
}

// slots: address, V sources
template <Space S, class T, int V>
void store(Warp& warp, const Ins& ins, uint32_t mask) {
  using Wide = std::conditional_t<sizeof(T) == 1, uint16_t, T>;
  for (int lane : warp.block->machine.lane_order) {
    if (!(mask >> lane & 1)) continue;
    T value[V];
    for (int v = 0; v < V; ++v) value[v] = T(warp.row<Wide>(ins, v + 1)[lane]);
    const uint8_t* data = reinterpret_cast<const uint8_t*>(value);
    std::memcpy(write(S, warp, ins, lane, address(warp, ins, 0, lane), sizeof value, data), data,
                sizeof value);
  }
}

template <Space S, class T, int V>
void enter_access(const std::string& space) {
  const std::string name =
      space + ".b" + std::to_string(8 * sizeof(T)) + (V > 1 ? ".v" + std::to_string(V) : "");
  const char width = sizeof(T) == 1 ? '2' : char('0' + sizeof(T));
  std::string values;
  for (int v = 0; v < V; ++v) values += v ? std::string{',', width} : std::string{width};
  enter("ld" + name, values + "=a", load<S, T, V>);
  if (S != kParam) enter("st" + name, "=a," + values, store<S, T, V>);
}

template <Space S, class T>
void enter_vectors(const std::string& space) {
  enter_access<S, T, 1>(space);
  enter_access<S, T, 2>(space);
  if constexpr (sizeof(T) < 8) enter_access<S, T, 4>(space);
}

template <Space S>
void enter_space(const std::string& space) {
  enter_vectors<S, uint8_t>(space);
  enter_vectors<S, uint16_t>(space);
  enter_vectors<S, uint32_t>(space);
  enter_vectors<S, uint64_t>(space);
}

// cp.async: slots destination (shared), source (global), source bytes; imm the offset of the
// destination, target the offset of the source, flags: kZeroFill where slot 2 counts source bytes,
// kIgnore where it is ignore-src.
template <int Bytes>
void copy_async(Warp& warp, const Ins& ins, uint32_t mask) {
  Copy& copy = warp.copies.emplace_back();
  copy.mask = mask, copy.bytes = Bytes;
  Races& races = warp.block->races;
  for (int lane : warp.block->machine.lane_order) {
    if (!(mask >> lane & 1)) continue;
    const uint32_t to = in_shared(warp, lane, uint32_t(address(warp, ins, 0, lane)), Bytes);
    int bytes = Bytes;
    if (ins.flags & kZeroFill) bytes = int(warp.row<uint32_t>(ins, 2)[lane]);
    if ((ins.flags & kIgnore) && (*warp.row<uint32_t>(ins, 2) >> lane & 1)) bytes = 0;
    if (bytes < 0 || bytes > Bytes) refuse("bad cp.async size", lane, kSharedBuffer, to);
    const uint64_t from = warp.row<uint64_t>(ins, 1)[lane] + int64_t(ins.target);
    copy.to[lane] = to, copy.group[lane] = warp.group[lane];
    std::memset(copy.data[lane], 0, Bytes);
    if (bytes) {
      aligned(lane, kNoBuffer, from, int64_t(from), Bytes);
      const int whole = bytes & (bytes - 1) ? 1 : bytes;
      for (int i = 0; i < bytes; i += whole)
        std::memcpy(copy.data[lane] + i, read_global(warp, lane, from + i, whole, Bytes), whole);
    }
    if (races.on) {
      Culprit who;
      const auto verdict =
          races.on_issue(warp.index, lane, to, Bytes, copy.data[lane], &who.at, &who.by);
      judge(verdict, "cp.async", lane, who);
    }
  }
  for_lanes(mask, [&](int lane) { std::memset(warp.block->shared + copy.to[lane], 0xff, Bytes); });
}

void commit_group(Warp& warp, const Ins&, uint32_t mask) {
  for_lanes(mask, [&](int lane) { ++warp.group[lane]; });
}

void land(Warp& warp, Copy& copy, int lane) {
  uint8_t* now = warp.block->shared + copy.to[lane];
  Races& races = warp.block->races;
  if (races.on) {
    Culprit who;
    const auto verdict = races.on_land(warp.index, lane, copy.to[lane], copy.bytes, now,
                                       copy.data[lane], &who.at, &who.by);
    judge(verdict, "cp.async landing", lane, who);
  }
  std::memcpy(now, copy.data[lane], copy.bytes);
  copy.mask &= ~(1u << lane);
}

// Lands what the lanes have committed, but for their last imm groups; imm -1: everything.
void wait_group(Warp& warp, const Ins& ins, uint32_t mask) {
  for (Copy& copy : warp.copies)
    for_lanes(copy.mask & mask, [&](int lane) {
      if (ins.imm < 0 || int64_t(copy.group[lane]) < int64_t(warp.group[lane]) - ins.imm)
        land(warp, copy, lane);
    });
  warp.copies.erase(std::remove_if(warp.copies.begin(), warp.copies.end(),
                                   [](const Copy& copy) { return !copy.mask; }),
                    warp.copies.end());
}

// slots: N destinations, address. Lane 8m + r names row r of matrix m; each row is 16 bytes.
template <int N, bool Transposed>
void load_matrix(Warp& warp, const Ins& ins, uint32_t) {
  uint16_t rows[N][8][8];
  for (int m = 0; m < N; ++m)
    for (int r = 0; r < 8; ++r) {
      const int lane = 8 * m + r;
      const uint32_t at = uint32_t(address(warp, ins, N, lane));
      std::memcpy(rows[m][r], read_shared(warp, lane, at, 16, false), 16);
    }
  for (int m = 0; m < N; ++m)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      const uint32_t low = Transposed ? rows[m][c][r] : rows[m][r][c];
      const uint32_t high = Transposed ? rows[m][c + 1][r] : rows[m][r][c + 1];
      warp.row<uint32_t>(ins, m)[lane] = low | high << 16;
    }
}

enum Op { kAdd, kMin, kMax, kAnd, kOr, kXor, kExch, kCas, kInc, kDec };

template <class T>
T combine(Op op, T old, T b, T c) {
  switch (op) {
    case kAdd:
      return T(old + b);
    case kMin:
      return std::min(old, b);
    case kMax:
      return std::max(old, b);
    case kExch:
      return b;
    case kCas:
      return old == b ? c : old;
    default:
      break;
  }
  if constexpr (std::is_unsigned_v<T>) switch (op) {
      case kAnd:
        return T(old & b);
      case kOr:
        return T(old | b);
      case kXor:
        return T(old ^ b);
      case kInc:
        return old >= b ? T(0) : T(old + 1);
      case kDec:
        return old == 0 || old > b ? b : T(old - 1);
      default:
        break;
    }
  return old;
}

template <class H>  // Half or Brain, one or two in a word
uint32_t add_halves(uint32_t a, uint32_t b) {
  const uint32_t low = H::round(H::value(uint16_t(a)) + H::value(uint16_t(b)));
  const uint32_t high = H::round(H::value(uint16_t(a >> 16)) + H::value(uint16_t(b >> 16)));
  return low | high << 16;
}
struct HalfBits {
  uint32_t bits;
};
struct BrainBits {
  uint32_t bits;
};

// slots: old value, address, b, c; imm2 (target) the operation.
template <Space S, class T, class Bits>
void atomic(Warp& warp, const Ins& ins, uint32_t mask) {
  for (int lane : warp.block->machine.lane_order) {
    if (!(mask >> lane & 1)) continue;
    uint64_t at = address(warp, ins, 1, lane);
    const Space space = S == kGeneric ? resolve(warp, lane, at) : S;
    uint8_t* p;
    if (space == kShared) {
      read_shared(warp, lane, uint32_t(at), sizeof(Bits), true);
      p = write_shared(warp, lane, uint32_t(at), sizeof(Bits), nullptr, true);
    } else if (space == kGlobal) {
      read_global(warp, lane, at, sizeof(Bits), sizeof(Bits));
      p = write_global(warp, lane, at, sizeof(Bits), nullptr);
    } else {
      refuse("atomic on private memory", lane, kLocalBuffer, int64_t(at));
    }
    Bits old, b = warp.row<Bits>(ins, 2)[lane], c = warp.row<Bits>(ins, 3)[lane], now;
    std::memcpy(&old, p, sizeof old);
    if constexpr (std::is_same_v<T, HalfBits>) {
      now = Bits(add_halves<Half>(old, b));
    } else if constexpr (std::is_same_v<T, BrainBits>) {
      now = Bits(add_halves<Brain>(old, b));
    } else {
      T values[3];
      std::memcpy(&values[0], &old, sizeof old);
      std::memcpy(&values[1], &b, sizeof b);
      std::memcpy(&values[2], &c, sizeof c);
      const T result = combine(Op(ins.target), values[0], values[1], values[2]);
      std::memcpy(&now, &result, sizeof now);
    }
    std::memcpy(p, &now, sizeof now);
    warp.row<Bits>(ins, 0)[lane] = old;
  }
}

template <Space S>
void enter_atomics(const std::string& space) {
  auto one = [&](const char* type, int bytes, Handler fn) {
    const std::string w(1, char('0' + bytes));
    enter("atom" + space + "." + type, w + "=a," + w + "," + w, fn);
  };
  one("u32", 4, atomic<S, uint32_t, uint32_t>);
  one("s32", 4, atomic<S, int32_t, uint32_t>);
  one("u64", 8, atomic<S, uint64_t, uint64_t>);
  one("s64", 8, atomic<S, int64_t, uint64_t>);
  one("f32", 4, atomic<S, float, uint32_t>);
  one("f64", 8, atomic<S, double, uint64_t>);
  one("u16", 2, atomic<S, uint16_t, uint16_t>);
  one("f16", 2, atomic<S, HalfBits, uint16_t>);
  one("f16x2", 4, atomic<S, HalfBits, uint32_t>);
  one("bf16", 2, atomic<S, BrainBits, uint16_t>);
  one("bf16x2", 4, atomic<S, BrainBits, uint32_t>);
}

template <int Space>
void to_generic(Warp& warp, const Ins& ins, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const Machine& machine = warp.block->machine;
    const uint8_t* base = Space == kShared  ? warp.block->shared
                          : Space == kLocal ? warp.local(lane)
                                            : machine.params;
    warp.row<uint64_t>(ins, 0)[lane] =
        warp.row<uint64_t>(ins, 1)[lane] + reinterpret_cast<uint64_t>(base);
  });
}

template <int Space>
void from_generic(Warp& warp, const Ins& ins, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    const Machine& machine = warp.block->machine;
    const uint8_t* base = Space == kShared  ? warp.block->shared
                          : Space == kLocal ? warp.local(lane)
                                            : machine.params;
    warp.row<uint64_t>(ins, 0)[lane] =
        warp.row<uint64_t>(ins, 1)[lane] - reinterpret_cast<uint64_t>(base);
  });
}

template <int Which>
void is_space(Warp& warp, const Ins& ins, uint32_t mask) {
  for_lanes(mask, [&](int lane) {
    uint64_t at = warp.row<uint64_t>(ins, 1)[lane];
    const uint32_t bit = 1u << lane;
    uint32_t* out = warp.row<uint32_t>(ins, 0);
    *out = resolve(warp, lane, at) == Which ? *out | bit : *out & ~bit;
  });
}

}  // namespace

void enter_memory() {
  enter_space<kGlobal>(".global");
  enter_space<kShared>(".shared");
  enter_space<kLocal>(".local");
  enter_space<kParam>(".param");
  enter_space<kGeneric>("");
  enter_atomics<kGlobal>(".global");
  enter_atomics<kShared>(".shared");
  enter_atomics<kGeneric>("");
  enter("cp.async.b4", "=4,8,4", copy_async<4>);
  enter("cp.async.b8", "=4,8,4", copy_async<8>);
  enter("cp.async.b16", "=4,8,4", copy_async<16>);
  enter("cp.async.ignore.b4", "=4,8,p", copy_async<4>);
  enter("cp.async.ignore.b8", "=4,8,p", copy_async<8>);
  enter("cp.async.ignore.b16", "=4,8,p", copy_async<16>);
  enter("cp.async.commit_group", "=", commit_group);
  enter("cp.async.wait_group", "=", wait_group);
  enter("ldmatrix.x1", "4=a", load_matrix<1, false>);
  enter("ldmatrix.x2", "4,4=a", load_matrix<2, false>);
  enter("ldmatrix.x4", "4,4,4,4=a", load_matrix<4, false>);
  enter("ldmatrix.x1.trans", "4=a", load_matrix<1, true>);
  enter("ldmatrix.x2.trans", "4,4=a", load_matrix<2, true>);
  enter("ldmatrix.x4.trans", "4,4,4,4=a", load_matrix<4, true>);
  enter("cvta.shared.u64", "8=8", to_generic<kShared>);
  enter("cvta.local.u64", "8=8", to_generic<kLocal>);
  enter("cvta.param.u64", "8=8", to_generic<kParam>);
  enter("cvta.to.shared.u64", "8=8", from_generic<kShared>);
  enter("cvta.to.local.u64", "8=8", from_generic<kLocal>);
  enter("cvta.to.param.u64", "8=8", from_generic<kParam>);
  enter("isspacep.shared", "p=8", is_space<kShared>);
  enter("isspacep.local", "p=8", is_space<kLocal>);
  enter("isspacep.global", "p=8", is_space<kGlobal>);
}

}  // namespace ptx
