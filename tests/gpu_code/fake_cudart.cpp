// A CUDA runtime for machines without a GPU: the functions that bertfast's host code calls. It is
// linked in the place of libcudart; a launch goes to a callback with the kernel's name, grid,
// block, shared bytes and arguments, memory calls act on host memory. What a GPU of sm_80 refuses
// is refused, and so is a call on another stream than the caller's. A recorded stream keeps kernel,
// grid, block, shared bytes and a copy of the arguments; meanwhile its thread may neither allocate,
// nor wait, nor launch elsewhere. Only where the host's time is what is looked at, launches are
// counted, a graph's replay as one, and nothing else. Types are the driver's ABI, written out so
// that no CUDA header is needed.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

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

constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kInvalidDeviceFunction = 98;
constexpr int kInvalidHandle = 400, kNotSupported = 801;
constexpr int kCaptureUnsupported = 900, kCaptureInvalidated = 901, kCaptureUnmatched = 903;
constexpr int kCaptureImplicit = 906, kCaptureWrongThread = 908;
constexpr int kMultiprocessors = 16;  // of cudaDeviceAttr: the one that is asked for
constexpr int kMaxDynamicShared = 8;  // of cudaFuncAttribute
// Bytes of a block's shared memory, static and dynamic: without asking, and at most on sm_80.
constexpr std::size_t kSharedByDefault = 48 * 1024, kSharedAtMost = 163 * 1024;

Launch callback = nullptr;  // null: launches are counted
long launches = 0;
void* callers_stream = nullptr;
// One device for each number of multiprocessors that was asked for, as callers remember a device's.
constexpr int kDevices = 64;
int multiprocessors[kDevices], current = 0;
thread_local int last_error = 0;
thread_local Call configured;
std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

std::map<std::string, std::size_t>& static_shared() {
  static std::map<std::string, std::size_t> bytes;
  return bytes;
}
// Dynamic shared bytes that were asked for, by kernel and device.
std::map<std::pair<std::string, int>, std::size_t>& asked_shared() {
  static std::map<std::pair<std::string, int>, std::size_t> bytes;
  return bytes;
}

// Bytes of each parameter of a kernel.
std::map<std::string, std::vector<std::size_t>>& parameters() {
  static std::map<std::string, std::vector<std::size_t>> bytes;
  return bytes;
}

int report(int error) {
  if (error) last_error = error;
  return error;
}

using Graph = std::vector<std::function<int()>>;  // what a replay calls, in order

// A thread records one stream at a time here; `recorded` says of all threads which.
struct Capture {
  void* stream = nullptr;
  bool valid = true;
  Graph graph;
};
thread_local Capture* capture = nullptr;
std::mutex mutex;
std::vector<void*> recorded, own_streams;  // guarded by it
int graphs = 0;                            // recorded or made ready, not destroyed; likewise
int refuse_graphs = 0;                     // the error that the next one is refused with

bool holds(const std::vector<void*>& list, const void* item) {
  const std::lock_guard<std::mutex> lock(mutex);
  return std::find(list.begin(), list.end(), item) != list.end();
}
void add(std::vector<void*>& list, void* item) {
  const std::lock_guard<std::mutex> lock(mutex);
  list.push_back(item);
}
void remove(std::vector<void*>& list, void* item) {
  const std::lock_guard<std::mutex> lock(mutex);
  list.erase(std::remove(list.begin(), list.end(), item), list.end());
}

// What a thread that records may not do, as it would be no part of the recording.
int not_recorded(int error) {
  if (!capture) return 0;
  capture->valid = false;
  return report(error);
}

// What keeps a call on that stream from running or being recorded, or 0.
int misplaced(void* stream) {
  if (capture) return stream == capture->stream ? 0 : not_recorded(kCaptureImplicit);
  return stream == callers_stream && !holds(recorded, stream) ? 0 : kInvalidHandle;
}

std::size_t dynamic_shared_limit(const std::string& kernel) {
  const std::size_t declared = static_shared()[kernel], asked = asked_shared()[{kernel, current}];
  return std::max(asked, kSharedByDefault - std::min(declared, kSharedByDefault));
}

// What keeps a launch from a GPU of sm_80, or 0.
int refusal(const std::string& kernel, Dim3 grid, Dim3 block, std::size_t shared, void* stream) {
  constexpr unsigned kX = 0x7fffffff, kYZ = 65535, kThreads = 1024, kBlockZ = 64;
  const auto within = [](Dim3 d, unsigned x, unsigned y, unsigned z) {
    return d.x - 1 < x && d.y - 1 < y && d.z - 1 < z;  // unsigned: 0 - 1 is beyond all
  };
  if (!within(grid, kX, kYZ, kYZ)) return kInvalidConfiguration;
  if (!within(block, kThreads, kThreads, kBlockZ)) return kInvalidConfiguration;
  if (block.x * block.y * block.z > kThreads) return kInvalidConfiguration;
  if (shared > dynamic_shared_limit(kernel)) return kInvalidValue;
  return misplaced(stream);
}

// A launch with a copy of its arguments.
std::function<int()> kept(const std::string& kernel, Dim3 grid, Dim3 block, std::size_t shared,
                          void** arguments) {
  std::vector<std::string> copies;
  for (const std::size_t bytes : parameters()[kernel])
    copies.emplace_back(static_cast<const char*>(arguments[copies.size()]), bytes);
  return [=]() mutable {
    std::vector<void*> pointers;
    for (std::string& copy : copies) pointers.push_back(copy.data());
    const unsigned sizes[] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
    return callback(kernel.c_str(), sizes, sizes + 3, shared, pointers.data(), callers_stream);
  };
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void fake_cudart_on_launch(Launch function, int count, void* stream) {
  callback = function;
  callers_stream = stream;
  current = 0;
  while (current < kDevices - 1 && multiprocessors[current] && multiprocessors[current] != count)
    ++current;
  multiprocessors[current] = count;
}

EXPORT void fake_cudart_stream(void* stream) { callers_stream = stream; }

EXPORT long fake_cudart_launches() { return launches; }

EXPORT void fake_cudart_static_shared(const char* kernel, std::size_t bytes) {
  static_shared()[kernel] = bytes;
}

EXPORT void fake_cudart_parameters(const char* kernel, const std::size_t* bytes, int count) {
  parameters()[kernel].assign(bytes, bytes + count);
}

EXPORT int fake_cudart_graphs() { return graphs; }
EXPORT void fake_cudart_refuse_graphs(int error) { refuse_graphs = error; }

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
  if (++launches; !callback) return 0;
  const auto found = kernels().find(host);
  if (found == kernels().end()) return report(kInvalidDeviceFunction);
  if (const int error = refusal(found->second, grid, block, shared, stream)) return report(error);
  if (capture) {
    capture->graph.push_back(kept(found->second, grid, block, shared, arguments));
    return 0;
  }
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
EXPORT const char* cudaGetErrorString(int error) {
  return error == kInvalidValue            ? "invalid argument"
         : error == kInvalidConfiguration  ? "invalid configuration argument"
         : error == kInvalidDeviceFunction ? "invalid device function"
         : error == kInvalidHandle         ? "invalid resource handle"
         : error >= kCaptureUnsupported    ? "operation not permitted when stream is capturing"
                                           : "an error of the emulated launch";
}
EXPORT int cudaFuncSetAttribute(const void* host, int attribute, int value) {
  const auto found = kernels().find(host);
  if (found == kernels().end()) return report(kInvalidDeviceFunction);
  if (attribute != kMaxDynamicShared || value < 0) return report(kInvalidValue);
  const std::size_t bytes = static_cast<std::size_t>(value);
  if (static_shared()[found->second] + bytes > kSharedAtMost) return report(kInvalidValue);
  asked_shared()[{found->second, current}] = bytes;
  return 0;
}
EXPORT int cudaGetDevice(int* device) {
  *device = current;
  return 0;
}
EXPORT int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (attribute != kMultiprocessors) return report(kInvalidValue);
  *value = multiprocessors[device];
  return 0;
}
EXPORT int cudaMemsetAsync(void* memory, int value, std::size_t bytes, void* stream) {
  if (const int error = misplaced(stream)) return report(error);
  const auto run = [=] {
    std::memset(memory, value, bytes);
    return 0;
  };
  if (!capture) return run();
  capture->graph.emplace_back(run);
  return 0;
}

// What another library launches: `job` runs, or is recorded and runs at each replay; `end` takes
// `data` back.
EXPORT int fake_cudart_run(void* stream, int (*job)(void*), void (*end)(void*), void* data) {
  const std::shared_ptr<void> held(data, end);
  if (const int error = misplaced(stream)) return error;
  if (!capture) return job(data);
  capture->graph.emplace_back([=] { return job(held.get()); });
  return 0;
}

// bertfast's host code neither allocates nor waits: outside a recording these are not there at all.
EXPORT int cudaMalloc(void**, std::size_t) {
  const int error = not_recorded(kCaptureUnsupported);
  return error ? error : report(kNotSupported);
}
EXPORT int cudaStreamSynchronize(void*) {
  const int error = not_recorded(kCaptureUnsupported);
  return error ? error : report(kNotSupported);
}

EXPORT int cudaStreamCreateWithFlags(void** stream, unsigned) {
  add(own_streams, *stream = new char);
  return 0;
}
EXPORT int cudaStreamDestroy(void* stream) {
  if (!holds(own_streams, stream)) return report(kInvalidHandle);
  remove(own_streams, stream);
  delete static_cast<char*>(stream);
  return 0;
}

EXPORT int cudaStreamBeginCapture(void* stream, int) {
  if (!stream) return report(kCaptureUnsupported);  // the default stream
  if (stream != callers_stream && !holds(own_streams, stream)) return report(kInvalidHandle);
  if (capture || holds(recorded, stream)) return report(kCaptureUnsupported);
  add(recorded, stream);
  capture = new Capture{stream, true, {}};
  return 0;
}
EXPORT int cudaStreamEndCapture(void* stream, void** graph) {
  *graph = nullptr;
  if (!holds(recorded, stream)) return report(kCaptureUnmatched);
  if (!capture || capture->stream != stream) return report(kCaptureWrongThread);
  const bool valid = capture->valid;
  if (valid) *graph = new Graph(std::move(capture->graph));
  delete capture;
  capture = nullptr;
  remove(recorded, stream);
  if (!valid) return report(kCaptureInvalidated);
  const std::lock_guard<std::mutex> lock(mutex);
  ++graphs;
  return 0;
}
EXPORT int cudaStreamIsCapturing(void* stream, int* status) {
  *status = holds(recorded, stream);
  return 0;
}
EXPORT int cudaGraphDestroy(void* graph) {
  delete static_cast<Graph*>(graph);
  const std::lock_guard<std::mutex> lock(mutex);
  --graphs;
  return 0;
}
EXPORT int cudaGraphInstantiate(void** ready, void* graph, unsigned long long) {
  if (const int error = std::exchange(refuse_graphs, 0)) return report(error);
  *ready = new Graph(*static_cast<Graph*>(graph));
  const std::lock_guard<std::mutex> lock(mutex);
  ++graphs;
  return 0;
}
EXPORT int cudaGraphLaunch(void* ready, void* stream) {
  if (const int error = misplaced(stream)) return report(error);
  if (capture) return not_recorded(kCaptureUnsupported);
  if (!callback) ++launches;
  for (const auto& node : *static_cast<Graph*>(ready))
    if (const int error = node()) return report(error);
  return 0;
}
EXPORT int cudaGraphExecDestroy(void* ready) { return cudaGraphDestroy(ready); }
