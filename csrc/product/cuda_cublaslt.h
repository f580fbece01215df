// Products by cuBLASLt, which is looked for at run time among the libraries that torch has loaded:
// nothing is linked, and no header of it is read. Sums are fp32; parts of a cut sum are kept in
// fp32 too. Launches and returns: nothing is allocated on the device but by the first product of a
// process on it, whose handle is kept; what cuBLASLt chooses for a kind of product is kept as well.
#pragma once
#include <cstddef>
#include <string>

#include "common/dtype.h"
#include "common/gpu.h"

namespace bf::cuda {

// What a product may use; 32 MiB are advised for sm_90, 4 for what came before.
constexpr std::size_t kLtWorkspace = std::size_t{32} << 20;

enum class LtVector { kNone, kBias, kGradient };

// d = op(a) op(b), in its terms: matrices lie column by column, `ld` elements apart, so that a
// matrix of ours, row by row, is its own transpose. Every address and every column is a multiple of
// 16 bytes.
struct LtProduct {
  const void *a, *b;
  void* d;
  long m, n, k;                    // op(a) is [m, k], op(b) [k, n], d [m, n]
  long lda = 0, ldb = 0, ldd = 0;  // not less than the rows of what lies there
  bool turn_a = false, turn_b = false;
  LtVector kind = LtVector::kNone;
  void* vector = nullptr;  // kBias: [m], added to each column. kGradient: [n], sums over k of op(b)
};

// Why there are no products of cuBLASLt in this process; empty: there are.
std::string cublaslt_refuses();

// On the current device and the caller's stream. workspace: kLtWorkspace bytes, 256-byte aligned.
// Throws where cuBLASLt has nothing for the product.
void cublaslt_product(const LtProduct& p, DType dtype, const Gpu& gpu, void* workspace);

}  // namespace bf::cuda
