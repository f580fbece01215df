// See races.h. Each check has a fast path that vectorises over bytes and a slow one that names the
// culprit.
#include "races.h"

#include <algorithm>

namespace ptx {

void Races::begin_block(int warp_count, uint32_t byte_count) {
  if (warp_count != warps || byte_count != bytes || time > kTimes / 2) {
    warps = warp_count, bytes = byte_count, time = 1;
    write.assign(bytes, 0);
    incoming.assign(bytes, 0);
    reads.assign(warps, std::vector<uint32_t>(bytes, 0));
  }
  start = time++;
  clock.assign(warps, time);
  floor.assign(warps, start);
  seen.assign(warps * warps, start);
}

bool Races::tick(int warp) {
  clock[warp] = ++time;
  return time < kTimes;
}

void Races::arrive(int warp, uint32_t* known) const {
  for (int v = 0; v < warps; ++v) known[v] = std::max(known[v], seen[warp * warps + v]);
  known[warp] = clock[warp];
}

void Races::meet(uint32_t warps_met, const uint32_t* known) {
  ++time;
  for (int w = 0; w < warps; ++w) {
    if (!(warps_met >> w & 1)) continue;
    uint32_t* row = &seen[w * warps];
    for (int v = 0; v < warps; ++v) row[v] = std::max(row[v], known[v]);
    floor[w] = *std::min_element(row, row + warps);
    clock[w] = time;
  }
}

bool Races::after_write(int warp, int lane, uint32_t stamp, bool atomic) const {
  const uint32_t when = (stamp & ~kInFlight) >> kTimeShift;
  const int writer = warp_of(stamp);
  if (when <= start || (atomic && (stamp & kAtomic))) return true;
  if (writer == warp) return when < clock[warp] || lane_of(stamp) == lane;
  return seen[warp * warps + writer] >= when;
}

bool Races::after_reads(int warp, int lane, uint32_t at, uint32_t* who) const {
  for (int v = 0; v < warps; ++v) {
    const uint32_t when = reads[v][at] >> kReadShift, reader = reads[v][at] & kManyLanes;
    const bool ordered =
        v == warp ? when < clock[v] || reader == uint32_t(lane) : seen[warp * warps + v] >= when;
    if (ordered || when <= start) continue;
    *who = uint32_t(v) << 5 | (reader & 31);
    return false;
  }
  return true;
}

Races::Verdict Races::on_read(int warp, int lane, uint32_t at, int n, bool atomic, uint32_t* where,
                              uint32_t* who) {
  const uint32_t low = (start + 1) << kTimeShift, span = ((floor[warp] + 1) << kTimeShift) - low;
  const uint32_t* w = &write[at];
  bool doubt = false;
  for (int i = 0; i < n; ++i) doubt |= w[i] - low >= span;
  for (int i = 0; doubt && i < n; ++i) {
    *where = at + i, *who = w[i];
    if (in_flight(w[i])) return kUnwaited;
    if ((w[i] & ~kInFlight) < low) return kUnwritten;
    if (!after_write(warp, lane, w[i], atomic)) return kRace;
  }
  if (atomic) return kOrdered;
  uint32_t* r = &reads[warp][at];
  const uint32_t mine = clock[warp] << kReadShift | uint32_t(lane), many = mine | kManyLanes;
  for (int i = 0; i < n; ++i)
    r[i] = (r[i] >> kReadShift == mine >> kReadShift && r[i] != mine) ? many : mine;
  return kOrdered;
}

// Whether every earlier access to these bytes lies before what the warp has seen of all others.
bool Races::clear_to_write(int warp, uint32_t at, int n) const {
  const uint32_t write_bound = (floor[warp] + 1) << kTimeShift;
  const uint32_t read_bound = (floor[warp] + 1) << kReadShift;
  bool doubt = false;
  for (int i = 0; i < n; ++i) doubt |= write[at + i] >= write_bound;
  for (int v = 0; v < warps; ++v) {
    const uint32_t* r = &reads[v][at];
    for (int i = 0; i < n; ++i) doubt |= r[i] >= read_bound;
  }
  return !doubt;
}

Races::Verdict Races::on_write(int warp, int lane, uint32_t at, int n, const uint8_t* now,
                               const uint8_t* data, bool atomic, uint32_t* where, uint32_t* who) {
  if (!clear_to_write(warp, at, n)) {
    for (int i = 0; i < n; ++i) {
      *where = at + i, *who = write[at + i];
      if (in_flight(write[at + i])) return kRace;
      if (data && now[i] == data[i]) continue;
      if (!after_write(warp, lane, write[at + i], atomic)) return kRace;
      if (!after_reads(warp, lane, at + i, who)) return kRace;
    }
  }
  const uint32_t mine = stamp(warp, lane) | (atomic ? kAtomic : 0);
  for (int i = 0; i < n; ++i) write[at + i] = mine;
  return kOrdered;
}

Races::Verdict Races::on_issue(int warp, int lane, uint32_t at, int n, const uint8_t* data,
                               uint32_t* where, uint32_t* who) {
  const bool clear = clear_to_write(warp, at, n);
  for (int i = 0; !clear && i < n; ++i) {
    const uint32_t w = write[at + i];
    *where = at + i, *who = w;
    if (in_flight(w)) {
      if (incoming[at + i] != data[i]) return kRace;
    } else if (!after_write(warp, lane, w, false) || !after_reads(warp, lane, at + i, who)) {
      return kRace;
    }
  }
  const uint32_t mine = stamp(warp, lane) | kInFlight;
  for (int i = 0; i < n; ++i) write[at + i] = mine, incoming[at + i] = data[i];
  return kOrdered;
}

Races::Verdict Races::on_land(int warp, int lane, uint32_t at, int n, const uint8_t* now,
                              const uint8_t* data, uint32_t* where, uint32_t* who) {
  const uint32_t mine = stamp(warp, lane);
  for (int i = 0; i < n; ++i) {
    uint32_t& w = write[at + i];
    *where = at + i, *who = w;
    if (!(w & kInFlight) && now[i] != data[i]) return kRace;
    w = mine;
  }
  return kOrdered;
}

}  // namespace ptx
