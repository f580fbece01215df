// out = tanh(x), count numbers; out may be x.
#pragma once
#include "common/variants.h"

namespace bf {

BF_DECLARE_CPU(void tanh_each(const float* x, float* out, long count))

}  // namespace bf
