// CPU kernel of QK-norm and rotary embedding, in place: only the first pass over a row leaves the
// cache.
#include <algorithm>
#include <cmath>

#include "cpu_elements.h"
#include "fused_rows.h"

namespace c2v {
namespace {

template <typename Element>
struct SquareInHalves {
  const typename Element::Storage* first;
  const typename Element::Storage* second;
  C2V_INLINE float operator()(int64_t i) const {
    const float x1 = Element::load(first[i]), x2 = Element::load(second[i]);
    return x1 * x1 + x2 * x2;
  }
};

template <typename Element, typename T = typename Element::Storage>
C2V_INLINE void add_bias(T* C2V_RESTRICT row, const T* C2V_RESTRICT bias, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    row[i] = Element::store(Element::load(row[i]) + Element::load(bias[i]));
  }
}

// The head's two halves, and those of its norm's weight, apart: nothing then aliases.
template <typename Element, bool kNorm, typename T = typename Element::Storage>
C2V_INLINE void rotate_head(T* C2V_RESTRICT first, T* C2V_RESTRICT second,
                            const T* C2V_RESTRICT cos, const T* C2V_RESTRICT sin,
                            const T* C2V_RESTRICT first_weight, const T* C2V_RESTRICT second_weight,
                            int64_t half, float inverse) {
  for (int64_t i = 0; i < half; ++i) {
    float x1 = Element::load(first[i]), x2 = Element::load(second[i]);
    if constexpr (kNorm) {
      x1 = Element::round(Element::load(first_weight[i]) * Element::round(x1 * inverse));
      x2 = Element::round(Element::load(second_weight[i]) * Element::round(x2 * inverse));
    }
    const float c = Element::load(cos[i]), s = Element::load(sin[i]);
    first[i] = Element::store(Element::round(x1 * c) - Element::round(x2 * s));
    second[i] = Element::store(Element::round(x2 * c) + Element::round(x1 * s));
  }
}

// Roots and quotients take long: a row's heads wait for theirs together, not one after the other.
constexpr int64_t kHeadsTogether = 16;

template <typename Element, typename T = typename Element::Storage>
C2V_INLINE void norm_and_rotate(T* heads, int64_t num_heads, const T* cos, const T* sin,
                                const T* weight, int64_t half, float eps) {
  float inverse[kHeadsTogether] = {};
  for (int64_t head = 0; head < num_heads; ++head) {
    const T* first = heads + head * 2 * half;
    inverse[head] = sum_in_lanes(SquareInHalves<Element>{first, first + half}, half);
  }
  const float size = static_cast<float>(2 * half);
  for (float& value : inverse) value = 1.0f / std::sqrt(value / size + eps);
  for (int64_t head = 0; head < num_heads; ++head) {
    T* first = heads + head * 2 * half;
    rotate_head<Element, true>(first, first + half, cos, sin, weight, weight + half, half,
                               inverse[head]);
  }
}

template <typename Element, typename T = typename Element::Storage>
C2V_INLINE void rotate_heads(T* heads, int64_t num_heads, const T* cos, const T* sin,
                             const T* weight, int64_t half, float eps) {
  if (weight == nullptr) {
    for (int64_t head = 0; head < num_heads; ++head) {
      T* first = heads + head * 2 * half;
      rotate_head<Element, false>(first, first + half, cos, sin, weight, weight, half, 1.0f);
    }
    return;
  }
  for (int64_t head = 0; head < num_heads; head += kHeadsTogether) {
    norm_and_rotate<Element>(heads + head * 2 * half, std::min(kHeadsTogether, num_heads - head),
                             cos, sin, weight, half, eps);
  }
}

struct QkNormRope {
  template <typename Element>
  static C2V_INLINE void run_rows(const QkNormRopeArguments& a, int64_t begin, int64_t end) {
    using T = typename Element::Storage;
    const int64_t half = a.head_dim / 2;
    for (int64_t row = begin; row < end; ++row) {
      T* query = static_cast<T*>(a.qkv.data) + row * a.qkv.stride;
      T* key = query + a.num_query_heads * a.head_dim;
      if (a.bias != nullptr) add_bias<Element>(query, static_cast<const T*>(a.bias), a.width);
      const T* cos = static_cast<const T*>(a.cos.data) + a.positions[row] * a.cos.stride;
      const T* sin = static_cast<const T*>(a.sin.data) + a.positions[row] * a.sin.stride;
      rotate_heads<Element>(query, a.num_query_heads, cos, sin,
                            static_cast<const T*>(a.query_norm), half, a.eps);
      rotate_heads<Element>(key, a.num_key_heads, cos, sin, static_cast<const T*>(a.key_norm), half,
                            a.eps);
    }
  }

  static C2V_INLINE void run(const QkNormRopeArguments& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32: return run_rows<Float32>(a, begin, end);
      case Dtype::kFloat16: return run_rows<Float16>(a, begin, end);
      case Dtype::kBFloat16: return run_rows<BFloat16>(a, begin, end);
    }
  }
};

}  // namespace

void qk_norm_rope_cpu(const QkNormRopeArguments& arguments, int64_t begin, int64_t end) {
  dispatch<QkNormRope>(arguments, begin, end);
}

}  // namespace c2v
