// What a kernel is told about dropout; the bits are philox.h's.
#pragma once
#include <cstdint>

#include "common/fields.h"

namespace bf {

#define BF_DROPOUT(FIELD)                                                                          \
  FIELD(const std::uint64_t*, seed)       /* null: no dropout */                                   \
  FIELD(const std::int64_t*, example_ids) /* [sequences]; null: a sequence's index in the batch */ \
  FIELD(std::uint32_t, threshold)         /* round(p * 65536): dropped if 16 bits are below it */  \
  FIELD(float, scale)                     /* 65536 / (65536 - threshold) */
BF_STRUCT(Dropout, BF_DROPOUT)

}  // namespace bf
