// A stream of its own is recorded: the caller's may be the default one, which cannot be, and what
// other threads launch on the caller's meanwhile belongs to no recording of ours.
#include "common/cuda_graph.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace bf {
namespace {

// Leaves no error behind that the next launch would take for its own.
void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

struct Recording {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  bool open = false;

  Recording() {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream to record");
  }
  void begin() {  // other threads may allocate meanwhile
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin to record");
    open = true;
  }
  void end() {
    open = false;
    check(cudaStreamEndCapture(stream, &graph), "end to record");
  }
  ~Recording() {
    if (open) cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    cudaGetLastError();
  }
};

}  // namespace

Graph::Graph(const std::function<void(void* stream)>& launch) {
  Recording recording;
  recording.begin();
  launch(recording.stream);
  recording.end();
  cudaGraphExec_t ready = nullptr;
  check(cudaGraphInstantiate(&ready, recording.graph, 0), "make a graph");
  ready_ = ready;
}

Graph::~Graph() {  // one that runs is freed when it has run; at a process's end CUDA may be gone
  if (cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(ready_)) != cudaSuccess) cudaGetLastError();
}

void Graph::replay(std::uintptr_t stream) const {
  check(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(ready_), reinterpret_cast<cudaStream_t>(stream)),
      "replay a graph");
}

bool is_capturing(std::uintptr_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(reinterpret_cast<cudaStream_t>(stream), &status) == cudaSuccess)
    return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();  // the default stream beside one that is recorded and waits for it
  return true;
}

}  // namespace bf
