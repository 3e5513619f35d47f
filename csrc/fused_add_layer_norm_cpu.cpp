// CPU kernel of residual addition and LayerNorm, row by row: only the first loop leaves the cache.
#include <cmath>

#include "cpu_elements.h"
#include "fused_rows.h"

namespace c2v {
namespace {

// The sum is kept in the output's row, rounded to the dtype, until the last loop.
template <typename Element, typename T = typename Element::Storage>
C2V_INLINE void norm_row(const T* C2V_RESTRICT x, const T* C2V_RESTRICT x_bias,
                         const T* C2V_RESTRICT residual, const T* C2V_RESTRICT weight,
                         const T* C2V_RESTRICT bias, T* C2V_RESTRICT normed, int64_t size,
                         float eps) {
  if (x_bias != nullptr && residual != nullptr) {
    for (int64_t i = 0; i < size; ++i) {
      const float biased = Element::round(Element::load(x[i]) + Element::load(x_bias[i]));
      normed[i] = Element::store(biased + Element::load(residual[i]));
    }
  } else if (x_bias != nullptr || residual != nullptr) {
    const T* C2V_RESTRICT added = x_bias != nullptr ? x_bias : residual;
    for (int64_t i = 0; i < size; ++i) {
      normed[i] = Element::store(Element::load(x[i]) + Element::load(added[i]));
    }
  } else {
    std::memcpy(normed, x, static_cast<size_t>(size) * sizeof(T));
  }
  const float count = static_cast<float>(size);
  const float mean = sum_in_lanes(Value<Element>{normed}, size) / count;
  const float variance = sum_in_lanes(SquareAbout<Element>{normed, mean}, size) / count;
  const float inverse = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < size; ++i) {
    const float scaled = (Element::load(normed[i]) - mean) * inverse;
    normed[i] = Element::store(scaled * Element::load(weight[i]) + Element::load(bias[i]));
  }
}

struct AddLayerNorm {
  template <typename Element>
  static C2V_INLINE void run_rows(const AddLayerNormArguments& a, int64_t begin, int64_t end) {
    using T = typename Element::Storage;
    const T* residual = static_cast<const T*>(a.residual.data);
    for (int64_t row = begin; row < end; ++row) {
      norm_row<Element>(static_cast<const T*>(a.x.data) + row * a.x.stride,
                        static_cast<const T*>(a.x_bias),
                        residual == nullptr ? nullptr : residual + row * a.residual.stride,
                        static_cast<const T*>(a.weight), static_cast<const T*>(a.bias),
                        static_cast<T*>(a.normed) + row * a.size, a.size, a.eps);
    }
  }

  static C2V_INLINE void run(const AddLayerNormArguments& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32: return run_rows<Float32>(a, begin, end);
      case Dtype::kFloat16: return run_rows<Float16>(a, begin, end);
      case Dtype::kBFloat16: return run_rows<BFloat16>(a, begin, end);
    }
  }
};

}  // namespace

void add_layer_norm_cpu(const AddLayerNormArguments& arguments, int64_t begin, int64_t end) {
  dispatch<AddLayerNorm>(arguments, begin, end);
}

}  // namespace c2v
