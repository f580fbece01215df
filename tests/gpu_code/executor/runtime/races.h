// Who wrote and who read each byte of shared memory, and whether a barrier stands between.
//
// Every warp has a clock, the time of its last synchronisation; `seen[w][v]` is the last time of
// warp v that warp w has synchronised with. A write leaves (time, warp, lane) on each byte, a read
// leaves (time, lane) in an array of its warp. Two accesses are ordered if the later one's warp has
// seen the earlier one's time, or if they are of one lane. Within a warp bar.warp.sync moves the
// clock. An instruction that overwrites a byte with the value that it holds is legal. Times run on
// from block to block: a byte whose time is not after `start` was never written in this block.
#pragma once

#include <cstdint>
#include <vector>

namespace ptx {

struct Races {
  static constexpr uint32_t kTimes = 1u << 20;
  static constexpr uint32_t kInFlight = 1u << 31;  // by a cp.async that nobody has waited for
  static constexpr uint32_t kAtomic = 1u << 10;
  static constexpr int kTimeShift = 11, kReadShift = 6;
  static constexpr uint32_t kManyLanes = 63;

  enum Verdict { kOrdered, kRace, kUnwritten, kUnwaited };

  bool on = false;
  int warps = 0;
  uint32_t bytes = 0, time = 1, start = 0;
  std::vector<uint32_t> clock, floor, seen;  // [warps], [warps], [warps][warps]
  std::vector<uint32_t> write;               // [bytes]: in flight, time, atomic, warp, lane
  std::vector<std::vector<uint32_t>> reads;  // [warps][bytes]: time, lane
  std::vector<uint8_t> incoming;             // [bytes]: what a cp.async in flight will bring

  void begin_block(int warp_count, uint32_t byte_count);
  bool tick(int warp);                                   // a synchronisation inside one warp
  void meet(uint32_t warps_met, const uint32_t* known);  // the end of a barrier; known: [warps]
  void arrive(int warp, uint32_t* known) const;  // adds what the warp has seen to known: [warps]

  // Of n bytes at `at`; the byte and the earlier writer's stamp or reader's come back for the
  // message.
  Verdict on_read(int warp, int lane, uint32_t at, int n, bool atomic, uint32_t* where,
                  uint32_t* who);
  Verdict on_write(int warp, int lane, uint32_t at, int n, const uint8_t* now, const uint8_t* data,
                   bool atomic, uint32_t* where, uint32_t* who);
  Verdict on_issue(int warp, int lane, uint32_t at, int n, const uint8_t* data, uint32_t* where,
                   uint32_t* who);
  Verdict on_land(int warp, int lane, uint32_t at, int n, const uint8_t* now, const uint8_t* data,
                  uint32_t* where, uint32_t* who);

  static int warp_of(uint32_t stamp) { return stamp >> 5 & 31; }
  static int lane_of(uint32_t stamp) { return stamp & 31; }

 private:
  uint32_t stamp(int warp, int lane) const {
    return clock[warp] << kTimeShift | uint32_t(warp) << 5 | uint32_t(lane);
  }
  bool in_flight(uint32_t stamp) const {
    return (stamp & kInFlight) && (stamp & ~kInFlight) >> kTimeShift > start;
  }
  bool after_write(int warp, int lane, uint32_t stamp, bool atomic) const;
  bool after_reads(int warp, int lane, uint32_t at, uint32_t* who) const;
  bool clear_to_write(int warp, uint32_t at, int n) const;
};

}  // namespace ptx
