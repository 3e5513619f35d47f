// Packed attention for any processor, in float32; bfloat16 tensors are converted as they are
// packed.
//
// Where the compiler has vector types, vectors of four floats become SSE2 or NEON; elsewhere a
// vector is one float.
#define C2V_TARGET
#include "packed_attention_tile.h"

namespace c2v {
namespace {

#if defined(__GNUC__)
typedef float GenericVector __attribute__((vector_size(16)));
typedef uint32_t GenericBits __attribute__((vector_size(16)));
#else
using GenericVector = float;
using GenericBits = uint32_t;
#endif

struct Generic {
  using Vector = GenericVector;
  using Bits = GenericBits;
  using Unit = float;
  using Units = Vector;
  static constexpr int kLanes = sizeof(Vector) / sizeof(float);
  static constexpr int kRows = 4;
#if defined(__aarch64__)
  static constexpr int kVectors = 4;  // 32 registers
#else
  static constexpr int kVectors = 2;
#endif
  static constexpr int kPair = 1;

  static C2V_TARGET_INLINE Vector broadcast(float x) { return x - Vector{}; }
  static C2V_TARGET_INLINE Vector load(const float* p) {
    Vector x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  static C2V_TARGET_INLINE void store(float* p, Vector x) { std::memcpy(p, &x, sizeof(x)); }
  static C2V_TARGET_INLINE Vector add(Vector a, Vector b) { return a + b; }
  static C2V_TARGET_INLINE Vector subtract(Vector a, Vector b) { return a - b; }
  static C2V_TARGET_INLINE Vector multiply(Vector a, Vector b) { return a * b; }
  static C2V_TARGET_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
  // b where either is NaN.
  static C2V_TARGET_INLINE Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
  static C2V_TARGET_INLINE float first(Vector x) {
    float value;
    std::memcpy(&value, &x, sizeof(value));
    return value;
  }
  static C2V_TARGET_INLINE float reduce_maximum(Vector x) {
    float lanes[kLanes];
    store(lanes, x);
    float result = lanes[0];
    for (int i = 1; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
    return result;
  }
  static C2V_TARGET_INLINE float reduce_add(Vector x) {
    float lanes[kLanes];
    store(lanes, x);
    float result = lanes[0];
    for (int i = 1; i < kLanes; ++i) result += lanes[i];
    return result;
  }

  // Lanes outside of [begin, end) become minus infinity.
  static C2V_TARGET_INLINE Vector keep(Vector x, int64_t begin, int64_t end) {
    float lanes[kLanes];
    store(lanes, x);
    for (int i = 0; i < kLanes; ++i) lanes[i] = i >= begin && i < end ? lanes[i] : kMinusInfinity;
    return load(lanes);
  }

  static C2V_TARGET_INLINE Bits bits(Vector x) {
    Bits result;
    std::memcpy(&result, &x, sizeof(result));
    return result;
  }

  // 2^x for x <= 0 within 2e-7, and exactly 0 below 2^-127. Adding 1.5 * 2^23 rounds to the nearest
  // whole number, which then stands in the lowest bits.
  static C2V_TARGET_INLINE Vector exp2(Vector x) {
    x = maximum(broadcast(-127.0f), x);
    const Vector shifted = x + 12582912.0f;
    const Vector f = x - (shifted - 12582912.0f);
    Vector p = broadcast(kExp2[4]);
    for (int i = 3; i >= 0; --i) p = p * f + kExp2[i];
    p = p * f + 1.0f;
    const Bits exponent = (bits(shifted) - (0x4b400000u - 127u)) << 23;
    Vector power;
    std::memcpy(&power, &exponent, sizeof(power));
    return p * power;
  }

  static C2V_TARGET_INLINE Units load_units(const float* p) { return load(p); }
  static C2V_TARGET_INLINE Units broadcast_unit(const float* p) { return broadcast(*p); }
  static C2V_TARGET_INLINE Vector dot(Vector acc, Units a, Units b) { return a * b + acc; }
  static C2V_TARGET_INLINE void store_weights(float* p, Vector x) { store(p, x); }

  template <typename Storage>
  static C2V_TARGET_INLINE void write(Storage* out, Vector x, int64_t count) {
    write_by_element<Generic>(out, x, count);
  }
  template <typename Storage>
  static C2V_TARGET_INLINE void pack_keys(const Storage* key, int64_t stride, int64_t count,
                                          int64_t head_dim, float* out) {
    pack_keys_by_element<Generic>(key, stride, count, head_dim, out);
  }
};

}  // namespace

PackedAttentionKernel generic_packed_attention(bool is_bfloat16) {
  if (is_bfloat16) return {scratch_bytes<Generic>, attend<Generic, uint16_t>};
  return {scratch_bytes<Generic>, attend<Generic, float>};
}

}  // namespace c2v
