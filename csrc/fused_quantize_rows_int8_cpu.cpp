// CPU kernel that writes rows in eight bits with a scale each: the second loop reads the cache.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu_elements.h"
#include "fused_rows.h"

namespace c2v {
namespace {

// The largest magnitude as bits, which are ordered as the magnitudes are, with infinity above the
// finite ones and NaN above infinity: what is not finite is never lost.
template <typename Element, typename T = typename Element::Storage>
C2V_INLINE uint32_t largest_bits(const T* C2V_RESTRICT x, int64_t size) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    largest = std::max(largest, float_to_bits(Element::load(x[i])) & 0x7fffffffu);
  }
  return largest;
}

template <typename Element, typename T = typename Element::Storage>
C2V_INLINE void quantize_row(const T* C2V_RESTRICT x, uint8_t* C2V_RESTRICT values,
                             float* C2V_RESTRICT scale, int64_t size) {
  constexpr float kSmallest = 1e-12f;
  constexpr uint32_t kInfinity = 0x7f800000u;
  const uint32_t bits = largest_bits<Element>(x, size);
  const float largest = bits_to_float(std::max(bits, float_to_bits(kSmallest)));
  *scale = largest / 127.0f;
  if (bits >= kInfinity) {
    if (bits > kInfinity) *scale = std::numeric_limits<float>::quiet_NaN();  // of one payload
    std::fill(values, values + size, uint8_t{128});
    return;
  }
  const float inverse = 127.0f / largest;
  for (int64_t i = 0; i < size; ++i) {
    const float rounded = std::rint(Element::load(x[i]) * inverse);  // ties to even
    values[i] = static_cast<uint8_t>(static_cast<int32_t>(rounded) + 128);
  }
}

struct QuantizeRowsInt8 {
  template <typename Element>
  static C2V_INLINE void run_rows(const QuantizeRowsInt8Arguments& a, int64_t begin, int64_t end) {
    using T = typename Element::Storage;
    for (int64_t row = begin; row < end; ++row) {
      quantize_row<Element>(static_cast<const T*>(a.x.data) + row * a.x.stride,
                            a.values + row * a.size, a.scales + row, a.size);
    }
  }

  static C2V_INLINE void run(const QuantizeRowsInt8Arguments& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32: return run_rows<Float32>(a, begin, end);
      case Dtype::kFloat16: return run_rows<Float16>(a, begin, end);
      case Dtype::kBFloat16: return run_rows<BFloat16>(a, begin, end);
    }
  }
};

}  // namespace

void quantize_rows_int8_cpu(const QuantizeRowsInt8Arguments& arguments, int64_t begin,
                            int64_t end) {
  dispatch<QuantizeRowsInt8>(arguments, begin, end);
}

}  // namespace c2v
