// Launching kernels: every status is checked, the stream is the caller's, nothing is allocated.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/gpu.h"

// Throws std::runtime_error (RuntimeError in Python) with what failed, why, file and line.
#define BF_CUDA_CHECK(CALL) ::bf::cuda::check_cuda((CALL), #CALL, __FILE__, __LINE__)

// Launches KERNEL (in parentheses where its template arguments have commas) on the caller's stream.
// A grid without blocks launches nothing.
#define BF_LAUNCH(KERNEL, GRID, BLOCK, SHARED, GPU, ...) \
  ::bf::cuda::launch<KERNEL>({#KERNEL, __FILE__, __LINE__}, GRID, BLOCK, SHARED, GPU, __VA_ARGS__)

namespace bf::cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr std::size_t kWorkspaceAlignment = 256;  // of the workspace and of every part of it
constexpr std::size_t kSharedLimit = 99 * 1024;   // a block's on the smallest of the targets

inline void check_cuda(cudaError_t status, const char* what, const char* file, int line) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + " (" + file +
                           ":" + std::to_string(line) + ")");
}

inline int current_device() {
  int device = 0;
  BF_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

inline int multiprocessors() {
  static std::atomic<int> known[kMaxDevices];
  const int device = current_device();
  if (device < kMaxDevices && known[device] > 0) return known[device];
  int count = 0;
  BF_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  if (device < kMaxDevices) known[device] = count;
  return count;
}

struct Site {
  const char* kernel;
  const char* file;
  int line;
};

// Dynamic shared memory has to be asked for where it and what the kernel declares pass the default
// of 48 KiB together: every kernel that takes any asks, once per device.
template <auto kernel>
void allow_shared(const Site& site, std::size_t shared) {
  static std::atomic<std::size_t> allowed[kMaxDevices];
  if (shared == 0) return;
  const int device = current_device();
  if (device < kMaxDevices && allowed[device] >= shared) return;
  check_cuda(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
      site.kernel, site.file, site.line);
  if (device < kMaxDevices) allowed[device] = shared;
}

template <auto kernel, class... Args>
void launch(const Site& site, dim3 grid, dim3 block, std::size_t shared, const Gpu& gpu,
            const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  allow_shared<kernel>(site, shared);
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(gpu.stream)>>>(args...);
  check_cuda(cudaGetLastError(), site.kernel, site.file, site.line);
}

// Hands out parts of the workspace in order; with a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(long count) {
    T* part = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kWorkspaceAlignment - 1) /
             kWorkspaceAlignment * kWorkspaceAlignment;
    return part;
  }
  std::size_t used() const { return used_; }
  void* rest() const { return base_ ? base_ + used_ : nullptr; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

// How many of the rows of a call count.
__device__ __forceinline__ long used_rows(const Gpu& gpu, long rows) {
  return gpu.used && *gpu.used < rows ? *gpu.used : rows;
}

__host__ __device__ constexpr long ceil_div(long a, long b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace bf::cuda
