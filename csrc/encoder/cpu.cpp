// Sequences do not meet anywhere, so in inference a thread takes a group of them through all layers
// and waits for no other. Where groups of equal work cannot be made, or would be so small that
// weights are what takes the time, and where something is saved or dropped, all threads work on one
// operation after the other. A row's bits are the same either way.
#include "encoder/cpu_machine.h"

namespace bf::BF_ISA {
namespace {

struct Encoder : Layers<EncoderFwd, Processor> {
  explicit Encoder(const EncoderFwd& p) : Layers(p, {}) {}

  char* state(long layer) const { return static_cast<char*>(p.states) + layer * p.tokens * row; }

  // done(layer) after every layer. s.out is the last layer's, `next` the others'.
  template <class Done>
  void run(Stream s, char* next, Done done) const {
    char* out = s.out;
    for (long layer = 0; layer < p.layers; ++layer) {
      s.out = layer + 1 == p.layers ? out : next;
      forward(s, layer);
      done(layer, s.out);
      s.x = s.out;
    }
  }

  // All threads on every operation.
  void together() const {
    Stream s = whole();
    char* next;
    take(s, [&](Carver& c, Stream& t) {
      carve(c, t, p.tokens, p.sequences);
      next = c.take<char>(p.tokens * row);
    });
    s.out = static_cast<char*>(p.out);
    run(s, next, [&](long layer, const char* rows) {
      if (p.states && layer + 1 < p.layers) std::memcpy(state(layer), rows, p.tokens * row);
    });
  }

  // The same for a backward.
  void saving() const {
    Stream s = whole();
    take(s, [&](Carver& c, Stream& t) {
      p.recompute ? carve(c, t, p.tokens, p.sequences) : carve_first(c, t, p.sequences);
    });
    for (long layer = 0; layer < p.layers; ++layer) {
      if (!p.recompute) save_to(s, layer);
      s.out = saved(layer, kRows);
      forward(s, layer);
      s.x = s.out;
    }
  }

  // Calls body(place in the group, place in the batch, bytes) for the rows of each sequence.
  template <class Body>
  void each_sequence(const Groups& groups, long group, Body body) const {
    const std::int32_t* starts = groups.starts + groups.first[group] + group;
    for (long i = groups.first[group]; i < groups.first[group + 1]; ++i, ++starts)
      body(*starts * row, p.cu_seqlens[groups.order[i]] * row, (starts[1] - *starts) * row);
  }

  void one_group(const Groups& groups, long group, Stream s, char* next) const {
    const long begin = groups.first[group];
    s.sequences = groups.first[group + 1] - begin;
    s.cu_seqlens = groups.starts + begin + group;
    s.tokens = s.cu_seqlens[s.sequences];
    char *x = const_cast<char*>(s.x), *out = static_cast<char*>(p.out);
    each_sequence(groups, group, [&](long here, long there, long bytes) {
      std::memcpy(x + here, static_cast<const char*>(p.x) + there, bytes);
    });
    run(s, next, [&](long layer, const char* rows) {
      if (!p.states) return;
      each_sequence(groups, group, [&](long here, long there, long bytes) {
        std::memcpy(state(layer) + there, rows + here, bytes);
      });
    });
    if (p.first_only)
      for (long i = 0; i < s.sequences; ++i)
        std::memcpy(out + groups.order[begin + i] * row, s.out + i * row, row);
    else
      each_sequence(groups, group, [&](long here, long there, long bytes) {
        std::memcpy(out + there, s.out + here, bytes);
      });
  }

  // A group a task. Kernels take scratch memory of the thread that they run on.
  void apart(const Groups& groups) const {
    char* next;
    const auto lay_out = [&](Carver& c, char** into) {
      Stream s{};
      const long rows = larger(groups.tokens, groups.sequences);
      s.x = c.take<char>(rows * row);
      s.out = c.take<char>(rows * row);
      *into = c.take<char>(rows * row);
      carve(c, s, groups.tokens, groups.sequences);
      s.threads = 1;
      return s;
    };
    Carver size;
    lay_out(size, &next);
    char* memory = take(size.used * p.threads, p.tokens);
    bool failed = false;
    parallel_tasks(p.threads, groups.count, [&](long i, int thread) {
      try {
        Carver mine{memory + thread * size.used, 0};
        char* own;
        const Stream s = lay_out(mine, &own);
        one_group(groups, i, s, own);
      } catch (...) {  // no memory; nothing may be thrown through a parallel region
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      }
    });
    if (failed) no_memory_for_layers(size.used * p.threads, p.tokens);
  }
};

}  // namespace

void encoder_fwd(const EncoderFwd& p) {
  check_encoder(p);
  const Encoder encoder(p);
  if (p.saved.size) return encoder.saving();
  const Groups groups = encoder.drops() ? Groups{} : make_groups(p);
  groups.count ? encoder.apart(groups) : encoder.together();
}

}  // namespace bf::BF_ISA
