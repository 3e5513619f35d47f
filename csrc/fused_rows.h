// The fused row passes: what the launchers need, in raw pointers. Nothing here knows torch.
//
// The mathematics of each is in the docstring of kernels/<op>.py, whose PyTorch form is the
// reference that the launcher is tested against. Each launcher works on the rows in [begin, end).
#pragma once

#include <cstdint>

#include "dual_token_pool.h"  // Dtype

namespace c2v {

// Rows of contiguous values, `stride` values from one row to the next.
struct InputRows {
  const void* data;
  int64_t stride;
};

struct OutputRows {
  void* data;
  int64_t stride;
};

struct AddRmsNormArguments {
  OutputRows residual;  // [rows, size], read, and written where x is given
  InputRows x;          // [rows, size], or a null pointer
  const void* weight;   // [size]
  void* normed;         // [rows, size], contiguous
  int64_t size;
  float eps;
  Dtype dtype;
};

struct AddLayerNormArguments {
  InputRows x;         // [rows, size]
  const void* x_bias;  // [size], or null
  InputRows residual;  // [rows, size], or a null pointer
  const void* weight;  // [size]
  const void* bias;    // [size]
  void* normed;        // [rows, size], contiguous
  int64_t size;
  float eps;
  Dtype dtype;
};

struct SiluAndMulArguments {
  InputRows gate_up;  // [rows, 2 * size]
  void* product;      // [rows, size], contiguous
  int64_t size;
  Dtype dtype;
};

struct QkNormRopeArguments {
  OutputRows qkv;            // [rows, width], at least as wide as the query and key heads
  const void* bias;          // [width], or null
  const int32_t* positions;  // [rows], each a row of the tables
  InputRows cos;             // [positions, head_dim / 2]
  InputRows sin;             // likewise
  const void* query_norm;    // [head_dim], or null
  const void* key_norm;      // [head_dim], or null
  int64_t width;
  int64_t num_query_heads;
  int64_t num_key_heads;
  int64_t head_dim;
  float eps;
  Dtype dtype;
};

struct QuantizeRowsInt8Arguments {
  InputRows x;      // [rows, size]
  uint8_t* values;  // [rows, size], contiguous
  float* scales;    // [rows]
  int64_t size;
  Dtype dtype;
};

struct ScaleRowsArguments {
  OutputRows x;         // [rows, size], read and written
  const float* scales;  // [rows]
  const void* bias;     // [size], or null
  int64_t size;
  Dtype dtype;
};

void add_rms_norm_cpu(const AddRmsNormArguments& arguments, int64_t begin, int64_t end);
void add_layer_norm_cpu(const AddLayerNormArguments& arguments, int64_t begin, int64_t end);
void silu_and_mul_cpu(const SiluAndMulArguments& arguments, int64_t begin, int64_t end);
void qk_norm_rope_cpu(const QkNormRopeArguments& arguments, int64_t begin, int64_t end);
void quantize_rows_int8_cpu(const QuantizeRowsInt8Arguments& arguments, int64_t begin, int64_t end);
void scale_rows_cpu(const ScaleRowsArguments& arguments, int64_t begin, int64_t end);

}  // namespace c2v
