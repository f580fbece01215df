// From what Python passes (addresses as integers, 0 for none; sizes; strides in elements) to the
// op.h structs: one function for each, the same for every native module.
#pragma once
#include <array>
#include <cstdint>

#include "attention/op.h"
#include "common/check.h"
#include "embedding/op.h"
#include "gelu_layernorm/op.h"
#include "linear_gelu/op.h"
#include "linear_layernorm/op.h"
#include "masked_cross_entropy/op.h"
#include "qkv_projection/op.h"

// X(name, struct) for the forward and the backward of every operation.
#define BF_FOR_EACH_KERNEL(X)                        \
  X(embedding_fwd, EmbeddingFwd)                     \
  X(embedding_bwd, EmbeddingBwd)                     \
  X(qkv_projection_fwd, QkvProjectionFwd)            \
  X(qkv_projection_bwd, QkvProjectionBwd)            \
  X(attention_fwd, AttentionFwd)                     \
  X(attention_bwd, AttentionBwd)                     \
  X(linear_gelu_fwd, LinearGeluFwd)                  \
  X(linear_gelu_bwd, LinearGeluBwd)                  \
  X(linear_layernorm_fwd, LinearLayernormFwd)        \
  X(linear_layernorm_bwd, LinearLayernormBwd)        \
  X(gelu_layernorm_fwd, GeluLayernormFwd)            \
  X(gelu_layernorm_bwd, GeluLayernormBwd)            \
  X(masked_cross_entropy_fwd, MaskedCrossEntropyFwd) \
  X(masked_cross_entropy_bwd, MaskedCrossEntropyBwd)

namespace bf {

using Address = std::uintptr_t;

// How and where a kernel runs: the last argument of every call.
struct Where {
  DType dtype = DType::kFloat32;
  int threads = 1;
  Gpu gpu = {};
};

inline DType dtype_of(int code) {
  BF_CHECK(code >= 0 && code <= 2, "dtype code: 0 float32, 1 bfloat16, 2 float16");
  return static_cast<DType>(code);
}

// Of LN's parameters and result beside a product in `dtype`.
inline DType ln_dtype_of(int code, DType dtype) {
  const DType ln_dtype = dtype_of(code);
  BF_CHECK(ln_dtype == dtype || ln_dtype == DType::kFloat32,
           "LN's dtype: the product's or float32");
  return ln_dtype;
}

template <class T>
T* at(Address a) {
  return reinterpret_cast<T*>(a);
}

inline Dropout dropout_of(Address seed, unsigned threshold, double scale) {
  return {at<const std::uint64_t>(seed), threshold, static_cast<float>(scale)};
}

namespace build {

inline EmbeddingFwd embedding_fwd(Address input_ids, Address position_ids, Address segment_ids,
                                  Address word, Address position, Address segment,
                                  Address ln_weight, Address ln_bias, Address out, Address mean,
                                  Address rstd, Address cu_seqlens, long rows, long n,
                                  long word_stride, long sequences, double eps, Address seed,
                                  unsigned threshold, double scale, std::array<long, 3> table_rows,
                                  const Where& where) {
  return {at<const std::int64_t>(input_ids),
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
          where.dtype,
          where.threads,
          where.gpu,
          {table_rows[0], table_rows[1], table_rows[2]}};
}

inline QkvProjectionFwd qkv_projection_fwd(Address x, Address packed_q, Address packed_k,
                                           Address packed_v, Address bias_q, Address bias_k,
                                           Address bias_v, Address out, long rows, long n, long k,
                                           long x_stride, const Where& where) {
  return {at<void>(x),
          {at<void>(packed_q), at<void>(packed_k), at<void>(packed_v)},
          {at<void>(bias_q), at<void>(bias_k), at<void>(bias_v)},
          at<void>(out),
          rows,
          n,
          k,
          x_stride,
          where.dtype,
          where.threads,
          where.gpu};
}

inline AttentionFwd attention_fwd(Address qkv, Address cu_seqlens, Address out, Address lse,
                                  long tokens, long sequences, long heads, long head_size,
                                  long qkv_stride, double softmax_scale, Address seed,
                                  unsigned threshold, double scale, const Where& where) {
  return {at<void>(qkv),
          at<const std::int32_t>(cu_seqlens),
          at<void>(out),
          at<float>(lse),
          tokens,
          sequences,
          heads,
          head_size,
          qkv_stride,
          static_cast<float>(softmax_scale),
          dropout_of(seed, threshold, scale),
          where.dtype,
          where.threads,
          where.gpu};
}

inline LinearGeluFwd linear_gelu_fwd(Address x, Address packed, Address bias, Address out,
                                     Address pre, long rows, long n, long k, long x_stride,
                                     const Where& where) {
  return {at<void>(x), at<void>(packed), at<void>(bias), at<void>(out), at<void>(pre), rows, n,
          k,           x_stride,         where.dtype,    where.threads, where.gpu};
}

inline LinearLayernormFwd linear_layernorm_fwd(Address x, Address packed, Address bias,
                                               Address residual, Address ln_weight, Address ln_bias,
                                               Address out, Address z, Address mean, Address rstd,
                                               Address cu_seqlens, long rows, long n, long k,
                                               long x_stride, long residual_stride, long sequences,
                                               double eps, Address seed, unsigned threshold,
                                               double scale, int ln_dtype, const Where& where) {
  return {at<void>(x),
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
          where.dtype,
          ln_dtype_of(ln_dtype, where.dtype),
          where.threads,
          where.gpu};
}

inline GeluLayernormFwd gelu_layernorm_fwd(Address x, Address packed, Address bias,
                                           Address ln_weight, Address ln_bias, Address out,
                                           Address pre, Address mean, Address rstd, long rows,
                                           long n, long k, long x_stride, double eps, int ln_dtype,
                                           const Where& where) {
  return {at<void>(x),
          at<void>(packed),
          at<void>(bias),
          at<void>(ln_weight),
          at<void>(ln_bias),
          at<void>(out),
          at<void>(pre),
          at<float>(mean),
          at<float>(rstd),
          rows,
          n,
          k,
          x_stride,
          static_cast<float>(eps),
          where.dtype,
          ln_dtype_of(ln_dtype, where.dtype),
          where.threads,
          where.gpu};
}

inline MaskedCrossEntropyFwd masked_cross_entropy_fwd(Address x, Address weight, Address bias,
                                                      Address rows, Address labels, Address lse,
                                                      Address logit, long labelled, long vocabulary,
                                                      long k, long x_stride, long weight_stride,
                                                      Address count, const Where& where) {
  return {at<void>(x),
          at<void>(weight),
          at<void>(bias),
          at<const std::int64_t>(rows),
          at<const std::int64_t>(labels),
          at<float>(lse),
          at<float>(logit),
          labelled,
          vocabulary,
          k,
          x_stride,
          weight_stride,
          where.dtype,
          where.threads,
          where.gpu,
          at<const std::int64_t>(count)};
}

inline EmbeddingBwd embedding_bwd(Address dout, Address input_ids, Address position_ids,
                                  Address segment_ids, Address word, Address position,
                                  Address segment, Address ln_weight, Address mean, Address rstd,
                                  std::array<Address, 3> orders, std::array<Address, 3> dtables,
                                  std::int64_t padding_idx, Address dinputs, Address dln_weight,
                                  Address dln_bias, Address cu_seqlens, long rows, long n,
                                  long word_stride, long sequences, Address seed,
                                  unsigned threshold, double scale, std::array<long, 3> table_rows,
                                  const Where& where) {
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
                 where.dtype,
                 where.threads,
                 where.gpu,
                 {table_rows[0], table_rows[1], table_rows[2]}};
  for (int i = 0; i < 3; ++i)
    p.tables[i] = {at<const std::int64_t>(ids[i]), at<const std::int64_t>(orders[i]),
                   at<void>(dtables[i]), i == 0 ? padding_idx : -1};
  return p;
}

inline QkvProjectionBwd qkv_projection_bwd(Address dqkv, Address x, std::array<Address, 3> weights,
                                           std::array<long, 3> weight_strides, Address dx,
                                           std::array<Address, 3> dweights,
                                           std::array<Address, 3> dbiases, long rows, long n,
                                           long k, long x_stride, const Where& where) {
  QkvProjectionBwd p{at<void>(dqkv), at<void>(x), {}, at<void>(dx), {}, {},
                     rows,           n,           k,  x_stride,     {}, where.dtype,
                     where.threads,  where.gpu};
  for (int i = 0; i < 3; ++i) {
    p.weight[i] = at<void>(weights[i]);
    p.weight_stride[i] = weight_strides[i];
    p.dweight[i] = at<void>(dweights[i]);
    p.dbias[i] = at<void>(dbiases[i]);
  }
  return p;
}

inline AttentionBwd attention_bwd(Address dout, Address qkv, Address out, Address lse,
                                  Address cu_seqlens, Address dqkv, long tokens, long sequences,
                                  long heads, long head_size, long qkv_stride, double softmax_scale,
                                  Address seed, unsigned threshold, double scale,
                                  const Where& where) {
  return {at<void>(dout),
          at<void>(qkv),
          at<void>(out),
          at<float>(lse),
          at<const std::int32_t>(cu_seqlens),
          at<void>(dqkv),
          tokens,
          sequences,
          heads,
          head_size,
          qkv_stride,
          static_cast<float>(softmax_scale),
          dropout_of(seed, threshold, scale),
          where.dtype,
          where.threads,
          where.gpu};
}

inline LinearGeluBwd linear_gelu_bwd(Address dout, Address x, Address weight, Address pre,
                                     Address dx, Address dweight, Address dbias, long rows, long n,
                                     long k, long x_stride, long weight_stride,
                                     const Where& where) {
  return {at<void>(dout),
          at<void>(x),
          at<void>(weight),
          at<void>(pre),
          at<void>(dx),
          at<void>(dweight),
          at<void>(dbias),
          rows,
          n,
          k,
          x_stride,
          weight_stride,
          where.dtype,
          where.threads,
          where.gpu};
}

inline LinearLayernormBwd linear_layernorm_bwd(Address dout, Address x, Address weight, Address z,
                                               Address mean, Address rstd, Address ln_weight,
                                               Address dx, Address dweight, Address dbias,
                                               Address dresidual, Address dln_weight,
                                               Address dln_bias, Address cu_seqlens, long rows,
                                               long n, long k, long x_stride, long weight_stride,
                                               long sequences, Address seed, unsigned threshold,
                                               double scale, int ln_dtype, const Where& where) {
  return {at<void>(dout),
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
          where.dtype,
          ln_dtype_of(ln_dtype, where.dtype),
          where.threads,
          where.gpu};
}

inline GeluLayernormBwd gelu_layernorm_bwd(Address dout, Address x, Address weight, Address pre,
                                           Address mean, Address rstd, Address ln_weight,
                                           Address dx, Address dweight, Address dbias,
                                           Address dln_weight, Address dln_bias, long rows, long n,
                                           long k, long x_stride, long weight_stride, int ln_dtype,
                                           const Where& where) {
  return {at<void>(dout),
          at<void>(x),
          at<void>(weight),
          at<void>(pre),
          at<float>(mean),
          at<float>(rstd),
          at<void>(ln_weight),
          at<void>(dx),
          at<void>(dweight),
          at<void>(dbias),
          at<void>(dln_weight),
          at<void>(dln_bias),
          rows,
          n,
          k,
          x_stride,
          weight_stride,
          where.dtype,
          ln_dtype_of(ln_dtype, where.dtype),
          where.threads,
          where.gpu};
}

inline MaskedCrossEntropyBwd masked_cross_entropy_bwd(Address x, Address weight, Address bias,
                                                      Address rows, Address labels, Address lse,
                                                      Address scale, Address dx, Address dweight,
                                                      Address dbias, long labelled, long vocabulary,
                                                      long k, long x_stride, long weight_stride,
                                                      Address count, const Where& where) {
  return {at<void>(x),
          at<void>(weight),
          at<void>(bias),
          at<const std::int64_t>(rows),
          at<const std::int64_t>(labels),
          at<float>(lse),
          at<float>(scale),
          at<void>(dx),
          at<void>(dweight),
          at<void>(dbias),
          labelled,
          vocabulary,
          k,
          x_stride,
          weight_stride,
          where.dtype,
          where.threads,
          where.gpu,
          at<const std::int64_t>(count)};
}

}  // namespace build
}  // namespace bf
