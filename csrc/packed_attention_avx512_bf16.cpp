// Packed attention with the bfloat16 dot products of AVX-512: sums and softmax are float32, and the
// weights are rounded to bfloat16 before they meet the values, as in FlashAttention.
#include "packed_attention.h"

#ifdef C2V_X86_ATTENTION
#define C2V_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#include "packed_attention_avx512.h"

namespace c2v {
namespace {

struct Avx512Bf16 : Avx512 {
  using Unit = uint32_t;  // two neighbours of the summed dimension, the first in the low half
  using Units = __m512i;
  static constexpr int kPair = 2;

  static C2V_TARGET_INLINE Units load_units(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static C2V_TARGET_INLINE Units broadcast_unit(const uint32_t* p) {
    int unit;
    std::memcpy(&unit, p, sizeof(unit));
    return _mm512_set1_epi32(unit);
  }
  static C2V_TARGET_INLINE Vector dot(Vector acc, Units a, Units b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)b, (__m512bh)a);
  }
  static C2V_TARGET_INLINE void store_weights(uint32_t* p, Vector x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
  }
  static C2V_TARGET_INLINE void write(uint16_t* out, Vector x, int64_t count) {
    _mm256_mask_storeu_epi16(out, leading(count), (__m256i)_mm512_cvtneps_pbh(x));
  }

  static C2V_TARGET_INLINE __m512i key_units(const uint16_t* key, int64_t u, int64_t head_dim) {
    const int64_t count = smaller(larger(head_dim - 2 * u, 0), 32);
    const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
    return _mm512_maskz_loadu_epi16(mask, key + 2 * u);
  }
  static C2V_TARGET_INLINE void pack_keys(const uint16_t* key, int64_t stride, int64_t count,
                                          int64_t head_dim, uint32_t* out) {
    pack_keys_by_transposing<Avx512Bf16>(key, stride, count, head_dim, out);
  }
};

}  // namespace

PackedAttentionKernel avx512_bf16_packed_attention() {
  return {scratch_bytes<Avx512Bf16>, attend<Avx512Bf16, uint16_t>};
}

}  // namespace c2v
#endif
