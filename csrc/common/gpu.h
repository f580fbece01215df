// What a CUDA kernel is told beyond the operation's own parameters; the CPU form ignores it.
#pragma once

namespace bf {

struct Gpu {
  void* stream = nullptr;     // the caller's cudaStream_t
  void* workspace = nullptr;  // device memory of the size that <operation>_workspace() asked for
  bool tf32 = false;          // fp32 products may round their inputs to tf32
};

}  // namespace bf
