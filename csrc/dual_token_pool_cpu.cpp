// CPU kernel of dual-token gather pooling: plain loops that the compiler vectorises.
#include "dual_token_pool.h"

#include <cmath>
#include <limits>
#include <vector>

#include "cpu_elements.h"

namespace c2v {
namespace {

// For values that come from any dtype: a NaN whose payload has low bits stays one. In the fused row
// passes, which round more often and do not need it, this takes a tenth to a fifth more time.
struct BFloat16Output : BFloat16 {
  static C2V_INLINE Storage store(float value) {
    const bool is_nan = (float_to_bits(value) & 0x7fffffffu) > 0x7f800000u;
    return is_nan ? Storage{0x7fc0u} : BFloat16::store(value);
  }
};

template <typename Element>
C2V_INLINE float sum_of_squares(const typename Element::Storage* x, int64_t size) {
  return sum_in_lanes(SquareAbout<Element>{x, 0.0f}, size);
}

// A mean square that is not finite would otherwise turn the row's finite values into silent zeros.
template <typename Element>
C2V_INLINE float inverse_rms(const typename Element::Storage* x, int64_t size, float eps) {
  const float mean_square = sum_of_squares<Element>(x, size) / static_cast<float>(size);
  if (!std::isfinite(mean_square)) return std::numeric_limits<float>::quiet_NaN();
  return 1.0f / std::sqrt(mean_square + eps);
}

// v = concat_s mean_i RMSNorm(x_i)[:keep].
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
    case Precision::kBFloat16: return write_floats<BFloat16Output>(v, width, text, a.embeddings);
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

// A call, and memory for a text's work.
struct Work {
  const DualTokenPoolArguments& arguments;
  float* weight;  // [keep]
  float* v;       // [segments * keep]
};

struct DualTokenPool {
  static C2V_INLINE void run(const Work& work, int64_t begin, int64_t end) {
    const DualTokenPoolArguments& a = work.arguments;
    switch (a.hidden_dtype) {
      case Dtype::kFloat32: return pool_texts<Float32>(a, begin, end, work.weight, work.v);
      case Dtype::kFloat16: return pool_texts<Float16>(a, begin, end, work.weight, work.v);
      case Dtype::kBFloat16: return pool_texts<BFloat16>(a, begin, end, work.weight, work.v);
    }
  }
};

}  // namespace

void dual_token_pool_cpu(const DualTokenPoolArguments& arguments, int64_t begin, int64_t end) {
  std::vector<float> weight(static_cast<size_t>(arguments.keep));
  std::vector<float> v(static_cast<size_t>(arguments.segments * arguments.keep));
  dispatch<DualTokenPool>(Work{arguments, weight.data(), v.data()}, begin, end);
}

}  // namespace c2v
