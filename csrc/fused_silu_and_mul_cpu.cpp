// CPU kernel of the gated activation: silu of the row's first half times its second half.
#include <algorithm>

#include "cpu_elements.h"
#include "fused_rows.h"

namespace c2v {
namespace {

// e^x within 2e-7 of relative error, down to 0 and up to infinity; something finite or infinite for
// NaN. x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial in r (that of Cephes' expf).
C2V_INLINE float exponential(float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;  // few bits, so that n times it is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // From 104 on the result is infinite, or 0 below zero. In integers, because the compiler would
  // copy all of what follows for each outcome of a comparison of floats.
  const uint32_t bits = float_to_bits(x);
  const uint32_t magnitude = std::min(bits & 0x7fffffffu, uint32_t{0x42d00000u});
  x = bits_to_float((bits & 0x80000000u) | magnitude);
  const float shifted = x * kLog2E + kRounder;
  const float n = shifted - kRounder;
  const float r = x - n * kLn2High - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n as two factors, each a normal float.
  const int32_t whole = static_cast<int32_t>(float_to_bits(shifted) - float_to_bits(kRounder));
  const int32_t half = whole >> 1;
  const float first = bits_to_float(static_cast<uint32_t>(half + 127) << 23);
  const float second = bits_to_float(static_cast<uint32_t>(whole - half + 127) << 23);
  return p * first * second;
}

template <typename Element, typename T = typename Element::Storage>
C2V_INLINE void multiply_row(const T* C2V_RESTRICT gate, const T* C2V_RESTRICT up,
                             T* C2V_RESTRICT product, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const float x = Element::load(gate[i]);
    const float silu = Element::round(x / (1.0f + exponential(-x)));  // NaN by the numerator
    product[i] = Element::store(silu * Element::load(up[i]));
  }
}

struct SiluAndMul {
  template <typename Element>
  static C2V_INLINE void run_rows(const SiluAndMulArguments& a, int64_t begin, int64_t end) {
    using T = typename Element::Storage;
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = static_cast<const T*>(a.gate_up.data) + row * a.gate_up.stride;
      multiply_row<Element>(gate, gate + a.size, static_cast<T*>(a.product) + row * a.size, a.size);
    }
  }

  static C2V_INLINE void run(const SiluAndMulArguments& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32: return run_rows<Float32>(a, begin, end);
      case Dtype::kFloat16: return run_rows<Float16>(a, begin, end);
      case Dtype::kBFloat16: return run_rows<BFloat16>(a, begin, end);
    }
  }
};

}  // namespace

void silu_and_mul_cpu(const SiluAndMulArguments& arguments, int64_t begin, int64_t end) {
  dispatch<SiluAndMul>(arguments, begin, end);
}

}  // namespace c2v
