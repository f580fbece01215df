// The Python modules bertfast._cpu and, compiled a second time with BF_CUDA, bertfast._cuda. The
// only file that includes pybind11; nothing of torch. Each function fills an op.h struct and runs
// its kernel without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <string>

#include "arguments.h"
#ifdef BF_CUDA
#include "common/cuda_driver.h"
#else
#include "common/runtime.h"
#include "common/weights.h"
#endif

namespace py = pybind11;

// Where comes as a tuple: (dtype code, threads) on CPUs, (dtype code, stream, workspace, tf32) on
// GPUs.
template <>
struct pybind11::detail::type_caster<bf::Where> {
  PYBIND11_TYPE_CASTER(bf::Where, const_name("tuple"));
  bool load(handle source, bool) {
    if (!PyTuple_Check(source.ptr())) return false;
    const auto items = reinterpret_borrow<tuple>(source);
    value.dtype = bf::dtype_of(items[0].cast<int>());
#ifdef BF_CUDA
    value.gpu = {bf::at<void>(items[1].cast<bf::Address>()),
                 bf::at<void>(items[2].cast<bf::Address>()), items[3].cast<bool>()};
#else
    value.threads = bf::usable_threads(items[1].cast<int>());
#endif
    return true;
  }
};

namespace bf {
namespace {

#ifdef BF_CUDA

template <class Params, class... Args>
void define(py::module_& m, const std::string& name, Params (*arguments)(Args...),
            void (*kernel)(const Params&), std::size_t (*workspace)(const Params&)) {
  m.def(name.c_str(), [arguments, kernel](Args... args) {
    const Params params = arguments(args...);
    py::gil_scoped_release release;
    kernel(params);
  });
  m.def((name + "_workspace").c_str(),
        [arguments, workspace](Args... args) { return workspace(arguments(args...)); });
}

}  // namespace

#define BF_DEFINE(NAME, PARAMS) define(m, #NAME, build::NAME, cuda::NAME, cuda::NAME##_workspace);

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "bertfast's CUDA kernels: raw pointers and sizes; call them through bertfast.ops";
  BF_FOR_EACH_KERNEL(BF_DEFINE)
  m.def(
      "targets", [] { return std::string(BF_CUDA_TARGETS); },
      "what was compiled for, as in 80,90,90+PTX");
  m.def("toolkit_version", toolkit_version, "of the CUDA toolkit, as in 13000");
  m.def("driver_version", driver_version, "the newest CUDA that the driver serves; 0: no driver");
}

#else

struct Variant {
  const char* name;
#define BF_MEMBER(NAME, PARAMS) void (*NAME)(const PARAMS&);
  BF_FOR_EACH_KERNEL(BF_MEMBER)
#undef BF_MEMBER
  void (*pack_weight)(const PackWeight&);
  void (*unpack_weight)(const PackWeight&);
  void (*packed_size)(const PackedSize&);
  void (*fma_peak)(const FmaPeak&);
};

#define BF_VARIANT(ISA)           \
  {#ISA,                          \
   ISA::embedding_fwd,            \
   ISA::embedding_bwd,            \
   ISA::qkv_projection_fwd,       \
   ISA::qkv_projection_bwd,       \
   ISA::attention_fwd,            \
   ISA::attention_bwd,            \
   ISA::linear_gelu_fwd,          \
   ISA::linear_gelu_bwd,          \
   ISA::linear_layernorm_fwd,     \
   ISA::linear_layernorm_bwd,     \
   ISA::gelu_layernorm_fwd,       \
   ISA::gelu_layernorm_bwd,       \
   ISA::masked_cross_entropy_fwd, \
   ISA::masked_cross_entropy_bwd, \
   ISA::pack_weight,              \
   ISA::unpack_weight,            \
   ISA::packed_size,              \
   ISA::fma_peak},
const Variant kVariants[] = {BF_FOR_EACH_ISA(BF_VARIANT)};
#undef BF_VARIANT

bool runs_here(const std::string& name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // f16c came before avx2
  if (name == "avx512")
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (name != "baseline") return avx2;
  return __builtin_cpu_supports("sse4.2");
#else
  return name == "baseline";
#endif
}

const Variant* widest() {
  const Variant* best = nullptr;
  for (const Variant& v :
       kVariants)  // listed from narrow to wide; the test variant is never chosen
    if (runs_here(v.name) && !std::strstr(v.name, "_wide")) best = &v;
  return best;
}

const Variant*& active() {
  static const Variant* variant = widest();
  return variant;
}

py::list variants() {
  py::list names;
  for (const Variant& v : kVariants)
    if (runs_here(v.name)) names.append(v.name);
  return names;
}

void set_variant(const std::string& name) {
  for (const Variant& v : kVariants)
    if (name == v.name) {
      BF_CHECK(runs_here(name), "this processor lacks the instructions of that variant");
      active() = &v;
      return;
    }
  BF_CHECK(false, "no such variant; variants() lists those that run here");
}

template <class Params>
void call(void (*Variant::*kernel)(const Params&), const Params& params) {
  BF_CHECK(active() != nullptr,
           "no variant of the kernels runs on this processor (x86-64-v2 is the least)");
  py::gil_scoped_release release;
  (active()->*kernel)(params);
}

void pack_weight(Address weight, Address packed, long n, long k, long stride, int dtype,
                 int threads) {
  call(&Variant::pack_weight, PackWeight{at<void>(weight), at<void>(packed), n, k, stride,
                                         dtype_of(dtype), usable_threads(threads)});
}

void unpack_weight(Address packed, Address weight, long n, long k, int dtype, int threads) {
  call(&Variant::unpack_weight, PackWeight{at<void>(weight), at<void>(packed), n, k, k,
                                           dtype_of(dtype), usable_threads(threads)});
}

long packed_size(long n, long k) {
  long elements = 0;
  call(&Variant::packed_size, PackedSize{n, k, &elements});
  return elements;
}

double fma_peak(int threads, double seconds) {
  double flops = 0;
  call(&Variant::fma_peak, FmaPeak{usable_threads(threads), seconds, &flops});
  return flops;
}

std::uint64_t sample_hash_of(Address matrix, long rows, long columns, long row_bytes,
                             int item_bytes) {
  return sample_hash(at<void>(matrix), rows, columns, row_bytes, item_bytes);
}

// Whether module objects are as a list of their parts says: each of its class, with no hook and no
// forward of its own, holding the very modules and parameters of the list. `dicts` are the modules'
// __dict__. Asked on every call of a model; in Python it would take longer than a small kernel.
bool unchanged(const py::list& modules, const py::list& dicts, const py::list& classes,
               const py::list& parts) {
  static const char* const kHooks[] = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
                                       "_backward_pre_hooks"};
  static const char* const kParts[] = {"_modules", "_parameters"};
  static const auto intern = [](const char* name) { return PyUnicode_InternFromString(name); };
  static PyObject* const hooks[] = {intern(kHooks[0]), intern(kHooks[1]), intern(kHooks[2]),
                                    intern(kHooks[3])};
  static PyObject* const holders[] = {intern(kParts[0]), intern(kParts[1])};
  static PyObject* const own[] = {intern("forward"), intern("_compiled_call_impl")};
  const auto find = [](PyObject* dict, PyObject* key) {
    PyObject* value = PyDict_GetItemWithError(dict, key);
    if (!value && PyErr_Occurred()) throw py::error_already_set();
    return value;
  };
  Py_ssize_t part = 0;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    PyObject* held = PyList_GET_ITEM(dicts.ptr(), i);
    PyObject* module = PyList_GET_ITEM(modules.ptr(), i);
    PyObject* kind = reinterpret_cast<PyObject*>(Py_TYPE(module));
    if (kind != PyList_GET_ITEM(classes.ptr(), i) || !PyDict_Check(held)) return false;
    const auto now = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
    if (now.ptr() != held) {  // another __dict__ was assigned
      PyErr_Clear();
      return false;
    }
    for (PyObject* name : hooks) {
      PyObject* found = find(held, name);
      if (!found || !PyDict_Check(found) || PyDict_Size(found) != 0) return false;
    }
    for (PyObject* name : own) {
      if (find(held, name)) return false;
    }
    for (PyObject* name : holders) {
      PyObject* found = find(held, name);
      if (!found || !PyDict_Check(found)) return false;
      PyObject *key, *value;
      for (Py_ssize_t place = 0; PyDict_Next(found, &place, &key, &value); ++part) {
        const bool more = part < PyList_GET_SIZE(parts.ptr());
        if (!more || value != PyList_GET_ITEM(parts.ptr(), part)) return false;
      }
    }
  }
  return part == PyList_GET_SIZE(parts.ptr());
}

template <class Params, class... Args>
void define(py::module_& m, const char* name, Params (*arguments)(Args...),
            void (*Variant::*kernel)(const Params&)) {
  m.def(name, [arguments, kernel](Args... args) { call(kernel, arguments(args...)); });
}

}  // namespace

#define BF_DEFINE(NAME, PARAMS) define(m, #NAME, build::NAME, &Variant::NAME);

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "bertfast's C++ kernels: raw pointers and sizes; call them through bertfast.ops";
  BF_FOR_EACH_KERNEL(BF_DEFINE)
  m.def("pack_weight", pack_weight);
  m.def("unpack_weight", unpack_weight);
  m.def("packed_size", packed_size);
  m.def("sample_hash", sample_hash_of);
  m.def("fma_peak", fma_peak);
  m.def("variants", variants,
        "instruction sets of this build that run on this processor, narrow to wide");
  m.def("variant", [] { return active() ? active()->name : "none"; });
  m.def("set_variant", set_variant);
  m.def("usable_threads", usable_threads);
  m.def("ran_in_parallel", ran_in_parallel);
  m.def("unchanged", unchanged);
}

#endif

}  // namespace bf
