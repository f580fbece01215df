// Products of the operations: y = x weight^T + bias forward, and of its gradients dx = dy weight,
// dweight = dy^T x, dbias = column sums of dy. Compiled once for all operations.
//
// A block owns one tile of one result (of one part of its sum over k where there are fewer tiles
// than multiprocessors); gemm.cuh says which thread owns what. Forward, bias and GELU are applied
// on the way out of the registers, 16 bytes at a time. Backward, one launch holds the tiles of
// dweight and dbias first, then those of dx. dbias comes from the first column of dweight's tiles,
// which meet every element of dy anyway (tensor cores multiply by ones, fp32 adds).
// Parts of a sum are written to the workspace in fp32 and added in order by a second launch
// (forward: by the caller's next kernel), so results never depend on the order of blocks.
// dgelu is not applied while dy is brought in: erf would be computed anew for each of the
// k / 128 tiles that read an element, more than the one pass that writes dy in its dtype. Where the
// dx of another product is the dout of that pass, it is applied as dx is stored, and no pass is
// left. What must hold: sizes below 2^31; x, weight and results do not overlap.
#include <type_traits>

#include "common/column_sums.cuh"
#include "common/gelu.cuh"
#include "common/limits.h"
#include "product/cublaslt.cuh"
#include "product/gemm.cuh"
#include "product/product.h"

namespace bf::cuda {
namespace {

constexpr int kMinDepths = 8;  // of a part of a sum: less than that the copies cannot hide
constexpr int kMaxSplits = 16;

using Large = Tile<128, 128, 64, 64, 2>;      // many tokens
using LargeTf32 = Tile<128, 128, 64, 32, 1>;  // the same: fragments of tf32 take more registers
using Small = Tile<64, 64, 32, 32, 4>;        // few tokens
using Fma = Tile<64, 64, 32, 32, 3>;          // strict fp32, few tokens or many

// c[o] = the sum over parts of a[o + part] b[o + part]: there are several outputs or several parts.
struct Product {
  Operand a[kMaxWeights], b[kMaxWeights];
  void* c[kMaxWeights];    // [m, n], rows c_stride apart
  void* sum[kMaxWeights];  // [m]: sums over k of a, or null
  long c_stride;
  bool c_vector;
  int m, n, depths, parts, outputs;
  int tiles_m, tiles_n, splits, depths_each;
  float* partial;      // [splits, outputs] results in fp32, partial_size apart, instead of c
  float* partial_sum;  // the same of sum, partial_sum_size apart
  long partial_size, partial_sum_size;
  const std::int32_t* used;  // forward: rows that count; null: all m

  __host__ __device__ int tiles() const { return tiles_m * tiles_n; }
  __host__ __device__ int blocks() const { return tiles() * outputs * splits; }
};

__device__ __forceinline__ Operand pick(const Operand (&list)[kMaxWeights], int i) {
  const auto of = [&](auto member) {
    return i == 0 ? list[0].*member : i == 1 ? list[1].*member : list[2].*member;
  };
  return {of(&Operand::data), of(&Operand::stride), list[0].rows, list[0].columns,
          of(&Operand::vector)};
}

// Computes block `index` of the product and hands its groups to finish(values, row, column, output)
// or, where the sum is cut, writes them to the workspace.
template <class T, class Shape, bool a_along, bool b_along, bool sums, bool fma, class Finish>
__device__ __forceinline__ void compute_tile(const Product& p, int index, char* shared,
                                             Finish finish) {
  using TileCore = Core<T, Shape, a_along, b_along, sums, fma>;
  const TilePlace place = place_tile(index % p.tiles(), p.tiles_m, p.tiles_n);
  const int split = index / p.tiles() % p.splits, output = index / p.tiles() / p.splits;
  const int row = place.row * Shape::kM, column = place.column * Shape::kN;
  const int m = p.used ? min(p.m, *p.used) : p.m;
  if (row >= m) return;
  const bool sum = sums && place.column == 0 && pick(p.sum, output) != nullptr;
  const bool store = pick(p.c, output) != nullptr;
  if (!store && !sum) return;
  const int first = split * p.depths_each;
  const int last = min(first + p.depths_each, p.depths * p.parts);
  TileCore core;
  // All warps of the block sum, though those of the first columns would do: a condition of the
  // block costs its loop less than one of the warp.
  core.accumulate(
      shared,
      [&](int part) {
        Operand a = pick(p.a, output + part);
        if constexpr (a_along) a.rows = keep(m);  // or the loop computes it anew
        return a;
      },
      [&](int part) { return pick(p.b, output + part); }, row, column, p.depths, first, last, sum);
  const long slot = static_cast<long>(split) * p.outputs + output;
  if (sum && Shape::first_column() == 0)
    core.math.for_each_sum([&](int r, float value) {
      const int at = row + Shape::first_row() + r;
      if (at >= m) return;
      if (p.splits > 1)
        p.partial_sum[slot * p.partial_sum_size + at] = value;
      else
        static_cast<T*>(pick(p.sum, output))[at] = from_float<T>(value);
    });
  if (!store) return;
  core.for_each_group(shared, [&](float (&v)[kGroup<T>], int r, int c) {
    if (row + r >= m || column + c >= p.n) return;
    if (p.splits == 1) return finish(v, row + r, column + c, output);
    float* to = p.partial + slot * p.partial_size + static_cast<long>(row + r) * p.n + column + c;
    store_group(to, v, p.n - column - c, p.n % kGroup<T> == 0);
  });
}

struct BiasGelu {
  const void* bias[kMaxWeights];
  void* pre;
  bool gelu;
};

template <class T, class Shape, bool fma>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    forward_tiles(Product p, BiasGelu e) {
  extern __shared__ __align__(128) char shared[];
  compute_tile<T, Shape, true, true, false, fma>(
      p, blockIdx.x, shared, [&](float (&v)[kGroup<T>], int row, int column, int output) {
        const int count = p.n - column;
        const bool vector = p.c_vector && count >= kGroup<T>;
        const long at = row * p.c_stride + column;
        if (const T* bias = static_cast<const T*>(pick(e.bias, output)))
          add_group(v, bias + column, count, vector);
        if (e.pre) store_group(static_cast<T*>(e.pre) + at, v, count, vector);
        if (e.gelu)
#pragma unroll
          for (int i = 0; i < kGroup<T>; ++i) v[i] = gelu(v[i]);
        store_group(static_cast<T*>(pick(p.c, output)) + at, v, count, vector);
      });
}

template <class T, class Shape, bool fma>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    backward_tiles(Product dweight, Product dx, const void* pre) {
  extern __shared__ __align__(128) char shared[];
  const auto store = [](const Product& p, const T* pre) {
    return [&p, pre](float (&v)[kGroup<T>], int row, int column, int output) {
      const int count = p.n - column;
      const bool vector = p.c_vector && count >= kGroup<T>;
      const long at = row * p.c_stride + column;
      if (pre) through_gelu(v, pre + at, count, vector);
      store_group(static_cast<T*>(pick(p.c, output)) + at, v, count, vector);
    };
  };
  const int index = blockIdx.x, first = dweight.blocks();
  if (index < first)
    compute_tile<T, Shape, false, false, true, fma>(dweight, index, shared,
                                                    store(dweight, nullptr));
  else
    compute_tile<T, Shape, true, false, false, fma>(dx, index - first, shared,
                                                    store(dx, static_cast<const T*>(pre)));
}

// ---- host: sizes ----

Operand operand(const void* data, long stride, long rows, long columns, int bytes) {
  return {data, stride, static_cast<int>(rows), static_cast<int>(columns),
          is_vector(data, stride * bytes)};
}

long depth_of(DType dtype) { return kDepthBytes / dtype_bytes(dtype); }

constexpr long kSmall = Small::kM, kLarge = Large::kM;

bool on_tensor_cores(DType dtype, const Gpu& gpu) { return dtype != DType::kFloat32 || gpu.tf32; }

// A size of the problem that decides on tiles and splits before pointers are looked at.
struct Extent {
  long m, n, k, outputs, parts;
  long tiles(long tile) const { return ceil_div(m, tile) * ceil_div(n, tile) * outputs; }
  long depths(DType dtype) const { return ceil_div(k, depth_of(dtype)) * parts; }
};

bool fills_device(long large_tiles) { return 10 * large_tiles >= 7 * multiprocessors(); }

// Depths that a block should sum so that all blocks of the launch end together, two to a
// multiprocessor.
long fair_depths(long work) {
  const long fair = ceil_div(work, 2L * multiprocessors());
  return fair < kMinDepths ? kMinDepths : fair;
}
int splits_of(long depths, long fair) {  // none of them empty
  if (depths < fair) return 1;
  const long wanted = (depths + fair / 2) / fair;
  const long splits = wanted < kMaxSplits ? wanted : kMaxSplits;
  return static_cast<int>(ceil_div(depths, ceil_div(depths, splits)));
}

void set_tiles(Product& p, const Extent& e, long tile, DType dtype, int splits) {
  p.m = static_cast<int>(e.m), p.n = static_cast<int>(e.n);
  p.outputs = static_cast<int>(e.outputs), p.parts = static_cast<int>(e.parts);
  p.depths = static_cast<int>(ceil_div(e.k, depth_of(dtype)));
  p.tiles_m = static_cast<int>(ceil_div(e.m, tile));
  p.tiles_n = static_cast<int>(ceil_div(e.n, tile));
  p.splits = splits;
  p.depths_each = static_cast<int>(ceil_div(e.depths(dtype), splits));
}

void check_sizes(long rows, long n, long k) {
  BF_LIMIT(kSize, rows);
  BF_LIMIT(kSize, n);
  BF_LIMIT(kSize, k);
}

template <class T, class Shape, bool fma>
void launch_forward(const Product& p, const BiasGelu& e, const Gpu& gpu) {
  using TileCore = Core<T, Shape, true, true, false, fma>;
  BF_LAUNCH((forward_tiles<T, Shape, fma>), p.blocks(), Shape::kThreads, TileCore::kSharedBytes,
            gpu, p, e);
}
template <class T, class Shape, bool fma>
void launch_backward(const Product& dweight, const Product& dx, const void* pre, const Gpu& gpu) {
  using TileCore = Core<T, Shape, false, false, true, fma>;
  BF_LAUNCH((backward_tiles<T, Shape, fma>), dweight.blocks() + dx.blocks(), Shape::kThreads,
            TileCore::kSharedBytes, gpu, dweight, dx, pre);
}

// The kernel for the dtype, the arithmetic and the tile.
#define BF_LAUNCH_TILES(LAUNCH, DTYPE, LARGE, GPU, ...)            \
  BF_DISPATCH_DTYPE(DTYPE, T, {                                    \
    constexpr bool kFp32 = std::is_same<T, float>::value;          \
    using LargeTile = std::conditional_t<kFp32, LargeTf32, Large>; \
    if (!on_tensor_cores(DTYPE, GPU))                              \
      LAUNCH<float, Fma, true>(__VA_ARGS__, GPU);                  \
    else if (LARGE)                                                \
      LAUNCH<T, LargeTile, false>(__VA_ARGS__, GPU);               \
    else                                                           \
      LAUNCH<T, Small, false>(__VA_ARGS__, GPU);                   \
  })

Extent forward_extent(const LinearFwd& p) { return {p.rows, p.n, p.k, p.weights, 1}; }
bool forward_is_large(const LinearFwd& p) {
  return p.rows > kSmall && on_tensor_cores(p.dtype, p.gpu) &&
         fills_device(forward_extent(p).tiles(kLarge));
}

// Backward: dweight's tiles (one column of them if only dbias is wanted) and dx's.
struct BackwardPlan {
  Extent dweight, dx;
  bool large;
  int dweight_splits, dx_splits;
  long tile() const { return large ? kLarge : kSmall; }
};

bool any(void* const (&list)[kMaxWeights], int count) {
  for (int i = 0; i < count; ++i)
    if (list[i]) return true;
  return false;
}

BackwardPlan plan_backward(const LinearBwd& p) {
  const bool dweight = any(p.dweight, p.weights), dbias = any(p.dbias, p.weights);
  BackwardPlan plan;
  plan.dweight = {p.n, dweight ? p.k : 1, p.rows, dweight || dbias ? p.weights : 0, 1};
  plan.dx = {p.rows, p.k, p.n, p.dx ? 1 : 0, p.weights};
  plan.large = p.rows > kSmall && on_tensor_cores(p.dtype, p.gpu) &&
               fills_device(plan.dweight.tiles(kLarge) + plan.dx.tiles(kLarge));
  const long tile = plan.tile();
  const long fair = fair_depths(plan.dweight.tiles(tile) * plan.dweight.depths(p.dtype) +
                                plan.dx.tiles(tile) * plan.dx.depths(p.dtype));
  plan.dweight_splits = splits_of(plan.dweight.depths(p.dtype), fair);
  plan.dx_splits = p.gpu.invariant ? 1 : splits_of(plan.dx.depths(p.dtype), fair);
  return plan;
}

Product dweight_product(const LinearBwd& p, const BackwardPlan& plan, Arena& arena) {
  const int bytes = dtype_bytes(p.dtype);
  Product q = {};
  set_tiles(q, plan.dweight, plan.tile(), p.dtype, plan.dweight_splits);
  q.c_stride = p.k, q.c_vector = true;
  for (int w = 0; w < p.weights; ++w) {
    q.a[w] = operand(static_cast<const char*>(p.dy) + w * p.n * bytes, p.weights * p.n, p.rows, p.n,
                     bytes);
    q.b[w] = operand(p.x, p.x_stride, p.rows, p.k, bytes);
    q.c[w] = p.dweight[w], q.sum[w] = p.dbias[w];
    q.c_vector = q.c_vector && is_vector(q.c[w], q.c_stride * bytes);
  }
  if (q.splits > 1) {
    q.partial_size = padded(p.n * p.k), q.partial_sum_size = padded(p.n);
    if (any(p.dweight, p.weights))
      q.partial = arena.take<float>(q.splits * p.weights * q.partial_size);
    q.partial_sum = arena.take<float>(q.splits * p.weights * q.partial_sum_size);
  }
  return q;
}

Product dx_product(const LinearBwd& p, const BackwardPlan& plan, Arena& arena) {
  const int bytes = dtype_bytes(p.dtype);
  Product q = {};
  set_tiles(q, plan.dx, plan.tile(), p.dtype, plan.dx_splits);
  q.c[0] = p.dx, q.c_stride = p.k, q.c_vector = is_vector(p.dx, p.k * bytes) && is_vector(p.pre, 0);
  for (int w = 0; w < p.weights; ++w) {
    q.a[w] = operand(static_cast<const char*>(p.dy) + w * p.n * bytes, p.weights * p.n, p.rows, p.n,
                     bytes);
    q.b[w] = operand(p.weight[w], p.weight_stride[w], p.n, p.k, bytes);
  }
  if (q.splits > 1 && p.dx) {
    q.partial_size = padded(p.rows * p.k);
    q.partial = arena.take<float>(q.splits * q.partial_size);
  }
  return q;
}

void finish_backward(const LinearBwd& p, const Product& dweight, const Product& dx) {
  ColumnSums sums = {};
  if (dweight.splits > 1)
    for (int w = 0; w < p.weights; ++w) {
      sums.add({dweight.partial + w * dweight.partial_size, p.weights * dweight.partial_size,
                dweight.splits, p.dweight[w], p.n * p.k});
      sums.add({dweight.partial_sum + w * dweight.partial_sum_size,
                p.weights * dweight.partial_sum_size, dweight.splits, p.dbias[w], p.n});
    }
  if (dx.splits > 1)
    sums.add({dx.partial, dx.partial_size, dx.splits, p.dx, p.rows * p.k, false, p.pre});
  for (const ColumnSum& sum : p.also) sums.add(sum);
  if (sums.count) BF_DISPATCH_DTYPE(p.dtype, T, launch_column_sums<T>(sums, p.gpu))
}

}  // namespace

std::size_t linear_fwd_workspace(const LinearFwd& p) {
  return forward_is_cublaslts(p) ? kLtWorkspace : 0;
}

int linear_fwd_splits(const LinearFwd& p) {
  if (p.gpu.invariant || forward_is_cublaslts(p)) return 1;
  const Extent e = forward_extent(p);
  const long tile = forward_is_large(p) ? kLarge : kSmall;
  return splits_of(e.depths(p.dtype), fair_depths(e.tiles(tile) * e.depths(p.dtype)));
}

void linear_fwd(const LinearFwd& p) {
  check_sizes(p.rows, p.n, p.k);
  if (p.rows == 0 || p.n == 0) return;
  if (forward_is_cublaslts(p)) return cublaslt_fwd(p);
  const Extent e = forward_extent(p);
  const bool large = forward_is_large(p);
  const int bytes = dtype_bytes(p.dtype);
  Product q = {};
  BiasGelu epilogue = {{}, p.pre, p.gelu};
  set_tiles(q, e, large ? kLarge : kSmall, p.dtype, p.splits);
  q.partial = p.partial, q.partial_size = p.rows * p.n, q.used = p.gpu.used;
  q.c_stride = p.out_stride, q.c_vector = is_vector(p.pre, 0);
  for (int w = 0; w < p.weights; ++w) {
    q.a[w] = operand(p.x, p.x_stride, p.rows, p.k, bytes);
    q.b[w] = operand(p.weight[w], p.k, p.n, p.k, bytes);
    q.c[w] = p.splits > 1 ? static_cast<void*>(p.partial) : p.out[w], epilogue.bias[w] = p.bias[w];
    q.c_vector = q.c_vector && is_vector(q.c[w], q.c_stride * bytes) && is_vector(p.bias[w], 0);
  }
  BF_LAUNCH_TILES(launch_forward, p.dtype, large, p.gpu, q, epilogue)
}

std::size_t linear_bwd_workspace(const LinearBwd& p) {
  Arena arena(nullptr);
  const LinearBwd ours = CublasltBwd(p, arena).rest;
  const BackwardPlan plan = plan_backward(ours);
  dweight_product(ours, plan, arena);
  dx_product(ours, plan, arena);
  return arena.used();
}

void linear_bwd(const LinearBwd& p, void* workspace) {
  BF_CHECK(!p.gpu.used, "backward computes all rows");
  check_sizes(p.rows, p.n, p.k);
  Arena arena(workspace);
  const CublasltBwd theirs(p, arena);
  theirs.launch(p);
  const LinearBwd& ours = theirs.rest;
  const BackwardPlan plan = plan_backward(ours);
  const Product dweight = dweight_product(ours, plan, arena), dx = dx_product(ours, plan, arena);
  if (p.rows > 0) BF_LAUNCH_TILES(launch_backward, p.dtype, plan.large, p.gpu, dweight, dx, p.pre)
  finish_backward(ours, dweight, dx);
}

}  // namespace bf::cuda
