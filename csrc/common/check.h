// BF_CHECK throws std::invalid_argument with the failed condition's meaning, file and line;
// pybind11 turns it into ValueError. Only host code outside parallel regions may use it.
#pragma once
#include <stdexcept>
#include <string>

namespace bf {

[[noreturn]] inline void fail(const char* what, const char* file, int line) {
  throw std::invalid_argument(std::string(what) + " (" + file + ":" + std::to_string(line) + ")");
}

}  // namespace bf

#define BF_CHECK(CONDITION, WHAT)                           \
  do {                                                      \
    if (!(CONDITION)) ::bf::fail(WHAT, __FILE__, __LINE__); \
  } while (0)
