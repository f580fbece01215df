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
struct PackedSize {  // out: elements of the packed form of [n, k]
  long n, k;
  long* elements;
};
struct FmaPeak {  // out: fp32 operations a second of independent multiply-adds in registers, all
                  // threads together
  int threads;
  double seconds;
  double* flops;
};

BF_DECLARE_CPU(pack_weight, PackWeight)
BF_DECLARE_CPU(unpack_weight, PackWeight)
BF_DECLARE_CPU(packed_size, PackedSize)
BF_DECLARE_CPU(fma_peak, FmaPeak)

}  // namespace bf
