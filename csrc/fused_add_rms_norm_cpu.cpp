// CPU kernel of residual addition and RMSNorm, row by row: only the first loop leaves the cache.
#include <cmath>

#include "cpu_elements.h"
#include "fused_rows.h"

namespace c2v {
namespace {

template <typename Element, typename T = typename Element::Storage>
C2V_INLINE void norm_row(T* C2V_RESTRICT residual, const T* C2V_RESTRICT x,
                         const T* C2V_RESTRICT weight, T* C2V_RESTRICT normed, int64_t size,
                         float eps) {
  if (x != nullptr) {
    for (int64_t i = 0; i < size; ++i) {
      residual[i] = Element::store(Element::load(residual[i]) + Element::load(x[i]));
    }
  }
  const float squares = sum_in_lanes(SquareAbout<Element>{residual, 0.0f}, size);
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
  for (int64_t i = 0; i < size; ++i) {
    const float scaled = Element::round(Element::load(residual[i]) * inverse);
    normed[i] = Element::store(Element::load(weight[i]) * scaled);
  }
}

struct AddRmsNorm {
  template <typename Element>
  static C2V_INLINE void run_rows(const AddRmsNormArguments& a, int64_t begin, int64_t end) {
    using T = typename Element::Storage;
    const T* x = static_cast<const T*>(a.x.data);
    for (int64_t row = begin; row < end; ++row) {
      norm_row<Element>(static_cast<T*>(a.residual.data) + row * a.residual.stride,
                        x == nullptr ? nullptr : x + row * a.x.stride,
                        static_cast<const T*>(a.weight),
                        static_cast<T*>(a.normed) + row * a.size, a.size, a.eps);
    }
  }

  static C2V_INLINE void run(const AddRmsNormArguments& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32: return run_rows<Float32>(a, begin, end);
      case Dtype::kFloat16: return run_rows<Float16>(a, begin, end);
      case Dtype::kBFloat16: return run_rows<BFloat16>(a, begin, end);
    }
  }
};

}  // namespace

void add_rms_norm_cpu(const AddRmsNormArguments& arguments, int64_t begin, int64_t end) {
  dispatch<AddRmsNorm>(arguments, begin, end);
}

}  // namespace c2v
