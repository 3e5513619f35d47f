// Packed attention with AVX-512 in float32; bfloat16 tensors are converted as they are packed.
#include "packed_attention.h"

#ifdef C2V_X86_ATTENTION
#define C2V_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#include "packed_attention_avx512.h"

namespace c2v {
namespace {

struct Avx512Float32 : Avx512 {
  using Unit = float;
  using Units = __m512;
  static constexpr int kPair = 1;

  using Avx512::write;

  static C2V_TARGET_INLINE Units load_units(const float* p) { return _mm512_loadu_ps(p); }
  static C2V_TARGET_INLINE Units broadcast_unit(const float* p) { return _mm512_set1_ps(*p); }
  static C2V_TARGET_INLINE Vector dot(Vector acc, Units a, Units b) {
    return _mm512_fmadd_ps(a, b, acc);
  }
  static C2V_TARGET_INLINE void store_weights(float* p, Vector x) { store(p, x); }

  static C2V_TARGET_INLINE void write(uint16_t* out, Vector x, int64_t count) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(out, leading(count), _mm512_cvtepi32_epi16(kept));
  }

  static C2V_TARGET_INLINE __m512i key_units(const float* key, int64_t u, int64_t head_dim) {
    return _mm512_maskz_loadu_epi32(leading(head_dim - u), key + u);
  }
  static C2V_TARGET_INLINE __m512i key_units(const uint16_t* key, int64_t u, int64_t head_dim) {
    const __m256i halves = _mm256_maskz_loadu_epi16(leading(head_dim - u), key + u);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
  }
  template <typename Storage>
  static C2V_TARGET_INLINE void pack_keys(const Storage* key, int64_t stride, int64_t count,
                                          int64_t head_dim, float* out) {
    pack_keys_by_transposing<Avx512Float32>(key, stride, count, head_dim, out);
  }
};

}  // namespace

PackedAttentionKernel avx512_packed_attention(bool is_bfloat16) {
  if (is_bfloat16) return {scratch_bytes<Avx512Float32>, attend<Avx512Float32, uint16_t>};
  return {scratch_bytes<Avx512Float32>, attend<Avx512Float32, float>};
}

}  // namespace c2v
#endif
