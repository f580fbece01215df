// Which sequences a thread takes through the layers; compiled once, for every instruction set.
#pragma once
#include "encoder/op.h"

namespace bf {

struct Groups {
  long count = 0;                  // 0: none are made
  long tokens = 0, sequences = 0;  // the most that a group has
  const std::int32_t* order;       // [sequences]: their indices, group by group
  const std::int32_t* first;       // [count + 1]: where each group begins in `order`
  const std::int32_t* starts;      // the groups' own cu_seqlens; that of g begins at first[g] + g
};

// Whether the lists of a call are as long as its layers ask.
void check_encoder(const EncoderFwd& p);
void check_encoder(const EncoderBwd& p);

// Groups of about equal work, if there can be enough of them and none
// is so small that weights are what takes its time. Lies in scratch memory of the calling thread.
Groups make_groups(const EncoderFwd& p);

// Throws what Python shows as a MemoryError.
[[noreturn]] void no_memory_for_layers(long bytes, long tokens);

}  // namespace bf
