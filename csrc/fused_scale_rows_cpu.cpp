// CPU kernel that finishes an integer product in place: every row by its scale, and the bias.
#include <cmath>
#include <limits>

#include "cpu_elements.h"
#include "fused_rows.h"

namespace c2v {
namespace {

template <typename Element, typename T = typename Element::Storage>
C2V_INLINE void scale_row(T* C2V_RESTRICT x, float scale, const T* C2V_RESTRICT bias,
                          int64_t size) {
  // Rounding to bfloat16 carries into the sign of a NaN whose lower bits are set.
  if (std::isnan(scale)) scale = std::numeric_limits<float>::quiet_NaN();
  if (bias == nullptr) {
    for (int64_t i = 0; i < size; ++i) x[i] = Element::store(Element::load(x[i]) * scale);
    return;
  }
  for (int64_t i = 0; i < size; ++i) {
    x[i] = Element::store(Element::load(x[i]) * scale + Element::load(bias[i]));
  }
}

struct ScaleRows {
  template <typename Element>
  static C2V_INLINE void run_rows(const ScaleRowsArguments& a, int64_t begin, int64_t end) {
    using T = typename Element::Storage;
    for (int64_t row = begin; row < end; ++row) {
      scale_row<Element>(static_cast<T*>(a.x.data) + row * a.x.stride, a.scales[row],
                         static_cast<const T*>(a.bias), a.size);
    }
  }

  static C2V_INLINE void run(const ScaleRowsArguments& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32: return run_rows<Float32>(a, begin, end);
      case Dtype::kFloat16: return run_rows<Float16>(a, begin, end);
      case Dtype::kBFloat16: return run_rows<BFloat16>(a, begin, end);
    }
  }
};

}  // namespace

void scale_rows_cpu(const ScaleRowsArguments& arguments, int64_t begin, int64_t end) {
  dispatch<ScaleRows>(arguments, begin, end);
}

}  // namespace c2v
