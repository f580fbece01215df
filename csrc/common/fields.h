// A struct from its field list, which is written once: FIELDS(FIELD) says FIELD(type, name) for
// each field. The list makes the members, zero unless set, and `each_field`, by which bindings.cpp
// fills them from what Python passes by the same names.
#pragma once
#include <utility>

#define BF_MEMBER(TYPE, NAME) TYPE NAME = {};
#define BF_VISIT(TYPE, NAME) visit(#NAME, NAME);
#define BF_STRUCT(STRUCT, FIELDS)  \
  struct STRUCT {                  \
    FIELDS(BF_MEMBER)              \
    template <class Visit>         \
    void each_field(Visit visit) { \
      FIELDS(BF_VISIT)             \
    }                              \
  };

namespace bf {

template <class T>
using Three = T[3];
template <class T>
struct List {  // its own memory; kernel units read `data` alone
  T* data = nullptr;
  long size = 0;
  List() = default;
  List(List&& other) noexcept
      : data(std::exchange(other.data, nullptr)), size(std::exchange(other.size, 0)) {}
  List& operator=(List&& other) noexcept {
    std::swap(data, other.data);
    std::swap(size, other.size);
    return *this;
  }
  ~List() { delete[] data; }
};

// Value i of a field: of its list, or the one value that it is.
template <class T>
static inline T nth(const Three<T>& list, long i) {
  return list[i];
}
template <class T>
static inline T nth(const T& one, long) {
  return one;
}

}  // namespace bf
