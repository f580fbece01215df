// What this machine's processor can run; compiled once, for every instruction set.
#pragma once
#include <string>

namespace bf {

// Whether it has the instructions of a variant (variants.h).
bool runs_here(const std::string& name);

}  // namespace bf
