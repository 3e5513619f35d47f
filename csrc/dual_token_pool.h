// Dual-token gather pooling: what the launchers need, in raw pointers. Nothing here knows torch.
//
// The mathematics is in the docstring of kernels/dual_token_pool.py, whose PyTorch form is the
// reference that both launchers are tested against.
#pragma once

#include <cstdint>

namespace c2v {

enum class Dtype : int { kFloat32, kFloat16, kBFloat16 };

// The codes are those of PrecisionCode in kernels/dual_token_pool.py.
enum class Precision : int {
  kFloat32 = 0,
  kFloat16 = 1,
  kBFloat16 = 2,
  kInt8 = 3,
  kUint8 = 4,
  kBinary = 5,
  kUbinary = 6,
};

// Every pointer is contiguous memory of one device, the launcher's.
struct DualTokenPoolArguments {
  const void* hidden_states;  // [tokens, hidden_size] of hidden_dtype
  const int32_t* rows;        // [num_rows], each in [0, tokens)
  const int32_t* offsets;     // [batch * segments + 1], rising from 0 to num_rows
  const void* norm_weight;    // [hidden_size] of weight_dtype
  const float* ranges;        // [2, segments * keep]; read for kInt8 and kUint8 only
  void* embeddings;           // [batch, segments * keep], or [batch, ceil(.../8)] for bits
  float* norms;               // [batch]
  int64_t tokens;
  int64_t hidden_size;
  int64_t num_rows;
  int64_t batch;
  int64_t segments;
  int64_t keep;
  Dtype hidden_dtype;
  Dtype weight_dtype;
  Precision precision;
  float eps;
  bool normalize;
};

// Pools the texts in [begin, end). Rows and offsets must have been checked.
void dual_token_pool_cpu(const DualTokenPoolArguments& arguments, int64_t begin, int64_t end);

// Pools all texts on `stream` (a cudaStream_t) of the current device without waiting for it.
// Returns nullptr, or what went wrong as text that lives as long as the program. A row or an offset
// out of range is never followed: its text's norm is not finite.
const char* dual_token_pool_cuda(const DualTokenPoolArguments& arguments, void* stream);

}  // namespace c2v
