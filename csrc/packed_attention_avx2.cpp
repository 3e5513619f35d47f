// Packed attention with AVX2 and FMA in float32; bfloat16 tensors are converted as they are packed.
#include "packed_attention.h"

#ifdef C2V_X86_ATTENTION
#define C2V_TARGET __attribute__((target("avx2,fma")))
#include <immintrin.h>

#include "packed_attention_tile.h"

namespace c2v {
namespace {

struct Avx2 {
  using Vector = __m256;
  using Unit = float;
  using Units = __m256;
  static constexpr int kLanes = 8;
  // 12 of the 16 registers add up, 2 hold columns, and one a row.
  static constexpr int kRows = 6;
  static constexpr int kVectors = 2;
  static constexpr int kPair = 1;

  static C2V_TARGET_INLINE Vector broadcast(float x) { return _mm256_set1_ps(x); }
  static C2V_TARGET_INLINE Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static C2V_TARGET_INLINE void store(float* p, Vector x) { _mm256_storeu_ps(p, x); }
  static C2V_TARGET_INLINE Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static C2V_TARGET_INLINE Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static C2V_TARGET_INLINE Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static C2V_TARGET_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  // b where either is NaN.
  static C2V_TARGET_INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static C2V_TARGET_INLINE float first(Vector x) { return _mm256_cvtss_f32(x); }
  static C2V_TARGET_INLINE float reduce_maximum(Vector x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static C2V_TARGET_INLINE float reduce_add(Vector x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // Lanes outside of [begin, end) become minus infinity.
  static C2V_TARGET_INLINE Vector keep(Vector x, int64_t begin, int64_t end) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int first = static_cast<int>(smaller(larger(begin, 0), kLanes));
    const int last = static_cast<int>(smaller(larger(end, 0), kLanes));
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(first), lanes);
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lanes);
    const __m256i visible = _mm256_andnot_si256(below, inside);
    return _mm256_blendv_ps(_mm256_set1_ps(kMinusInfinity), x, _mm256_castsi256_ps(visible));
  }

  // 2^x for x <= 0 within 2e-7, and exactly 0 below 2^-127.
  static C2V_TARGET_INLINE Vector exp2(Vector x) {
    x = maximum(broadcast(-127.0f), x);
    const Vector n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Vector f = subtract(x, n);
    Vector p = broadcast(kExp2[4]);
    for (int i = 3; i >= 0; --i) p = multiply_add(p, f, broadcast(kExp2[i]));
    p = multiply_add(p, f, broadcast(1.0f));
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return multiply(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }

  static C2V_TARGET_INLINE Units load_units(const float* p) { return load(p); }
  static C2V_TARGET_INLINE Units broadcast_unit(const float* p) { return _mm256_broadcast_ss(p); }
  static C2V_TARGET_INLINE Vector dot(Vector acc, Units a, Units b) {
    return _mm256_fmadd_ps(a, b, acc);
  }
  static C2V_TARGET_INLINE void store_weights(float* p, Vector x) { store(p, x); }

  template <typename Storage>
  static C2V_TARGET_INLINE void write(Storage* out, Vector x, int64_t count) {
    write_by_element<Avx2>(out, x, count);
  }
  template <typename Storage>
  static C2V_TARGET_INLINE void pack_keys(const Storage* key, int64_t stride, int64_t count,
                                          int64_t head_dim, float* out) {
    pack_keys_by_element<Avx2>(key, stride, count, head_dim, out);
  }
};

}  // namespace

PackedAttentionKernel avx2_packed_attention(bool is_bfloat16) {
  if (is_bfloat16) return {scratch_bytes<Avx2>, attend<Avx2, uint16_t>};
  return {scratch_bytes<Avx2>, attend<Avx2, float>};
}

}  // namespace c2v
#endif
