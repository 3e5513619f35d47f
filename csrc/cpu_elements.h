// What the CPU kernels of pooling and of the fused row passes share: how each dtype is read,
// written and rounded, sums in lanes, and the choice of instruction set.
//
// The kernels are plain loops that the compiler vectorises. On x86-64 each is compiled for the
// baseline, for AVX2 with FMA and for AVX-512, and the processor is asked once which of them it
// runs: a wheel built anywhere runs everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && defined(__x86_64__)
#define C2V_X86_DISPATCH 1
#endif

// 0 leaves the baseline alone, 1 adds AVX2, 2 adds AVX-512; the tests compile each of them.
#ifndef C2V_MAX_X86_LEVEL
#define C2V_MAX_X86_LEVEL 2
#endif

#if defined(__GNUC__)
#define C2V_INLINE inline __attribute__((always_inline))
#define C2V_RESTRICT __restrict__
#else
#define C2V_INLINE inline
#define C2V_RESTRICT __restrict
#endif

namespace c2v {
namespace {

C2V_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

C2V_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct Float32 {
  using Storage = float;
  static C2V_INLINE float load(Storage value) { return value; }
  static C2V_INLINE Storage store(float value) { return value; }
  static C2V_INLINE float round(float value) { return value; }
};

struct BFloat16 {
  using Storage = uint16_t;
  static C2V_INLINE float load(Storage value) {
    return bits_to_float(static_cast<uint32_t>(value) << 16);
  }
  // Round to nearest, ties to even, in the upper half of the bits. NaN needs no care: computed from
  // bfloat16 values its lower half is 0, so that nothing is carried out of it.
  static C2V_INLINE uint32_t rounded_bits(float value) {
    const uint32_t bits = float_to_bits(value);
    return bits + 0x7fffu + ((bits >> 16) & 1u);
  }
  static C2V_INLINE Storage store(float value) {
    return static_cast<Storage>(rounded_bits(value) >> 16);
  }
  static C2V_INLINE float round(float value) {
    return bits_to_float(rounded_bits(value) & 0xffff0000u);
  }
};

struct Float16 {
  using Storage = uint16_t;
  // Branch-free so that it vectorises. A subnormal m is read as 0.5 + m * 2^-24, less 0.5, which
  // stays exact when the processor flushes subnormal floats to zero.
  static C2V_INLINE float load(Storage value) {
    const uint32_t exponent = value & 0x7c00u;
    const uint32_t magnitude = static_cast<uint32_t>(value & 0x7fffu) << 13;
    const float normal =
        bits_to_float(magnitude + (exponent == 0x7c00u ? 0x70000000u : 0x38000000u));
    const float subnormal = bits_to_float(0x3f000000u | (value & 0x3ffu)) - 0.5f;
    const float absolute = exponent == 0 ? subnormal : normal;
    return bits_to_float(float_to_bits(absolute) | (static_cast<uint32_t>(value & 0x8000u) << 16));
  }
  // Round to nearest, ties to even; branch-free like load. Below 2^-14 adding 0.5 rounds at 2^-24;
  // 65520 and above is infinite.
  static C2V_INLINE Storage store(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t half = magnitude >= 0x477ff000u ? special : finite;
    return static_cast<Storage>(sign | half);
  }
  static C2V_INLINE float round(float value) { return load(store(value)); }
};

// The width is known to the compiler and the sums are an array of their own: it vectorises only so.
template <int64_t kWidth>
C2V_INLINE float fold(const float* lanes) {
  if constexpr (kWidth == 1) {
    return lanes[0];
  } else {
    constexpr int64_t kHalf = kWidth / 2;
    float sums[kHalf];
    for (int64_t lane = 0; lane < kHalf; ++lane) sums[lane] = lanes[lane] + lanes[lane + kHalf];
    return fold<kHalf>(sums);
  }
}

// Partial sums side by side: independent additions that vectorise in a fixed order, and closer to
// the exact sum than one running total. `term(i)` is the i-th summand.
constexpr int64_t kLanes = 32;

template <typename Term>
C2V_INLINE float sum_in_lanes(const Term& term, int64_t size) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (int64_t lane = 0; i + lane < size; ++lane) lanes[lane] += term(i + lane);
  return fold<kLanes>(lanes);
}

template <typename Element>
struct Value {
  const typename Element::Storage* x;
  C2V_INLINE float operator()(int64_t i) const { return Element::load(x[i]); }
};

template <typename Element>
struct SquareAbout {
  const typename Element::Storage* x;
  float center;
  C2V_INLINE float operator()(int64_t i) const {
    const float deviation = Element::load(x[i]) - center;
    return deviation * deviation;
  }
};

#ifdef C2V_X86_DISPATCH
inline int x86_level() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return 2;
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
}

template <typename Kernel, typename Arguments>
__attribute__((target("avx2,fma"))) void run_avx2(const Arguments& a, int64_t begin, int64_t end) {
  Kernel::run(a, begin, end);
}

template <typename Kernel, typename Arguments>
__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))) void run_avx512(
    const Arguments& a, int64_t begin, int64_t end) {
  Kernel::run(a, begin, end);
}
#endif

template <typename Kernel, typename Arguments>
void run_baseline(const Arguments& a, int64_t begin, int64_t end) {
  Kernel::run(a, begin, end);
}

// Runs `Kernel::run(a, begin, end)` as compiled for the best instruction set of the processor.
template <typename Kernel, typename Arguments>
void dispatch(const Arguments& a, int64_t begin, int64_t end) {
#ifdef C2V_X86_DISPATCH
  [[maybe_unused]] static const int level = x86_level();
  if constexpr (C2V_MAX_X86_LEVEL >= 2) {
    if (level >= 2) return run_avx512<Kernel>(a, begin, end);
  }
  if constexpr (C2V_MAX_X86_LEVEL >= 1) {
    if (level >= 1) return run_avx2<Kernel>(a, begin, end);
  }
#endif
  run_baseline<Kernel>(a, begin, end);
}

}  // namespace
}  // namespace c2v
