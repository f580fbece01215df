// The Python modules bertfast._cpu and, compiled a second time with BF_CUDA, bertfast._cuda. The
// only file that includes pybind11; nothing of torch. Each kernel takes one dict with the fields of
// its op.h struct by name, and runs without the GIL.
#include <pybind11/pybind11.h>

#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "attention/op.h"
#include "common/check.h"
#include "embedding/op.h"
#include "encoder/op.h"
#include "gelu_layernorm/op.h"
#include "linear_gelu/op.h"
#include "linear_layernorm/op.h"
#include "masked_cross_entropy/op.h"
#include "qkv_projection/op.h"
#ifdef BF_CUDA
#include "common/cuda_driver.h"
#include "common/cuda_graph.h"
#include "common/limits.h"
#include "encoder/padded.h"
#include "product/cuda_cublaslt.h"
#else
#include "common/pool.h"
#include "common/processor.h"
#include "common/rows.h"
#include "common/tanh.h"
#include "product/int8_weight.h"
#include "product/weights.h"
#endif

// X(WITH, name, struct) for the forward and the backward of every operation.
#define BF_FOR_EACH_KERNEL(X, WITH)                        \
  X(WITH, embedding_fwd, EmbeddingFwd)                     \
  X(WITH, embedding_bwd, EmbeddingBwd)                     \
  X(WITH, qkv_projection_fwd, QkvProjectionFwd)            \
  X(WITH, qkv_projection_bwd, QkvProjectionBwd)            \
  X(WITH, attention_fwd, AttentionFwd)                     \
  X(WITH, attention_bwd, AttentionBwd)                     \
  X(WITH, linear_gelu_fwd, LinearGeluFwd)                  \
  X(WITH, linear_gelu_bwd, LinearGeluBwd)                  \
  X(WITH, linear_layernorm_fwd, LinearLayernormFwd)        \
  X(WITH, linear_layernorm_bwd, LinearLayernormBwd)        \
  X(WITH, gelu_layernorm_fwd, GeluLayernormFwd)            \
  X(WITH, gelu_layernorm_bwd, GeluLayernormBwd)            \
  X(WITH, masked_cross_entropy_fwd, MaskedCrossEntropyFwd) \
  X(WITH, masked_cross_entropy_bwd, MaskedCrossEntropyBwd) \
  X(WITH, encoder_fwd, EncoderFwd)                         \
  X(WITH, encoder_bwd, EncoderBwd)

namespace py = pybind11;

namespace bf {
namespace {

// Which field of which kernel, for messages.
struct Path {
  const char* name;
  const Path* outer = nullptr;
  std::string text() const { return outer ? outer->text() + "." + name : name; }
};

[[noreturn]] void refuse(const Path& path, const std::string& why) {
  throw py::type_error(path.text() + ": " + why);
}

template <class Number>
Number integer(const Path& path, PyObject* value) {
  if (PyLong_CheckExact(value)) {
    const auto given = [&] {
      if constexpr (std::is_unsigned_v<Number>)
        return PyLong_AsUnsignedLongLong(value);
      else
        return PyLong_AsLongLong(value);
    }();
    const auto number = static_cast<Number>(given);
    if (number == given && !PyErr_Occurred()) return number;
    PyErr_Clear();
  }
  refuse(path, "expected an integer that fits, got " + std::string(py::repr(value)));
}

template <class Struct>
void fill(const Path& path, Struct& all, PyObject* fields);

template <class T>
constexpr bool is_list = false;
template <class T>
constexpr bool is_list<List<T>> = true;

// A field from what Python passes: an address or size as int (0: no address), a float, a bool, a
// dtype code, a list of these, or the dict of a nested struct (None: all zero).
template <class T>
void set(const Path& path, T& field, PyObject* value) {
  if constexpr (std::is_array_v<T>) {
    constexpr Py_ssize_t count = std::extent_v<T>;
    if (!PyList_Check(value) || PyList_GET_SIZE(value) != count)
      refuse(path, "expected a list of " + std::to_string(count));
    for (Py_ssize_t i = 0; i < count; ++i) set(path, field[i], PyList_GET_ITEM(value, i));
  } else if constexpr (is_list<T>) {
    if (!PyList_Check(value)) refuse(path, "expected a list");
    field.size = PyList_GET_SIZE(value);
    delete[] field.data;
    field.data = new std::remove_pointer_t<decltype(field.data)>[field.size]();
    for (long i = 0; i < field.size; ++i) set(path, field.data[i], PyList_GET_ITEM(value, i));
  } else if constexpr (std::is_class_v<T>) {
    if (value != Py_None) fill(path, field, value);
  } else if constexpr (std::is_pointer_v<T>) {
    field = reinterpret_cast<T>(integer<std::uintptr_t>(path, value));
  } else if constexpr (std::is_enum_v<T>) {
    const int code = integer<int>(path, value);
    if (code < 0 || code > 2) refuse(path, "expected 0 (float32), 1 (bfloat16) or 2 (float16)");
    field = static_cast<T>(code);
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!PyBool_Check(value)) refuse(path, "expected a bool");
    field = value == Py_True;
  } else if constexpr (std::is_floating_point_v<T>) {
    if (!PyFloat_Check(value) && !PyLong_CheckExact(value)) refuse(path, "expected a number");
    field = static_cast<T>(PyFloat_AsDouble(value));
  } else {
    field = integer<T>(path, value);
  }
}

// The names of a struct's fields, interned as Python's keywords are: a look-up compares addresses.
template <class Struct>
const std::vector<PyObject*>& names() {
  static const std::vector<PyObject*> found = [] {
    std::vector<PyObject*> made;
    Struct().each_field(
        [&](const char* name, auto&) { made.push_back(PyUnicode_InternFromString(name)); });
    return made;
  }();
  return found;
}

template <class Struct>
void fill(const Path& path, Struct& all, PyObject* fields) {
  if (!PyDict_Check(fields)) refuse(path, "expected a dict of fields");
  auto name = names<Struct>().begin();
  all.each_field([&](const char* field, auto& member) {
    const Path inner{field, &path};
    PyObject* value = PyDict_GetItemWithError(fields, *name++);
    if (!value) refuse(inner, "missing");
    set(inner, member, value);
  });
  if (PyDict_GET_SIZE(fields) == static_cast<Py_ssize_t>(names<Struct>().size())) return;
  py::dict rest = py::reinterpret_borrow<py::dict>(fields).attr("copy")();
  for (PyObject* known : names<Struct>()) PyDict_DelItem(rest.ptr(), known);
  refuse(path, "no fields " + std::string(py::str(py::list(rest))));
}

// A second dtype of a kernel: the product's, or float32 (CUDA: of a weight the product's).
void check_beside(const Path& path, const char* name, DType given, DType dtype, bool may_be_fp32) {
  if (given != dtype && !(may_be_fp32 && given == DType::kFloat32))
    refuse({name, &path}, may_be_fp32 ? "expected the product's dtype or float32"
                                      : "expected the product's dtype");
}

template <class Params>
auto check_ln_dtype(const Path& path, const Params* p) -> decltype(p->ln_dtype, void()) {
  check_beside(path, "ln_dtype", p->ln_dtype, p->dtype, true);
}
void check_ln_dtype(...) {}

template <class Params>
auto check_weight_dtype(const Path& path, const Params* p) -> decltype(p->weight_dtype, void()) {
#ifdef BF_CUDA
  check_beside(path, "weight_dtype", p->weight_dtype, p->dtype, false);
#else
  check_beside(path, "weight_dtype", p->weight_dtype, p->dtype, true);
#endif
}
void check_weight_dtype(...) {}

template <class Params>
Params params_of(const char* kernel, const py::dict& fields) {
  const Path path{kernel};
  Params params;
  fill(path, params, fields.ptr());
  check_ln_dtype(path, &params);
  check_weight_dtype(path, &params);
  return params;
}

#ifdef BF_CUDA

template <class Params>
void define(py::module_& m, const char* name, void (*kernel)(const Params&),
            std::size_t (*workspace)(const Params&)) {
  m.def(name, [name, kernel](const py::dict& fields) {
    const auto params = params_of<Params>(name, fields);
    py::gil_scoped_release release;
    kernel(params);
  });
  m.def((std::string(name) + "_workspace").c_str(), [name, workspace](const py::dict& fields) {
    return workspace(params_of<Params>(name, fields));
  });
  m.def((std::string(name) + "_graph").c_str(), [name, kernel](const py::dict& fields) {
    auto params = params_of<Params>(name, fields);
    py::gil_scoped_release release;
    return std::make_unique<Graph>([&](void* stream) {
      params.gpu.stream = stream;
      kernel(params);
    });
  });
}

}  // namespace

#define BF_DEFINE(_, NAME, PARAMS) define(m, #NAME, cuda::NAME, cuda::NAME##_workspace);

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "bertfast's CUDA kernels: raw pointers and sizes; call them through bertfast.ops";
  py::class_<Graph>(m, "Graph", py::module_local())
      .def("replay", &Graph::replay, py::call_guard<py::gil_scoped_release>());
  m.def("is_capturing", is_capturing, "whether somebody records what goes to a stream");
  BF_FOR_EACH_KERNEL(BF_DEFINE, )
  BF_DEFINE(, padded_encoder_fwd, PaddedEncoderFwd)
  m.def(
      "targets", [] { return std::string(BF_CUDA_TARGETS); },
      "what was compiled for, as in 80,90,90+PTX");
  py::dict limits;
  for (const Limit& limit : kLimits) limits[limit.name] = py::make_tuple(limit.least, limit.most);
  m.attr("limits") = limits;
  m.def("cublaslt_refuses", cuda::cublaslt_refuses,
        "why products of cuBLASLt cannot be had; or empty");
  m.def("toolkit_version", toolkit_version, "of the CUDA toolkit, as in 13000");
  m.def("driver_version", driver_version, "the newest CUDA that the driver serves; 0: no driver");
}

#else

struct Variant {
  const char* name;
#define BF_POINTER(_, NAME, PARAMS) void (*NAME)(const PARAMS&);
  BF_FOR_EACH_KERNEL(BF_POINTER, )
  void (*pack_weight)(const PackWeight&);
  void (*unpack_weight)(const PackWeight&);
  long (*packed_size)(long, long);
  void (*tanh_each)(const float*, float*, long);
  Int8Layout (*int8_layout)();
  double (*fma_peak)(int, double);
};

#define BF_OF(ISA, NAME, PARAMS) ISA::NAME,
#define BF_VARIANT(ISA)                             \
  {#ISA,                                            \
   BF_FOR_EACH_KERNEL(BF_OF, ISA) ISA::pack_weight, \
   ISA::unpack_weight,                              \
   ISA::packed_size,                                \
   ISA::tanh_each,                                  \
   ISA::int8_layout,                                \
   ISA::fma_peak},
const Variant kVariants[] = {BF_FOR_EACH_ISA(BF_VARIANT)};

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

template <class Kernel, class... Args>
auto call(Kernel Variant::* kernel, const Args&... args) {
  BF_CHECK(active() != nullptr,
           "no variant of the kernels runs on this processor (x86-64-v2 is the least)");
  py::gil_scoped_release release;
  return (active()->*kernel)(args...);
}

int at_least_one(int threads) { return threads < 1 ? 1 : threads; }

using Address = std::uintptr_t;

void* at(Address address) { return reinterpret_cast<void*>(address); }

DType dtype_of(int code) {
  BF_CHECK(code >= 0 && code <= 2, "dtype code: 0 float32, 1 bfloat16, 2 float16");
  return static_cast<DType>(code);
}

void pack_weight(Address weight, Address packed, long n, long k, long stride, int dtype,
                 int threads) {
  call(&Variant::pack_weight,
       PackWeight{at(weight), at(packed), n, k, stride, dtype_of(dtype), at_least_one(threads)});
}

void unpack_weight(Address packed, Address weight, long n, long k, int dtype, int threads) {
  call(&Variant::unpack_weight,
       PackWeight{at(weight), at(packed), n, k, k, dtype_of(dtype), at_least_one(threads)});
}

// Numbers of an fp32 tensor in one piece.
void tanh_each(Address x, Address out, long count) {
  call(&Variant::tanh_each, static_cast<const float*>(at(x)), static_cast<float*>(at(out)), count);
}

// Whether every index is in [0, below): torch takes longer to begin than this to end.
bool all_inside(Address indices, long count, std::uint64_t below) {
  const auto* index = static_cast<const std::uint64_t*>(at(indices));
  bool inside = true;
  for (long i = 0; i < count; ++i) inside &= index[i] < below;
  return inside;
}

// Whether module objects are as a list of their parts says: each of its class, with no hook and no
// forward of its own, holding the very modules and parameters of the list. `dicts` are the modules'
// __dict__. Asked on every call of a model; in Python it would take longer than a small kernel.
bool unchanged(const py::list& modules, const py::list& dicts, const py::list& classes,
               const py::list& parts) {
  static const auto intern = [](const char* name) { return PyUnicode_InternFromString(name); };
  static PyObject* const hooks[] = {intern("_forward_hooks"), intern("_forward_pre_hooks"),
                                    intern("_backward_hooks"), intern("_backward_pre_hooks")};
  static PyObject* const holders[] = {intern("_modules"), intern("_parameters")};
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

template <class Params>
void define(py::module_& m, const char* name, void (*Variant::*kernel)(const Params&)) {
  m.def(name, [name, kernel](const py::dict& fields) {
    auto params = params_of<Params>(name, fields);
    params.threads = at_least_one(params.threads);
    call(kernel, params);
  });
}

}  // namespace

#define BF_DEFINE(_, NAME, PARAMS) define(m, #NAME, &Variant::NAME);

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "bertfast's C++ kernels: raw pointers and sizes; call them through bertfast.ops";
  BF_FOR_EACH_KERNEL(BF_DEFINE, )
  m.def("pack_weight", pack_weight);
  m.def("unpack_weight", unpack_weight);
  m.def("tanh", tanh_each);
  m.def("int8_layout", [] {
    const Int8Layout layout = call(&Variant::int8_layout);
    return py::make_tuple(layout.columns, layout.fold, layout.offset);
  });
  m.def("int8_weight", [](const py::dict& fields) {
    const auto weight = params_of<Int8Weight>("int8_weight", fields);
    return py::bytes(reinterpret_cast<const char*>(&weight), sizeof weight);
  });
  m.def("packed_size", [](long n, long k) { return call(&Variant::packed_size, n, k); });
  m.def("fma_peak", [](int threads, double seconds) {
    return call(&Variant::fma_peak, at_least_one(threads), seconds);
  });
  m.def("variants", variants,
        "instruction sets of this build that run on this processor, narrow to wide");
  m.def("variant", [] { return active() ? active()->name : "none"; });
  m.def("set_variant", set_variant);
  m.def("ran_in_parallel", ran_in_parallel);
  m.def("all_inside", all_inside);
  m.def("scatter_rows", [](Address from, Address places, long rows, Address to, long count,
                           long bytes, int threads) {
    py::gil_scoped_release release;
    scatter_rows(static_cast<const char*>(at(from)), static_cast<const std::int64_t*>(at(places)),
                 rows, static_cast<char*>(at(to)), count, bytes, threads);
  });
  m.def("unchanged", unchanged);
}

#endif

}  // namespace bf
