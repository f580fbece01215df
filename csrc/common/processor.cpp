#include "common/processor.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace bf {

bool runs_here(const std::string& name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // f16c came before avx2
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (name == "avx512") return avx512;
  if (name == "avx512_dot")
    return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  if (name != "baseline") return avx2;
  return __builtin_cpu_supports("sse4.2");
#elif defined(__linux__)
  return name == "baseline" || (getauxval(AT_HWCAP) & HWCAP_ASIMDDP);
#else
  return !name.empty();  // each Mac with an arm64 has them
#endif
}

}  // namespace bf
