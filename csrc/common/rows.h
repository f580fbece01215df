// Moving rows; compiled once, for every instruction set.
#pragma once
#include <cstdint>

namespace bf {

// Row i of `from` to row places[i] of `to`, which has `count` rows of which the others become 0.
void scatter_rows(const char* from, const std::int64_t* places, long rows, char* to, long count,
                  long bytes, int threads);

}  // namespace bf
