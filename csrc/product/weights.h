// Packed weights and the machine's peak, per instruction set.
#pragma once
#include "common/dtype.h"
#include "common/variants.h"

namespace bf {

struct PackWeight {  // packed[panels(n) * kNR * k] <-> weight[n, k] (row stride in elements)
  void* weight;
  void* packed;
  long n, k, stride;
  DType dtype;
  int threads;
};

BF_DECLARE_CPU(void pack_weight(const PackWeight&))
BF_DECLARE_CPU(void unpack_weight(const PackWeight&))
// Elements of the packed form of [n, k], in the dtype that needs most.
BF_DECLARE_CPU(long packed_size(long n, long k))
// fp32 operations a second of independent multiply-adds in registers, all threads together.
BF_DECLARE_CPU(double fma_peak(int threads, double seconds))

}  // namespace bf
