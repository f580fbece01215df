// A CUDA runtime for machines without a GPU: the functions that bertfast's host code calls. It is
// linked in the place of libcudart; a launch goes to a callback with the kernel's name, grid,
// block, shared bytes and arguments, memory calls act on host memory. Types are the driver's ABI,
// written out so that no CUDA header is needed.
#include <cstddef>
#include <cstring>
#include <map>
#include <string>

namespace {

struct Dim3 {
  unsigned x, y, z;
};
struct Call {
  Dim3 grid, block;
  std::size_t shared;
  void* stream;
};
// Returns 0, or the error that the launch reports.
using Launch = int (*)(const char* kernel, const unsigned* grid, const unsigned* block,
                       std::size_t shared, void** arguments, void* stream);

constexpr int kInvalidDeviceFunction = 98;
constexpr int kMultiprocessors = 16;  // of cudaDeviceAttr: the one that is asked for
constexpr int kMaxSharedOptin = 97;

Launch callback = nullptr;
// One device for each number of multiprocessors that was asked for, as callers remember a device's.
constexpr int kDevices = 64;
int multiprocessors[kDevices], current = 0;
thread_local int last_error = 0;
thread_local Call configured;
std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

int report(int error) {
  if (error) last_error = error;
  return error;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void fake_cudart_on_launch(Launch function, int count) {
  callback = function;
  current = 0;
  while (current < kDevices - 1 && multiprocessors[current] && multiprocessors[current] != count)
    ++current;
  multiprocessors[current] = count;
}

// What nvcc's generated code calls when the module is loaded.
EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT char __cudaInitModule(void**) { return 0; }
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}
EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*,
                                   void*, void*, void*, int*) {
  kernels()[host] = name;
}

// <<<grid, block, shared, stream>>> pushes its configuration; the kernel's stub pops it and
// launches.
EXPORT unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, std::size_t shared,
                                            void* stream) {
  configured = {grid, block, shared, stream};
  return 0;
}
EXPORT int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, std::size_t* shared, void* stream) {
  *grid = configured.grid;
  *block = configured.block;
  *shared = configured.shared;
  *static_cast<void**>(stream) = configured.stream;
  return 0;
}
EXPORT int cudaLaunchKernel(const void* host, Dim3 grid, Dim3 block, void** arguments,
                            std::size_t shared, void* stream) {
  const auto found = kernels().find(host);
  if (found == kernels().end() || !callback) return report(kInvalidDeviceFunction);
  const unsigned grid_size[] = {grid.x, grid.y, grid.z}, block_size[] = {block.x, block.y, block.z};
  return report(callback(found->second.c_str(), grid_size, block_size, shared, arguments, stream));
}
EXPORT int __cudaLaunchKernel(const void* host, Dim3 grid, Dim3 block, void** arguments,
                              std::size_t shared, void* stream) {
  return cudaLaunchKernel(host, grid, block, arguments, shared, stream);
}
// CUDA 13 asks for a handle of the kernel first.
EXPORT int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return 0;
}

EXPORT int cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  return error;
}
EXPORT int cudaPeekAtLastError() { return last_error; }
EXPORT const char* cudaGetErrorString(int) { return "an error of the emulated launch"; }
EXPORT int cudaFuncSetAttribute(const void*, int, int) { return 0; }
EXPORT int cudaGetDevice(int* device) {
  *device = current;
  return 0;
}
EXPORT int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == kMultiprocessors  ? multiprocessors[device]
           : attribute == kMaxSharedOptin ? 99 * 1024
                                          : 0;
  return 0;
}
EXPORT int cudaMemsetAsync(void* memory, int value, std::size_t bytes, void*) {
  std::memset(memory, value, bytes);
  return 0;
}
