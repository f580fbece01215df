// The Python module bertfast._cpu: pointers (as integers, 0 for none), sizes and dtype codes in,
// nothing of torch. The only file that includes pybind11. Each function fills an op.h struct and
// calls the active variant without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <string>

#include "attention/op.h"
#include "common/check.h"
#include "common/runtime.h"
#include "common/weights.h"
#include "embedding/op.h"
#include "gelu_layernorm/op.h"
#include "linear_gelu/op.h"
#include "linear_layernorm/op.h"
#include "masked_cross_entropy/op.h"
#include "qkv_projection/op.h"

namespace py = pybind11;

namespace bf {
namespace {

using Address = std::uintptr_t;

struct Variant {
  const char* name;
  void (*embedding_fwd)(const EmbeddingFwd&);
  void (*embedding_bwd)(const EmbeddingBwd&);
  void (*qkv_projection_fwd)(const QkvProjectionFwd&);
  void (*qkv_projection_bwd)(const QkvProjectionBwd&);
  void (*attention_fwd)(const AttentionFwd&);
  void (*attention_bwd)(const AttentionBwd&);
  void (*linear_gelu_fwd)(const LinearGeluFwd&);
  void (*linear_gelu_bwd)(const LinearGeluBwd&);
  void (*linear_layernorm_fwd)(const LinearLayernormFwd&);
  void (*linear_layernorm_bwd)(const LinearLayernormBwd&);
  void (*gelu_layernorm_fwd)(const GeluLayernormFwd&);
  void (*gelu_layernorm_bwd)(const GeluLayernormBwd&);
  void (*masked_cross_entropy_fwd)(const MaskedCrossEntropyFwd&);
  void (*masked_cross_entropy_bwd)(const MaskedCrossEntropyBwd&);
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

DType dtype_of(int code) {
  BF_CHECK(code >= 0 && code <= 2, "dtype code: 0 float32, 1 bfloat16, 2 float16");
  return static_cast<DType>(code);
}

template <class T>
T* at(Address a) {
  return reinterpret_cast<T*>(a);
}

Dropout dropout_of(Address seed, unsigned threshold, double scale) {
  return {at<const std::uint64_t>(seed), threshold, static_cast<float>(scale)};
}

template <class Params>
void call(void (*Variant::*kernel)(const Params&), const Params& params) {
  BF_CHECK(active() != nullptr,
           "no variant of the kernels runs on this processor (x86-64-v2 is the least)");
  py::gil_scoped_release release;
  (active()->*kernel)(params);
}

void embedding_fwd(Address input_ids, Address position_ids, Address segment_ids, Address word,
                   Address position, Address segment, Address ln_weight, Address ln_bias,
                   Address out, Address mean, Address rstd, Address cu_seqlens, long rows, long n,
                   long word_stride, long sequences, double eps, Address seed, unsigned threshold,
                   double scale, int dtype, int threads) {
  call(&Variant::embedding_fwd, EmbeddingFwd{at<const std::int64_t>(input_ids),
                                             at<const std::int64_t>(position_ids),
                                             at<const std::int64_t>(segment_ids),
                                             at<void>(word),
                                             at<void>(position),
                                             at<void>(segment),
                                             at<void>(ln_weight),
                                             at<void>(ln_bias),
                                             at<void>(out),
                                             at<float>(mean),
                                             at<float>(rstd),
                                             at<const std::int32_t>(cu_seqlens),
                                             rows,
                                             n,
                                             word_stride,
                                             sequences,
                                             static_cast<float>(eps),
                                             dropout_of(seed, threshold, scale),
                                             dtype_of(dtype),
                                             usable_threads(threads)});
}

void qkv_projection_fwd(Address x, Address packed_q, Address packed_k, Address packed_v,
                        Address bias_q, Address bias_k, Address bias_v, Address out, long rows,
                        long n, long k, long x_stride, int dtype, int threads) {
  call(&Variant::qkv_projection_fwd,
       QkvProjectionFwd{at<void>(x),
                        {at<void>(packed_q), at<void>(packed_k), at<void>(packed_v)},
                        {at<void>(bias_q), at<void>(bias_k), at<void>(bias_v)},
                        at<void>(out),
                        rows,
                        n,
                        k,
                        x_stride,
                        dtype_of(dtype),
                        usable_threads(threads)});
}

void attention_fwd(Address qkv, Address cu_seqlens, Address out, Address lse, long tokens,
                   long sequences, long heads, long head_size, long qkv_stride,
                   double softmax_scale, Address seed, unsigned threshold, double scale, int dtype,
                   int threads) {
  call(&Variant::attention_fwd,
       AttentionFwd{at<void>(qkv), at<const std::int32_t>(cu_seqlens), at<void>(out),
                    at<float>(lse), tokens, sequences, heads, head_size, qkv_stride,
                    static_cast<float>(softmax_scale), dropout_of(seed, threshold, scale),
                    dtype_of(dtype), usable_threads(threads)});
}

void linear_gelu_fwd(Address x, Address packed, Address bias, Address out, Address pre, long rows,
                     long n, long k, long x_stride, int dtype, int threads) {
  call(&Variant::linear_gelu_fwd,
       LinearGeluFwd{at<void>(x), at<void>(packed), at<void>(bias), at<void>(out), at<void>(pre),
                     rows, n, k, x_stride, dtype_of(dtype), usable_threads(threads)});
}

void linear_layernorm_fwd(Address x, Address packed, Address bias, Address residual,
                          Address ln_weight, Address ln_bias, Address out, Address z, Address mean,
                          Address rstd, Address cu_seqlens, long rows, long n, long k,
                          long x_stride, long residual_stride, long sequences, double eps,
                          Address seed, unsigned threshold, double scale, int dtype, int threads) {
  call(&Variant::linear_layernorm_fwd, LinearLayernormFwd{at<void>(x),
                                                          at<void>(packed),
                                                          at<void>(bias),
                                                          at<void>(residual),
                                                          at<void>(ln_weight),
                                                          at<void>(ln_bias),
                                                          at<void>(out),
                                                          at<void>(z),
                                                          at<float>(mean),
                                                          at<float>(rstd),
                                                          at<const std::int32_t>(cu_seqlens),
                                                          rows,
                                                          n,
                                                          k,
                                                          x_stride,
                                                          residual_stride,
                                                          sequences,
                                                          static_cast<float>(eps),
                                                          dropout_of(seed, threshold, scale),
                                                          dtype_of(dtype),
                                                          usable_threads(threads)});
}

void gelu_layernorm_fwd(Address x, Address packed, Address bias, Address ln_weight, Address ln_bias,
                        Address out, Address pre, Address mean, Address rstd, long rows, long n,
                        long k, long x_stride, double eps, int dtype, int threads) {
  call(&Variant::gelu_layernorm_fwd,
       GeluLayernormFwd{at<void>(x), at<void>(packed), at<void>(bias), at<void>(ln_weight),
                        at<void>(ln_bias), at<void>(out), at<void>(pre), at<float>(mean),
                        at<float>(rstd), rows, n, k, x_stride, static_cast<float>(eps),
                        dtype_of(dtype), usable_threads(threads)});
}

void masked_cross_entropy_fwd(Address x, Address weight, Address bias, Address rows, Address labels,
                              Address lse, Address logit, long labelled, long vocabulary, long k,
                              long x_stride, long weight_stride, int dtype, int threads) {
  call(&Variant::masked_cross_entropy_fwd,
       MaskedCrossEntropyFwd{at<void>(x), at<void>(weight), at<void>(bias),
                             at<const std::int64_t>(rows), at<const std::int64_t>(labels),
                             at<float>(lse), at<float>(logit), labelled, vocabulary, k, x_stride,
                             weight_stride, dtype_of(dtype), usable_threads(threads)});
}

void embedding_bwd(Address dout, Address input_ids, Address position_ids, Address segment_ids,
                   Address word, Address position, Address segment, Address ln_weight, Address mean,
                   Address rstd, std::array<Address, 3> orders, std::array<Address, 3> dtables,
                   std::int64_t padding_idx, Address dinputs, Address dln_weight, Address dln_bias,
                   Address cu_seqlens, long rows, long n, long word_stride, long sequences,
                   Address seed, unsigned threshold, double scale, int dtype, int threads) {
  const Address ids[3] = {input_ids, position_ids, segment_ids};
  EmbeddingBwd p{at<void>(dout),
                 at<const std::int64_t>(input_ids),
                 at<const std::int64_t>(position_ids),
                 at<const std::int64_t>(segment_ids),
                 at<void>(word),
                 at<void>(position),
                 at<void>(segment),
                 at<void>(ln_weight),
                 at<float>(mean),
                 at<float>(rstd),
                 {},
                 at<void>(dinputs),
                 at<void>(dln_weight),
                 at<void>(dln_bias),
                 at<const std::int32_t>(cu_seqlens),
                 rows,
                 n,
                 word_stride,
                 sequences,
                 dropout_of(seed, threshold, scale),
                 dtype_of(dtype),
                 usable_threads(threads)};
  for (int i = 0; i < 3; ++i)
    p.tables[i] = {at<const std::int64_t>(ids[i]), at<const std::int64_t>(orders[i]),
                   at<void>(dtables[i]), i == 0 ? padding_idx : -1};
  call(&Variant::embedding_bwd, p);
}

void qkv_projection_bwd(Address dqkv, Address x, std::array<Address, 3> weights,
                        std::array<long, 3> weight_strides, Address dx,
                        std::array<Address, 3> dweights, std::array<Address, 3> dbiases, long rows,
                        long n, long k, long x_stride, int dtype, int threads) {
  QkvProjectionBwd p{at<void>(dqkv),
                     at<void>(x),
                     {},
                     at<void>(dx),
                     {},
                     {},
                     rows,
                     n,
                     k,
                     x_stride,
                     {},
                     dtype_of(dtype),
                     usable_threads(threads)};
  for (int i = 0; i < 3; ++i) {
    p.weight[i] = at<void>(weights[i]);
    p.weight_stride[i] = weight_strides[i];
    p.dweight[i] = at<void>(dweights[i]);
    p.dbias[i] = at<void>(dbiases[i]);
  }
  call(&Variant::qkv_projection_bwd, p);
}

void attention_bwd(Address dout, Address qkv, Address out, Address lse, Address cu_seqlens,
                   Address dqkv, long tokens, long sequences, long heads, long head_size,
                   long qkv_stride, double softmax_scale, Address seed, unsigned threshold,
                   double scale, int dtype, int threads) {
  call(&Variant::attention_bwd,
       AttentionBwd{at<void>(dout), at<void>(qkv), at<void>(out), at<float>(lse),
                    at<const std::int32_t>(cu_seqlens), at<void>(dqkv), tokens, sequences, heads,
                    head_size, qkv_stride, static_cast<float>(softmax_scale),
                    dropout_of(seed, threshold, scale), dtype_of(dtype), usable_threads(threads)});
}

void linear_gelu_bwd(Address dout, Address x, Address weight, Address pre, Address dx,
                     Address dweight, Address dbias, long rows, long n, long k, long x_stride,
                     long weight_stride, int dtype, int threads) {
  call(&Variant::linear_gelu_bwd,
       LinearGeluBwd{at<void>(dout), at<void>(x), at<void>(weight), at<void>(pre), at<void>(dx),
                     at<void>(dweight), at<void>(dbias), rows, n, k, x_stride, weight_stride,
                     dtype_of(dtype), usable_threads(threads)});
}

void linear_layernorm_bwd(Address dout, Address x, Address weight, Address z, Address mean,
                          Address rstd, Address ln_weight, Address dx, Address dweight,
                          Address dbias, Address dresidual, Address dln_weight, Address dln_bias,
                          Address cu_seqlens, long rows, long n, long k, long x_stride,
                          long weight_stride, long sequences, Address seed, unsigned threshold,
                          double scale, int dtype, int threads) {
  call(&Variant::linear_layernorm_bwd, LinearLayernormBwd{at<void>(dout),
                                                          at<void>(x),
                                                          at<void>(weight),
                                                          at<void>(z),
                                                          at<float>(mean),
                                                          at<float>(rstd),
                                                          at<void>(ln_weight),
                                                          at<void>(dx),
                                                          at<void>(dweight),
                                                          at<void>(dbias),
                                                          at<void>(dresidual),
                                                          at<void>(dln_weight),
                                                          at<void>(dln_bias),
                                                          at<const std::int32_t>(cu_seqlens),
                                                          rows,
                                                          n,
                                                          k,
                                                          x_stride,
                                                          weight_stride,
                                                          sequences,
                                                          dropout_of(seed, threshold, scale),
                                                          dtype_of(dtype),
                                                          usable_threads(threads)});
}

void gelu_layernorm_bwd(Address dout, Address x, Address weight, Address pre, Address mean,
                        Address rstd, Address ln_weight, Address dx, Address dweight, Address dbias,
                        Address dln_weight, Address dln_bias, long rows, long n, long k,
                        long x_stride, long weight_stride, int dtype, int threads) {
  call(&Variant::gelu_layernorm_bwd,
       GeluLayernormBwd{at<void>(dout), at<void>(x), at<void>(weight), at<void>(pre),
                        at<float>(mean), at<float>(rstd), at<void>(ln_weight), at<void>(dx),
                        at<void>(dweight), at<void>(dbias), at<void>(dln_weight),
                        at<void>(dln_bias), rows, n, k, x_stride, weight_stride, dtype_of(dtype),
                        usable_threads(threads)});
}

void masked_cross_entropy_bwd(Address x, Address weight, Address bias, Address rows, Address labels,
                              Address lse, Address scale, Address dx, Address dweight,
                              Address dbias, long labelled, long vocabulary, long k, long x_stride,
                              long weight_stride, int dtype, int threads) {
  call(&Variant::masked_cross_entropy_bwd,
       MaskedCrossEntropyBwd{at<void>(x), at<void>(weight), at<void>(bias),
                             at<const std::int64_t>(rows), at<const std::int64_t>(labels),
                             at<float>(lse), at<float>(scale), at<void>(dx), at<void>(dweight),
                             at<void>(dbias), labelled, vocabulary, k, x_stride, weight_stride,
                             dtype_of(dtype), usable_threads(threads)});
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

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "bertfast's C++ kernels: raw pointers and sizes; call them through bertfast.ops";
  m.def("embedding_fwd", embedding_fwd);
  m.def("embedding_bwd", embedding_bwd);
  m.def("qkv_projection_fwd", qkv_projection_fwd);
  m.def("qkv_projection_bwd", qkv_projection_bwd);
  m.def("attention_fwd", attention_fwd);
  m.def("attention_bwd", attention_bwd);
  m.def("linear_gelu_fwd", linear_gelu_fwd);
  m.def("linear_gelu_bwd", linear_gelu_bwd);
  m.def("linear_layernorm_fwd", linear_layernorm_fwd);
  m.def("linear_layernorm_bwd", linear_layernorm_bwd);
  m.def("gelu_layernorm_fwd", gelu_layernorm_fwd);
  m.def("gelu_layernorm_bwd", gelu_layernorm_bwd);
  m.def("masked_cross_entropy_fwd", masked_cross_entropy_fwd);
  m.def("masked_cross_entropy_bwd", masked_cross_entropy_bwd);
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
}

}  // namespace bf
