// One launch: blocks one after another, the warps of a block in turn until each blocks or ends,
// lanes by the smallest pc.
//
// Lanes of a warp that parted run apart and meet again where their pcs are equal: the group with
// the smallest pc runs first. An instruction that needs lanes which are elsewhere (shfl.sync, mma,
// a barrier) parks its group until they come.
#include <algorithm>
#include <climits>
#include <cstdio>
#include <stdexcept>

#include "machine.h"

namespace ptx {

std::vector<Entry>& table() {
  static std::vector<Entry> entries;
  return entries;
}

namespace {

struct Constant {
  int32_t offset, width;  // width 0: a predicate word
  uint64_t value;
};
struct Special {
  int32_t offset, kind, axis, width;
};
enum SpecialKind {
  kTid,
  kNtid,
  kCtaid,
  kNctaid,
  kLane,
  kWarpId,
  kWarps,
  kMaskEq,
  kMaskLe,
  kMaskLt,
  kMaskGe,
  kMaskGt,
  kSm,
  kSms,
  kZero,
  kDynamicShared,
  kTotalShared
};

// The arguments of run(), laid out as launch.py does.
struct Launch {
  const Record* code;
  const int32_t* targets;
  const Constant* constants;
  const Special* specials;
  uint8_t* params;
  Buffer* buffers;
  const uint32_t* blocks;  // [block_count][3]
  uint64_t seed;
  int64_t code_count, constant_count, special_count, buffer_count, block_count;
  int64_t param_bytes, file_bytes, shared_bytes, dynamic_bytes, local_bytes, limit;
  uint32_t grid[3], block[3];
  int32_t check, order;
};

struct Result {
  int64_t instructions, barriers, offset, moved[5];
  int32_t pc, buffer, warp, lane;
  uint32_t block[3];
  char kind[64], detail[448];
};

struct Random {  // splitmix64
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
};

void arrange(int* order, int n, int how, Random& random) {
  for (int k = 0; k < n; ++k) order[k] = how == 1 ? n - 1 - k : k;
  for (int k = n - 1; how == 2 && k > 0; --k) std::swap(order[k], order[random.next() % (k + 1)]);
}

struct Barrier {
  uint32_t arrived = 0, waiting = 0;  // warps
  int expected = 0;                   // warps; 0: all that live
  uint32_t yes = 0, threads = 0;      // of bar.red: lanes whose predicate holds, lanes in all
  uint32_t known[32] = {};            // what the race clocks of those who arrived have seen
};

struct Runner {
  const Launch& launch;
  Result& result;
  Machine machine;
  Block block;
  std::vector<Warp> warps;
  std::vector<uint8_t> shared, files;
  Barrier barriers[16];
  Random random;
  int current = 0;  // warp

  Runner(const Launch& l, Result& r);
  void run_block(const uint32_t* id);
  void fill(Warp& warp, const uint32_t* id);
  void run(Warp& warp);
  bool regroup(Warp& warp);
  bool wake(Warp& warp);
  uint32_t gathered(Warp& warp, const Ins& ins, uint32_t lanes);
  uint32_t members(Warp& warp, const Ins& ins, int lane);
  void arrive(Warp& warp, const Ins& ins, uint32_t mask);
  bool release();
  void answer(Warp& warp, const Barrier& barrier);
};

Runner::Runner(const Launch& l, Result& r)
    : launch(l), result(r), block{machine, 0, nullptr, {}, {}, {}}, random{l.seed} {
  machine.code.resize(l.code_count);
  for (int64_t k = 0; k < l.code_count; ++k) {
    static_cast<Record&>(machine.code[k]) = l.code[k];
    machine.code[k].fn = table()[l.code[k].handler].fn;
  }
  machine.targets = l.targets, machine.buffers = l.buffers,
  machine.buffer_count = int32_t(l.buffer_count);
  machine.params = l.params, machine.param_bytes = l.param_bytes;
  machine.shared_bytes = l.shared_bytes, machine.local_bytes = l.local_bytes;
  machine.block_threads = l.block[0] * l.block[1] * l.block[2];
  machine.check = l.check;
  machine.moved = r.moved;
  arrange(machine.lane_order, kLanes, l.order, random);
  const int count = int(machine.block_threads + kLanes - 1) / kLanes;
  shared.resize(l.shared_bytes + 64);
  block.shared =
      reinterpret_cast<uint8_t*>((reinterpret_cast<uint64_t>(shared.data()) + 63) & ~uint64_t(63));
  block.local.resize(count * kLanes * l.local_bytes);
  block.races.on = l.check;
  block.hints.assign(l.code_count, 0);
  files.resize(count * l.file_bytes + 64);
  warps.resize(count);
  uint8_t* file =
      reinterpret_cast<uint8_t*>((reinterpret_cast<uint64_t>(files.data()) + 63) & ~uint64_t(63));
  for (int w = 0; w < count; ++w) {
    warps[w].block = &block, warps[w].index = w, warps[w].file = file + w * l.file_bytes;
    for (int64_t k = 0; k < l.constant_count; ++k) {
      const Constant& c = l.constants[k];
      for (int lane = 0; lane < (c.width ? kLanes : 1); ++lane)
        std::memcpy(warps[w].file + c.offset + lane * c.width, &c.value, c.width ? c.width : 4);
    }
  }
}

void Runner::fill(Warp& warp, const uint32_t* id) {
  for (int64_t k = 0; k < launch.special_count; ++k) {
    const Special& s = launch.specials[k];
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t thread = warp.index * kLanes + lane, *n = launch.block;
      const uint32_t tid[3] = {thread % n[0], thread / n[0] % n[1], thread / n[0] / n[1]};
      const uint32_t bit = 1u << lane;
      const uint32_t values[] = {tid[s.axis],
                                 n[s.axis],
                                 id[s.axis],
                                 launch.grid[s.axis],
                                 uint32_t(lane),
                                 uint32_t(warp.index),
                                 uint32_t(warps.size()),
                                 bit,
                                 bit | (bit - 1),
                                 bit - 1,
                                 ~(bit - 1),
                                 ~(bit | (bit - 1)),
                                 block.index % 108,
                                 108,
                                 0,
                                 uint32_t(launch.dynamic_bytes),
                                 uint32_t(launch.shared_bytes)};
      const uint64_t value = values[s.kind];
      std::memcpy(warp.file + s.offset + lane * s.width, &value, s.width);
    }
  }
}

void Runner::run_block(const uint32_t* id) {
  block.index = (id[2] * launch.grid[1] + id[1]) * launch.grid[0] + id[0];
  std::memset(block.shared, 0xff, launch.shared_bytes);
  std::fill(block.local.begin(), block.local.end(), 0xff);
  if (block.races.on) block.races.begin_block(int(warps.size()), uint32_t(launch.shared_bytes));
  for (Barrier& barrier : barriers) barrier = Barrier{};
  for (Warp& warp : warps) {
    const int left = int(machine.block_threads) - warp.index * kLanes;
    warp.live = warp.active = left >= kLanes ? kFull : (1u << left) - 1;
    warp.parked = 0, warp.pc = 0, warp.next = INT_MAX, warp.waiting = false;
    std::memset(warp.group, 0, sizeof warp.group);
    warp.copies.clear();
    fill(warp, id);
  }
  std::vector<int> order(warps.size());
  for (;;) {
    bool ran = false, live = false;
    arrange(order.data(), int(order.size()), launch.order, random);
    for (int w : order) {
      if (!warps[w].live || warps[w].waiting) continue;
      current = w;
      run(warps[w]);
      ran = true;
    }
    const bool released = release();
    for (Warp& warp : warps) live |= warp.live != 0;
    if (!live) return;
    if (!ran && !released) {
      for (Warp& warp : warps)
        if (warp.live) {
          current = warp.index;
          throw Fault{"deadlock", first_lane(warp.live), kNoBuffer, 0,
                      "a barrier that is never completed"};
        }
    }
  }
}

uint32_t Runner::members(Warp& warp, const Ins& ins, int lane) {
  const int slot = ins.kind == kWarpSync ? 0 : ins.target;
  return warp.row<uint32_t>(ins, slot)[lane] & warp.live;
}

// Of the lanes at a collective instruction, a group that is complete; 0 if all must wait for
// others.
uint32_t Runner::gathered(Warp& warp, const Ins& ins, uint32_t lanes) {
  if (ins.kind == kAligned || ins.kind == kBarrier) return lanes == warp.live ? lanes : 0;
  for (uint32_t rest = lanes; rest;) {
    const int lane = first_lane(rest);
    const uint32_t need = members(warp, ins, lane);
    uint32_t same = 0;
    for_lanes(rest, [&](int l) { same |= uint32_t(members(warp, ins, l) == need) << l; });
    if (!(need >> lane & 1))
      throw Fault{"divergence", lane, kNoBuffer, 0,
                  "a lane that its own member mask does not name"};
    if ((need & ~same) == 0) return same;
    rest &= ~same;
  }
  return 0;
}

// Picks the group with the smallest pc among lanes that do not wait. False if the warp has ended.
bool Runner::regroup(Warp& warp) {
  if (!warp.live) return false;
  uint32_t run = warp.live & ~warp.parked;
  if (!run) {
    if (!wake(warp)) {
      const int lane = first_lane(warp.parked);
      warp.pc = warp.pcs[lane];
      const bool parted = (warp.parked & (warp.parked - 1)) != 0;
      throw Fault{"deadlock", lane, kNoBuffer, 0,
                  parted ? "lanes of one warp wait for each other in different places"
                         : "a lane waits for lanes that never come"};
    }
    run = warp.live & ~warp.parked;
  }
  int low = INT_MAX;
  for_lanes(run, [&](int lane) { low = std::min(low, warp.pcs[lane]); });
  warp.active = 0, warp.next = INT_MAX;
  for_lanes(warp.live, [&](int lane) {
    if (warp.pcs[lane] == low)
      warp.active |= 1u << lane;
    else if (warp.pcs[lane] > low)
      warp.next = std::min(warp.next, warp.pcs[lane]);
  });
  warp.parked &= ~warp.active;
  warp.pc = low;
  return true;
}

// All live lanes are parked: lets go those whose partners have exited, or that meet at
// bar.warp.sync in several places.
bool Runner::wake(Warp& warp) {
  uint32_t at_sync = 0;
  for (uint32_t rest = warp.parked; rest;) {
    const int pc = warp.pcs[first_lane(rest)];
    uint32_t here = 0;
    for_lanes(rest, [&](int lane) { here |= uint32_t(warp.pcs[lane] == pc) << lane; });
    rest &= ~here;
    const Ins& ins = machine.code[pc];
    if (gathered(warp, ins, here)) {
      warp.parked &= ~here;
      return true;
    }
    if (ins.kind == kWarpSync) at_sync |= here;
  }
  for (uint32_t rest = at_sync; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const uint32_t need = members(warp, machine.code[warp.pcs[lane]], lane);
    bool all = (need & ~at_sync) == 0;
    for_lanes(need & at_sync,
              [&](int l) { all &= members(warp, machine.code[warp.pcs[l]], l) == need; });
    if (!all) continue;
    for_lanes(need, [&](int l) { ++warp.pcs[l]; });
    warp.parked &= ~need;
    const Ins& ins = machine.code[warp.pcs[lane] - 1];
    ins.fn(warp, ins, need);
    return true;
  }
  return false;
}

// Runs a warp until it waits at a barrier or ends.
void Runner::run(Warp& warp) {
  const Ins* code = machine.code.data();
  int pc = warp.pc;
  auto part = [&](uint32_t lanes, int there) {
    for_lanes(lanes, [&](int lane) { warp.pcs[lane] = there; });
  };
  auto again = [&] {
    const bool more = regroup(warp);
    pc = warp.pc;
    return more;
  };
  for (;;) {
    if (pc >= warp.next) {
      part(warp.active, pc);
      again();
    }
    const Ins& ins = code[pc];
    uint32_t mask = warp.active;
    if (ins.guard) {
      const uint32_t guard = *reinterpret_cast<uint32_t*>(warp.file + ins.guard);
      mask &= ins.negate ? ~guard : guard;
    }
    warp.pc = pc;
    if (++result.instructions > launch.limit)
      throw Fault{"limit", first_lane(warp.active), kNoBuffer, 0, "instructions"};
    if (!mask) {
      ++pc;
      continue;
    }
    switch (ins.kind) {
      case kPlain:
        ins.fn(warp, ins, mask);
        ++pc;
        break;
      case kBranch:
        if (mask == warp.live) {
          pc = ins.target;
        } else {
          part(warp.active & ~mask, pc + 1);
          part(mask, ins.target);
          again();
        }
        break;
      case kIndexed:
        part(warp.active & ~mask, pc + 1);
        for_lanes(mask, [&](int lane) {
          const uint32_t which = warp.row<uint32_t>(ins, 0)[lane];
          if (which >= uint64_t(ins.imm))
            throw Fault{"out of bounds", lane, kNoBuffer, which, "brx.idx"};
          warp.pcs[lane] = machine.targets[ins.target + which];
        });
        again();
        break;
      case kExit:
        part(warp.active & ~mask, pc + 1);
        warp.live &= ~mask;
        if (!again()) return;
        break;
      default: {  // needs lanes together
        const uint32_t group = gathered(warp, ins, mask);
        if (group == warp.active && ins.kind != kBarrier) {
          ins.fn(warp, ins, group);
          ++pc;
          break;
        }
        part(warp.active & ~mask, pc + 1);
        part(mask, pc);
        if (group && ins.kind == kBarrier) {
          arrive(warp, ins, mask);
          if (warp.waiting) return;
          part(mask, pc + 1);
        } else if (group) {
          ins.fn(warp, ins, group);
          part(group, pc + 1);
        } else {
          warp.parked |= mask;
        }
        again();
      }
    }
  }
}

// A barrier counts warps. slots: [destination,] id, threads [, predicate]; target: 1 where a
// destination is.
void Runner::arrive(Warp& warp, const Ins& ins, uint32_t mask) {
  const int lane = first_lane(mask), first = ins.target;
  const uint32_t id = warp.row<uint32_t>(ins, first)[lane],
                 threads = warp.row<uint32_t>(ins, first + 1)[lane];
  if (id > 15) throw Fault{"deadlock", lane, kNoBuffer, id, "no barrier of this number"};
  if (threads % kLanes)
    throw Fault{"deadlock", lane, kNoBuffer, threads, "a count that is no multiple of the warp"};
  Barrier& barrier = barriers[id];
  const int expected = int(threads / kLanes);
  if (barrier.arrived && barrier.expected != expected)
    throw Fault{"deadlock", lane, kNoBuffer, id, "warps expect different counts"};
  if (barrier.arrived >> warp.index & 1)
    throw Fault{"deadlock", lane, kNoBuffer, id, "a warp arrives twice"};
  ++result.barriers;
  barrier.expected = expected;
  barrier.arrived |= 1u << warp.index;
  if (block.races.on) block.races.arrive(warp.index, barrier.known);
  if (ins.target) {
    barrier.threads += __builtin_popcount(mask);
    barrier.yes += __builtin_popcount(mask & *warp.row<uint32_t>(ins, first + 2));
  }
  if (ins.flags & kArrive) {
    if (block.races.on) block.races.tick(warp.index);
    return;
  }
  barrier.waiting |= 1u << warp.index;
  warp.waiting = true;
}

void Runner::answer(Warp& warp, const Barrier& barrier) {
  const Ins& ins = machine.code[warp.pc];
  if (!ins.target) return;
  const bool all = barrier.yes == barrier.threads, any = barrier.yes != 0;
  uint32_t* out = warp.row<uint32_t>(ins, 0);
  if (ins.imm == 0)
    for_lanes(warp.live, [&](int lane) { out[lane] = barrier.yes; });
  else
    *out = (ins.imm == 1 ? all : any) ? *out | warp.live : *out & ~warp.live;
}

// Lets go the warps of every barrier that is complete.
bool Runner::release() {
  bool any = false;
  int live = 0;
  for (const Warp& warp : warps) live += warp.live != 0;
  for (Barrier& barrier : barriers) {
    if (!barrier.arrived) continue;
    if (__builtin_popcount(barrier.arrived) < (barrier.expected ? barrier.expected : live))
      continue;
    if (block.races.on) {
      block.races.meet(barrier.waiting, barrier.known);
      if (block.races.time >= Races::kTimes)
        throw Fault{"limit", 0, kNoBuffer, 0, "too many synchronisations in one block"};
    }
    for (Warp& warp : warps) {
      if (!(barrier.waiting >> warp.index & 1)) continue;
      answer(warp, barrier);
      warp.waiting = false;
      for_lanes(warp.live, [&](int lane) {
        if (warp.pcs[lane] == warp.pc) ++warp.pcs[lane];
      });
      regroup(warp);
    }
    barrier = Barrier{};
    any = true;
  }
  return any;
}

}  // namespace
}  // namespace ptx

extern "C" {

int handler_count() {
  if (ptx::table().empty()) {
    ptx::enter_integer();
    ptx::enter_float();
    ptx::enter_convert();
    ptx::enter_memory();
    ptx::enter_warp();
  }
  return int(ptx::table().size());
}
const char* handler_name(int k) { return ptx::table()[k].name.c_str(); }
const char* handler_signature(int k) { return ptx::table()[k].signature.c_str(); }

// 0 where all blocks ran; else result says what went wrong and where.
int run(const ptx::Launch* launch, ptx::Result* result) {
  ptx::Runner runner(*launch, *result);
  const uint32_t* id = nullptr;
  try {
    for (int64_t k = 0; k < launch->block_count; ++k) {
      id = launch->blocks + 3 * k;
      runner.run_block(id);
    }
    return 0;
  } catch (const ptx::Fault& fault) {
    std::snprintf(result->kind, sizeof result->kind, "%s", fault.kind);
    std::snprintf(result->detail, sizeof result->detail, "%s", fault.detail.c_str());
    std::memcpy(result->block, id, sizeof result->block);
    result->warp = runner.current, result->pc = runner.warps[runner.current].pc;
    result->lane = fault.lane, result->buffer = fault.buffer, result->offset = fault.offset;
    return 1;
  }
}
}
