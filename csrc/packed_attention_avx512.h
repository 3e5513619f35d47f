// AVX-512 vectors for packed_attention_tile.h, and the packing of keys by 16 x 16 transposition.
#pragma once

#include <immintrin.h>

// GCC 12 warns of what its own intrinsics leave undefined on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "packed_attention_tile.h"

namespace c2v {
namespace {

struct Avx512 {
  using Vector = __m512;
  static constexpr int kLanes = 16;
  // 24 of the 32 registers add up, 4 hold columns, and one a row.
  static constexpr int kRows = 6;
  static constexpr int kVectors = 4;

  static C2V_TARGET_INLINE Vector broadcast(float x) { return _mm512_set1_ps(x); }
  static C2V_TARGET_INLINE Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static C2V_TARGET_INLINE void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }
  static C2V_TARGET_INLINE Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static C2V_TARGET_INLINE Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static C2V_TARGET_INLINE Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static C2V_TARGET_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  // b where either is NaN.
  static C2V_TARGET_INLINE Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static C2V_TARGET_INLINE float reduce_maximum(Vector x) { return _mm512_reduce_max_ps(x); }
  static C2V_TARGET_INLINE float reduce_add(Vector x) { return _mm512_reduce_add_ps(x); }
  static C2V_TARGET_INLINE float first(Vector x) { return _mm512_cvtss_f32(x); }

  // Lanes outside of [begin, end) become minus infinity.
  static C2V_TARGET_INLINE Vector keep(Vector x, int64_t begin, int64_t end) {
    const auto below = (1u << smaller(larger(begin, 0), kLanes)) - 1u;
    const auto inside = (1u << smaller(larger(end, 0), kLanes)) - 1u;
    return _mm512_mask_mov_ps(_mm512_set1_ps(kMinusInfinity),
                              static_cast<__mmask16>(inside & ~below), x);
  }

  // 2^x for x <= 0 within 2e-7, and exactly 0 for minus infinity.
  static C2V_TARGET_INLINE Vector exp2(Vector x) {
    x = maximum(_mm512_set1_ps(-160.0f), x);
    const Vector n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Vector f = subtract(x, n);
    Vector p = broadcast(kExp2[4]);
    for (int i = 3; i >= 0; --i) p = multiply_add(p, f, broadcast(kExp2[i]));
    p = multiply_add(p, f, broadcast(1.0f));
    return _mm512_scalef_ps(p, n);
  }

  static C2V_TARGET_INLINE __mmask16 leading(int64_t count) {
    return static_cast<__mmask16>((1u << smaller(larger(count, 0), kLanes)) - 1u);
  }
  static C2V_TARGET_INLINE void write(float* out, Vector x, int64_t count) {
    _mm512_mask_storeu_ps(out, leading(count), x);
  }
};

// Transposes 16 x 16 units of 32 bits.
C2V_TARGET_INLINE void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  C2V_UNROLL for (int i = 0; i < 8; ++i) {
    y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  C2V_UNROLL for (int i = 0; i < 4; ++i) {
    C2V_UNROLL for (int j = 0; j < 2; ++j) {
      x[4 * i + 2 * j] = _mm512_unpacklo_epi64(y[4 * i + j], y[4 * i + j + 2]);
      x[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(y[4 * i + j], y[4 * i + j + 2]);
    }
  }
  // x[4 i + j] holds, in its 128-bit lane k, units 4 i .. 4 i + 3 of row 4 k + j of the result.
  C2V_UNROLL for (int j = 0; j < 4; ++j) {
    const __m512i even_low = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
    y[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    y[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    y[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    y[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
  C2V_UNROLL for (int i = 0; i < 8; ++i) x[i] = y[i];
  C2V_UNROLL for (int i = 8; i < 16; ++i) x[i] = y[i];
}

// One panel of keys: 16 units of 16 keys at a time. Simd::key_units(key, u, head_dim) loads units
// u .. u + 15 of a key, zero beyond its end.
template <typename Simd, typename Storage>
C2V_TARGET void pack_keys_by_transposing(const Storage* key, int64_t stride, int64_t count,
                                         int64_t head_dim, typename Simd::Unit* out) {
  const int64_t depth = divide_up<int64_t>(head_dim, Simd::kPair);
  for (int64_t lane = 0; lane < count; lane += 16) {
    for (int64_t u = 0; u < depth; u += 16) {
      __m512i units[16];
      C2V_UNROLL for (int i = 0; i < 16; ++i) {
        units[i] = lane + i < count ? Simd::key_units(key + (lane + i) * stride, u, head_dim)
                                    : _mm512_setzero_si512();
      }
      transpose(units);
      const int64_t rows = smaller(depth - u, 16);
      for (int i = 0; i < rows; ++i) {
        _mm512_storeu_si512(out + (u + i) * kColumns<Simd> + lane, units[i]);
      }
    }
  }
}

}  // namespace
}  // namespace c2v
