// The driver is looked up by name at run time, so the module loads where there is none.
#include "common/cuda_driver.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

namespace bf {

int toolkit_version() { return CUDART_VERSION; }

int driver_version() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return 0;
  using Query = int (*)(int*);
  const auto query = reinterpret_cast<Query>(dlsym(library, "cuDriverGetVersion"));
  int version = 0;
  if (!query || query(&version) != 0) version = 0;
  dlclose(library);
  return version;
}

}  // namespace bf
