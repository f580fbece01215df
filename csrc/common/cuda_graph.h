// A CUDA graph: launches that are recorded once and then leave in one call.
#pragma once
#include <cstdint>
#include <functional>

namespace bf {

class Graph {
 public:
  // What `launch` launches on the stream that it is given, which is the recording's own; nothing
  // runs. The addresses that it passes are read at each replay, so what lies there has to live.
  explicit Graph(const std::function<void(void* stream)>& launch);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void replay(std::uintptr_t stream) const;

 private:
  void* ready_ = nullptr;  // cudaGraphExec_t
};

// Whether somebody records what goes to a stream, or it cannot be told: nothing but launches may go
// there then.
bool is_capturing(std::uintptr_t stream);

}  // namespace bf
