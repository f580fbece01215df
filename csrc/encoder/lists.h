// Whether the lists of a call are as long as its layers ask.
#pragma once
#include "common/check.h"
#include "encoder/op.h"

namespace bf {

template <class Params>
void check_lists(const Params& p) {
  BF_CHECK(p.weights.size == kLayerWeights * p.layers, "weights: expected 16 of each layer");
  BF_CHECK(p.eps.size == 2 * p.layers, "eps: expected 2 of each layer");
  BF_CHECK(p.cublaslt.size == 0 || p.cublaslt.size == p.layers,
           "cublaslt: expected 1 of each layer, or none");
  BF_CHECK(p.saved.size == 0 || p.saved.size == kLayerSaved * p.layers,
           "saved: expected 13 of each layer, or none");
}
inline void check_grads(const EncoderBwd& p) {
  check_lists(p);
  BF_CHECK(p.saved.size, "saved: expected 13 of each layer");
  BF_CHECK(p.grads.size == p.weights.size, "grads: expected 16 of each layer");
}

}  // namespace bf
