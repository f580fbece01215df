// A weight in int8, as the kernels of one instruction set read it. An operation gets its address in
// the place of the weight, and the stride kInt8 to tell it apart.
#pragma once
#include <cstdint>

#include "common/fields.h"
#include "common/variants.h"

namespace bf {

// weight[n, k] = scale[k / group, n] * int8[n, k], but for the outlier columns, which are zeros
// there. Weights that read one x have the same `group` and `outlier`.
#define BF_INT8_WEIGHT(FIELD)                                                              \
  FIELD(const std::int8_t*, panels)   /* [panels(n)][words(k)][kNR][kFold] */              \
  FIELD(const std::int32_t*, start)   /* [groups][panels(n) * kNR]: -kOffset * sum of k */ \
  FIELD(const float*, scale)          /* [groups][panels(n) * kNR] */                      \
  FIELD(const std::int32_t*, outlier) /* [outliers]: columns of x that stay in float */    \
  FIELD(const float*, outlier_weight) /* [panels(n)][outliers][kNR] */                     \
  FIELD(long, group) /* so many of k have one scale in x and in weight; a multiple of 4 */ \
  FIELD(long, outliers)

BF_STRUCT(Int8Weight, BF_INT8_WEIGHT)

constexpr long kInt8 = -1;

// How panels lie: kNR columns side by side, kFold of k after each other in a column, and what is
// added to each activation.
struct Int8Layout {
  long columns, fold, offset;
};
BF_DECLARE_CPU(Int8Layout int8_layout())

}  // namespace bf
