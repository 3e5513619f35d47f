// CPU kernel of dual-token gather pooling: plain loops that the compiler vectorises.
//
// On x86-64 the whole kernel is compiled twice, for the baseline and for AVX2 with FMA, and the
// processor is asked once which of the two it runs: a wheel built anywhere runs everywhere.
#include "dual_token_pool.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__GNUC__) && defined(__x86_64__)
#define C2V_X86_DISPATCH 1
#endif

#if defined(__GNUC__)
#define C2V_INLINE inline __attribute__((always_inline))
#else
#define C2V_INLINE inline
#endif

namespace c2v {
namespace {

C2V_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

C2V_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct Float32 {
  using Storage = float;
  static C2V_INLINE float load(Storage value) { return value; }
  static C2V_INLINE Storage store(float value) { return value; }
};

struct BFloat16 {
  using Storage = uint16_t;
  static C2V_INLINE float load(Storage value) {
    return bits_to_float(static_cast<uint32_t>(value) << 16);
  }
  // Round to nearest, ties to even.
  static C2V_INLINE Storage store(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<Storage>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
};

struct Float16 {
  using Storage = uint16_t;
  // Branch-free so that it vectorises. A subnormal m is read as 0.5 + m * 2^-24, less 0.5, which
  // stays exact when the processor flushes subnormal floats to zero.
  static C2V_INLINE float load(Storage value) {
    const uint32_t exponent = value & 0x7c00u;
    const uint32_t magnitude = static_cast<uint32_t>(value & 0x7fffu) << 13;
    const float normal = bits_to_float(magnitude + (exponent == 0x7c00u ? 0x70000000u : 0x38000000u));
    const float subnormal = bits_to_float(0x3f000000u | (value & 0x3ffu)) - 0.5f;
    const float absolute = exponent == 0 ? subnormal : normal;
    return bits_to_float(float_to_bits(absolute) | (static_cast<uint32_t>(value & 0x8000u) << 16));
  }
  // Round to nearest, ties to even; branch-free like load. Below 2^-14 adding 0.5 rounds at 2^-24;
  // 65520 and above is infinite.
  static C2V_INLINE Storage store(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t half = magnitude >= 0x477ff000u ? special : finite;
    return static_cast<Storage>(sign | half);
  }
};

// Thirty-two partial sums: enough independent additions to hide their latency, and closer to the
// exact sum than one running total.
constexpr int64_t kLanes = 32;

C2V_INLINE float sum_lanes(float* lanes) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

template <typename Element>
C2V_INLINE float sum_of_squares(const typename Element::Storage* x, int64_t size) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = Element::load(x[i + lane]);
      lanes[lane] += value * value;
    }
  }
  for (int64_t lane = 0; i + lane < size; ++lane) {
    const float value = Element::load(x[i + lane]);
    lanes[lane] += value * value;
  }
  return sum_lanes(lanes);
}

// A mean square that is not finite would otherwise turn the row's finite values into silent zeros.
template <typename Element>
C2V_INLINE float inverse_rms(const typename Element::Storage* x, int64_t size, float eps) {
  const float mean_square = sum_of_squares<Element>(x, size) / static_cast<float>(size);
  if (!std::isfinite(mean_square)) return std::numeric_limits<float>::quiet_NaN();
  return 1.0f / std::sqrt(mean_square + eps);
}

// v = concat_s mean_i RMSNorm(x_i)[:keep]. An empty segment gives 0 / 0 = NaN.
template <typename Element>
C2V_INLINE void pool_segments(const DualTokenPoolArguments& a, const float* weight, int64_t text,
                              float* v) {
  const auto* hidden = static_cast<const typename Element::Storage*>(a.hidden_states);
  for (int64_t segment = 0; segment < a.segments; ++segment, v += a.keep) {
    const int64_t index = text * a.segments + segment;
    const int64_t first = a.offsets[index], last = a.offsets[index + 1];
    for (int64_t j = 0; j < a.keep; ++j) v[j] = 0.0f;
    for (int64_t i = first; i < last; ++i) {
      const auto* x = hidden + static_cast<int64_t>(a.rows[i]) * a.hidden_size;
      const float inverse = inverse_rms<Element>(x, a.hidden_size, a.eps);
      for (int64_t j = 0; j < a.keep; ++j) v[j] += Element::load(x[j]) * inverse;
    }
    const float count = static_cast<float>(last - first);
    for (int64_t j = 0; j < a.keep; ++j) v[j] = v[j] * weight[j] / count;
  }
}

template <typename Element>
C2V_INLINE void write_floats(const float* v, int64_t width, int64_t text, void* embeddings) {
  auto* out = static_cast<typename Element::Storage*>(embeddings) + text * width;
  for (int64_t j = 0; j < width; ++j) out[j] = Element::store(v[j]);
}

// clip(floor((v - min) / step), 0, 255): clipping first lets truncation be the floor, and NaN be 0.
C2V_INLINE void write_bytes(const float* v, int64_t width, const float* ranges, int64_t text,
                            int shift, void* embeddings) {
  auto* out = static_cast<uint8_t*>(embeddings) + text * width;
  for (int64_t j = 0; j < width; ++j) {
    const float step = (ranges[width + j] - ranges[j]) / 255.0f;
    const float level = (v[j] - ranges[j]) / (step == 0.0f ? 1.0f : step);
    const float positive = level > 0.0f ? level : 0.0f;
    out[j] = static_cast<uint8_t>(static_cast<int>(positive < 255.0f ? positive : 255.0f) - shift);
  }
}

C2V_INLINE void write_bits(const float* v, int64_t width, int64_t text, int shift,
                           void* embeddings) {
  const int64_t bytes = (width + 7) / 8;
  auto* out = static_cast<uint8_t*>(embeddings) + text * bytes;
  for (int64_t byte = 0; byte < bytes; ++byte) {
    unsigned packed = 0;
    for (int64_t bit = 0; bit < 8; ++bit) {
      const int64_t j = byte * 8 + bit;
      packed = packed << 1 | static_cast<unsigned>(j < width && v[j] > 0.0f);
    }
    out[byte] = static_cast<uint8_t>(static_cast<int>(packed) - shift);
  }
}

C2V_INLINE void write_text(const DualTokenPoolArguments& a, const float* v, int64_t text) {
  const int64_t width = a.segments * a.keep;
  switch (a.precision) {
    case Precision::kFloat32: return write_floats<Float32>(v, width, text, a.embeddings);
    case Precision::kFloat16: return write_floats<Float16>(v, width, text, a.embeddings);
    case Precision::kBFloat16: return write_floats<BFloat16>(v, width, text, a.embeddings);
    case Precision::kInt8: return write_bytes(v, width, a.ranges, text, 128, a.embeddings);
    case Precision::kUint8: return write_bytes(v, width, a.ranges, text, 0, a.embeddings);
    case Precision::kBinary: return write_bits(v, width, text, 128, a.embeddings);
    case Precision::kUbinary: return write_bits(v, width, text, 0, a.embeddings);
  }
}

template <typename Element>
C2V_INLINE void load_weight(const void* norm_weight, int64_t keep, float* weight) {
  const auto* w = static_cast<const typename Element::Storage*>(norm_weight);
  for (int64_t j = 0; j < keep; ++j) weight[j] = Element::load(w[j]);
}

template <typename Element>
C2V_INLINE void pool_texts(const DualTokenPoolArguments& a, int64_t begin, int64_t end,
                           float* weight, float* v) {
  switch (a.weight_dtype) {
    case Dtype::kFloat32: load_weight<Float32>(a.norm_weight, a.keep, weight); break;
    case Dtype::kFloat16: load_weight<Float16>(a.norm_weight, a.keep, weight); break;
    case Dtype::kBFloat16: load_weight<BFloat16>(a.norm_weight, a.keep, weight); break;
  }
  const int64_t width = a.segments * a.keep;
  for (int64_t text = begin; text < end; ++text) {
    pool_segments<Element>(a, weight, text, v);
    const float norm = std::sqrt(sum_of_squares<Float32>(v, width));
    a.norms[text] = norm;
    if (a.normalize) {
      const float divisor = norm < 1e-12f ? 1e-12f : norm;  // NaN stays NaN
      for (int64_t j = 0; j < width; ++j) v[j] /= divisor;
    }
    write_text(a, v, text);
  }
}

C2V_INLINE void pool_any(const DualTokenPoolArguments& a, int64_t begin, int64_t end,
                         float* weight, float* v) {
  switch (a.hidden_dtype) {
    case Dtype::kFloat32: return pool_texts<Float32>(a, begin, end, weight, v);
    case Dtype::kFloat16: return pool_texts<Float16>(a, begin, end, weight, v);
    case Dtype::kBFloat16: return pool_texts<BFloat16>(a, begin, end, weight, v);
  }
}

void pool_baseline(const DualTokenPoolArguments& a, int64_t begin, int64_t end, float* weight,
                   float* v) {
  pool_any(a, begin, end, weight, v);
}

#ifdef C2V_X86_DISPATCH
__attribute__((target("avx2,fma"))) void pool_avx2(const DualTokenPoolArguments& a, int64_t begin,
                                                   int64_t end, float* weight, float* v) {
  pool_any(a, begin, end, weight, v);
}
#endif

}  // namespace

void dual_token_pool_cpu(const DualTokenPoolArguments& arguments, int64_t begin, int64_t end) {
  std::vector<float> weight(static_cast<size_t>(arguments.keep));
  std::vector<float> v(static_cast<size_t>(arguments.segments * arguments.keep));
#ifdef C2V_X86_DISPATCH
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2) return pool_avx2(arguments, begin, end, weight.data(), v.data());
#endif
  pool_baseline(arguments, begin, end, weight.data(), v.data());
}

}  // namespace c2v
