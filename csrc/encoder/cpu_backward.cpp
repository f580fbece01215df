// Memory for the backward of all layers on a CPU; encoder/backward.h walks through it.
#include "encoder/backward.h"
#include "encoder/cpu_machine.h"

namespace bf::BF_ISA {

void encoder_bwd(const EncoderBwd& p) {
  check_encoder(p);
  const Backward<Processor> backward(p, {});
  Stream s = backward.whole();
  Grads grads;
  take(s, [&](Carver& c, Stream& t) { backward.carve_all(c, grads, t); });
  backward.run(s, grads);
}

}  // namespace bf::BF_ISA
