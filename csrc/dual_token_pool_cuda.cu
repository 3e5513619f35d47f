// CUDA kernel of dual-token gather pooling: one block a text.
//
// A text's rows are taken in tiles of one row a warp. Each warp reads its row with 16-byte loads and
// reduces it to the inverse RMS; then the whole block reads the tile's rows again, now out of L1 or
// L2, and adds them to the pooled vector in shared memory, each thread to columns of its own.
#include "dual_token_pool.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace c2v {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Four blocks a multiprocessor leave 64 registers a thread: enough for the loads in flight.
constexpr int kBlocksPerMultiprocessor = 4;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
struct Vector {
  static constexpr int kSize = 16 / sizeof(T);
  float values[kSize];

  __device__ __forceinline__ explicit Vector(const T* source) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(source));
    const T* elements = reinterpret_cast<const T*>(&raw);
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = to_float(elements[k]);
  }
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over the block, in every thread. `partial` is shared memory of kWarps floats.
__device__ __forceinline__ float block_sum(float value, float* partial) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += partial[warp];
  return total;
}

// One warp. A mean square that is not finite would otherwise turn the row's finite values into
// silent zeros.
template <typename T, bool kVectorised>
__device__ __forceinline__ float inverse_rms(const T* x, int size, float eps, int lane) {
  float sum = 0.0f;
  if constexpr (kVectorised) {
#pragma unroll 4
    for (int j = lane * Vector<T>::kSize; j < size; j += 32 * Vector<T>::kSize) {
      const Vector<T> vector(x + j);
#pragma unroll
      for (int k = 0; k < Vector<T>::kSize; ++k) sum += vector.values[k] * vector.values[k];
    }
  } else {
    for (int j = lane; j < size; j += 32) {
      const float value = to_float(x[j]);
      sum += value * value;
    }
  }
  const float mean_square = warp_sum(sum) / static_cast<float>(size);
  return isfinite(mean_square) ? 1.0f / sqrtf(mean_square + eps) : __int_as_float(0x7fc00000);
}

// v += x * inverse, over the first `keep` columns. `v` is aligned to 16 bytes.
template <typename T, bool kVectorised>
__device__ __forceinline__ void accumulate(const T* x, float inverse, int keep, float* v) {
  int scalar_from = 0;
  if constexpr (kVectorised) {
    constexpr int kSize = Vector<T>::kSize;
    scalar_from = keep / kSize * kSize;
    for (int j = threadIdx.x * kSize; j < scalar_from; j += kThreads * kSize) {
      const Vector<T> vector(x + j);
      float4* sums = reinterpret_cast<float4*>(v + j);
#pragma unroll
      for (int k = 0; k < kSize / 4; ++k) {
        float4 sum = sums[k];
        sum.x += vector.values[4 * k] * inverse;
        sum.y += vector.values[4 * k + 1] * inverse;
        sum.z += vector.values[4 * k + 2] * inverse;
        sum.w += vector.values[4 * k + 3] * inverse;
        sums[k] = sum;
      }
    }
  }
  for (int j = scalar_from + threadIdx.x; j < keep; j += kThreads) v[j] += to_float(x[j]) * inverse;
}

__device__ __forceinline__ float load_weight(const void* weight, Dtype dtype, int j) {
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(weight)[j];
  if (dtype == Dtype::kFloat16) return to_float(static_cast<const __half*>(weight)[j]);
  return to_float(static_cast<const __nv_bfloat16*>(weight)[j]);
}

__device__ __forceinline__ int clamp(int value, int low, int high) {
  return min(max(value, low), high);
}

// Floats between two segments of the pooled vector in shared memory: `keep`, rounded up to 16 bytes.
__host__ __device__ __forceinline__ int segment_stride(int keep) { return (keep + 3) / 4 * 4; }

// The pooled vector of one text, as if its segments stood end to end.
struct Pooled {
  const float* v;
  int keep;
  float divisor;

  __device__ __forceinline__ float operator[](int j) const {
    const int segment = j / keep;
    return v[segment * segment_stride(keep) + j - segment * keep] / divisor;
  }
};

// clip(floor((v - min) / step), 0, 255): clipping first lets truncation be the floor, and NaN be 0.
__device__ __forceinline__ int quantize(float value, const float* ranges, int width, int j) {
  const float step = (ranges[width + j] - ranges[j]) / 255.0f;
  const float level = (value - ranges[j]) / (step == 0.0f ? 1.0f : step);
  const float positive = level > 0.0f ? level : 0.0f;
  return static_cast<int>(positive < 255.0f ? positive : 255.0f);
}

__device__ __forceinline__ unsigned pack_byte(const Pooled& pooled, int width, int byte) {
  unsigned packed = 0;
#pragma unroll
  for (int bit = 0; bit < 8; ++bit) {
    const int j = byte * 8 + bit;
    packed = packed << 1 | static_cast<unsigned>(j < width && pooled[j] > 0.0f);
  }
  return packed;
}

__device__ __forceinline__ void write_text(const DualTokenPoolArguments& a, const Pooled& pooled,
                                           int64_t text) {
  const int width = static_cast<int>(a.segments) * pooled.keep;
  const Precision precision = a.precision;
  if (precision == Precision::kBinary || precision == Precision::kUbinary) {
    const int bytes = (width + 7) / 8, shift = precision == Precision::kBinary ? 128 : 0;
    uint8_t* out = static_cast<uint8_t*>(a.embeddings) + text * bytes;
    for (int j = threadIdx.x; j < bytes; j += kThreads) {
      out[j] = static_cast<uint8_t>(static_cast<int>(pack_byte(pooled, width, j)) - shift);
    }
    return;
  }
  for (int j = threadIdx.x; j < width; j += kThreads) {
    const float value = pooled[j];
    const int64_t index = text * width + j;
    if (precision == Precision::kFloat32) {
      static_cast<float*>(a.embeddings)[index] = value;
    } else if (precision == Precision::kFloat16) {
      static_cast<__half*>(a.embeddings)[index] = __float2half_rn(value);
    } else if (precision == Precision::kBFloat16) {
      static_cast<__nv_bfloat16*>(a.embeddings)[index] = __float2bfloat16_rn(value);
    } else {
      const int shift = precision == Precision::kInt8 ? 128 : 0;
      static_cast<uint8_t*>(a.embeddings)[index] =
          static_cast<uint8_t>(quantize(value, a.ranges, width, j) - shift);
    }
  }
}

// The sum over the rows of each of the text's segments, of x times its inverse RMS, into `v`.
template <typename T, bool kVectorised>
__device__ __forceinline__ void sum_rows(const DualTokenPoolArguments& a, const int32_t* offsets,
                                         float* v, float* inverse) {
  const int size = static_cast<int>(a.hidden_size), keep = static_cast<int>(a.keep);
  const int segments = static_cast<int>(a.segments), num_rows = static_cast<int>(a.num_rows);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = clamp(offsets[0], 0, num_rows), last = clamp(offsets[segments], 0, num_rows);
  const T* hidden = static_cast<const T*>(a.hidden_states);

  int segment = 0;
  for (int tile = first; tile < last; tile += kWarps) {
    if (tile + warp < last) {
      const int row = a.rows[tile + warp];
      const bool valid = row >= 0 && row < a.tokens;
      const float value =
          valid ? inverse_rms<T, kVectorised>(hidden + row * a.hidden_size, size, a.eps, lane)
                : __int_as_float(0x7fc00000);
      if (lane == 0) inverse[warp] = value;
    }
    __syncthreads();
    for (int i = 0; i < kWarps && tile + i < last; ++i) {
      while (segment < segments - 1 && tile + i >= offsets[segment + 1]) ++segment;
      const int row = a.rows[tile + i];
      // An invalid row's inverse is NaN, so any readable row makes its text NaN.
      const int64_t readable = row >= 0 && row < a.tokens ? row : 0;
      accumulate<T, kVectorised>(hidden + readable * a.hidden_size, inverse[i], keep,
                                 v + segment * segment_stride(keep));
    }
    __syncthreads();
  }
}

template <typename T, bool kVectorised>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    dual_token_pool_kernel(const __grid_constant__ DualTokenPoolArguments a) {
  extern __shared__ float4 shared[];
  __shared__ float inverse[kWarps];
  __shared__ float partial[kWarps];
  float* v = reinterpret_cast<float*>(shared);
  const int keep = static_cast<int>(a.keep), segments = static_cast<int>(a.segments);
  const int stride = segment_stride(keep);
  const int64_t text = blockIdx.x;
  const int32_t* offsets = a.offsets + text * segments;

  for (int j = threadIdx.x; j < segments * stride; j += kThreads) v[j] = 0.0f;
  __syncthreads();
  sum_rows<T, kVectorised>(a, offsets, v, inverse);

  float squares = 0.0f;
  for (int segment = 0; segment < segments; ++segment) {
    const int first = offsets[segment], last = offsets[segment + 1];
    const bool valid = first >= 0 && first <= last && last <= a.num_rows;
    const float count = valid ? static_cast<float>(last - first) : 0.0f;  // 0 gives NaN or infinity
    for (int j = threadIdx.x; j < keep; j += kThreads) {
      float& value = v[segment * stride + j];
      value = value * load_weight(a.norm_weight, a.weight_dtype, j) / count;
      squares += value * value;
    }
  }
  const float norm = sqrtf(block_sum(squares, partial));
  if (threadIdx.x == 0) a.norms[text] = norm;
  const float divisor = a.normalize ? (norm < 1e-12f ? 1e-12f : norm) : 1.0f;
  write_text(a, Pooled{v, keep, divisor}, text);
}

template <typename T, bool kVectorised>
const char* launch_kernel(const DualTokenPoolArguments& a, cudaStream_t stream) {
  auto* kernel = dual_token_pool_kernel<T, kVectorised>;
  const int64_t shared = a.segments * segment_stride(static_cast<int>(a.keep)) * sizeof(float);
  int device = 0, limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  // The static arrays of the kernel take part of the block's shared memory.
  if (shared > limit - 1024) {
    return "segments * keep is too wide for the GPU's shared memory; keep fewer dimensions";
  }
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  kernel<<<static_cast<unsigned>(a.batch), kThreads, static_cast<size_t>(shared), stream>>>(a);
  error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T>
const char* launch(const DualTokenPoolArguments& a, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(a.hidden_states) % 16 == 0 &&
                       a.hidden_size % Vector<T>::kSize == 0;
  return aligned ? launch_kernel<T, true>(a, stream) : launch_kernel<T, false>(a, stream);
}

}  // namespace

const char* dual_token_pool_cuda(const DualTokenPoolArguments& arguments, void* stream) {
  if (arguments.batch == 0) return nullptr;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (arguments.hidden_dtype) {
    case Dtype::kFloat32: return launch<float>(arguments, cuda_stream);
    case Dtype::kFloat16: return launch<__half>(arguments, cuda_stream);
    case Dtype::kBFloat16: return launch<__nv_bfloat16>(arguments, cuda_stream);
  }
  return "unknown dtype of hidden_states";
}

}  // namespace c2v
