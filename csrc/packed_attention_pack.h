// What the tiles of an item of packed attention share: its scratch memory, the rows it is about,
// and keys and values packed into panels. packed_attention_tile.h tells how the parts fit.
#pragma once

#ifndef C2V_TARGET
#error "define C2V_TARGET before including packed_attention_pack.h"
#endif

#include <cstring>
#include <limits>

#include "packed_attention.h"

#if defined(__GNUC__)
#define C2V_TARGET_INLINE C2V_TARGET inline __attribute__((always_inline))
#else
#define C2V_TARGET_INLINE inline
#endif

// clang unrolls these short loops by itself.
#if defined(__GNUC__) && !defined(__clang__)
#define C2V_UNROLL _Pragma("GCC unroll 8")
#else
#define C2V_UNROLL
#endif

namespace c2v {
namespace {

// Keys between two updates of the running maximum; a shorter sequence needs none.
constexpr int64_t kChunk = 512;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

template <typename Integer>
constexpr Integer divide_up(Integer value, Integer divisor) {
  return (value + divisor - 1) / divisor;
}

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

C2V_TARGET_INLINE void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#else
  (void)address;
#endif
}

// The storage of bfloat16 is uint16_t.
C2V_TARGET_INLINE float to_float(float value) { return value; }

C2V_TARGET_INLINE float to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

C2V_TARGET_INLINE void from_float(float value, float* out) { *out = value; }

// Round to nearest, ties to even.
C2V_TARGET_INLINE void from_float(float value, uint16_t* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *out = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

template <typename Simd>
constexpr int64_t kColumns = Simd::kLanes * Simd::kVectors;

// A few floats more than a chunk, so that the rows of a tile fall in different cache sets.
constexpr int64_t kScoreStride = kChunk + 16;

// Where the parts of an item's scratch memory stand; without memory, how many bytes they take.
template <typename Simd>
struct Workspace {
  using Unit = typename Simd::Unit;

  int64_t head_dim;
  int64_t depth;            // units of a query or key
  int64_t padded_head_dim;  // whole panels
  int64_t value_depth;      // units of a column of values
  size_t bytes;
  Unit* keys;      // [panels of keys][depth][kColumns]
  Unit* values;    // [panels of head_dim][value_depth][kColumns]
  Unit* queries;   // [kRows][depth]
  float* scores;   // [kRows][kScoreStride], then the weights in the same place
  float* maxima;   // [kRows][kLanes]
  float* outputs;  // [kRows][padded_head_dim], not divided by the sum yet

  Workspace(const PackedAttentionArguments& a, std::byte* scratch) {
    constexpr int64_t kColumns = c2v::kColumns<Simd>;
    head_dim = a.head_dim;
    depth = divide_up<int64_t>(head_dim, Simd::kPair);
    padded_head_dim = divide_up(head_dim, kColumns) * kColumns;
    const int64_t padded_keys = divide_up(a.max_seqlen, kColumns) * kColumns;
    value_depth = divide_up<int64_t>(padded_keys, Simd::kPair);
    bytes = 0;
    keys = take<Unit>(scratch, padded_keys * depth);
    values = take<Unit>(scratch, padded_head_dim * value_depth);
    queries = take<Unit>(scratch, Simd::kRows * depth);
    scores = take<float>(scratch, Simd::kRows * kScoreStride);
    maxima = take<float>(scratch, Simd::kRows * Simd::kLanes);
    outputs = take<float>(scratch, Simd::kRows * padded_head_dim);
  }

 private:
  template <typename T>
  T* take(std::byte* scratch, int64_t count) {
    std::byte* place = scratch == nullptr ? nullptr : scratch + bytes;
    bytes += divide_up<size_t>(static_cast<size_t>(count) * sizeof(T), 64) * 64;
    return reinterpret_cast<T*>(place);
  }
};

template <typename Simd>
size_t scratch_bytes(const PackedAttentionArguments& a) {
  return Workspace<Simd>(a, nullptr).bytes;
}

// One panel of keys: out[u][lane] is unit u of key `lane`; a key beyond `count` is zero.
template <typename Simd, typename Storage>
C2V_TARGET void pack_keys_by_element(const Storage* key, int64_t stride, int64_t count,
                                     int64_t head_dim, float* out) {
  for (int64_t lane = 0; lane < kColumns<Simd>; ++lane) {
    for (int64_t d = 0; d < head_dim; ++d) {
      out[d * kColumns<Simd> + lane] = lane < count ? to_float(key[lane * stride + d]) : 0.0f;
    }
  }
}

// One unit of one panel of values, `columns` wide, from one key or two neighbours; a second key
// that is not there is zero. The rest of the panel is written as zeros.
template <typename Simd, typename Storage>
C2V_TARGET_INLINE void pack_value_unit(const Storage* value, const Storage* /*next*/,
                                       int64_t columns, float* out) {
  for (int64_t d = 0; d < columns; ++d) out[d] = to_float(value[d]);
  for (int64_t d = columns; d < kColumns<Simd>; ++d) out[d] = 0.0f;
}

template <typename Simd>
C2V_TARGET_INLINE void pack_value_unit(const uint16_t* value, const uint16_t* next,
                                       int64_t columns, uint32_t* out) {
  if (next == nullptr) {
    for (int64_t d = 0; d < columns; ++d) out[d] = value[d];
  } else {
    for (int64_t d = 0; d < columns; ++d) {
      out[d] = value[d] | static_cast<uint32_t>(next[d]) << 16;
    }
  }
  for (int64_t d = columns; d < kColumns<Simd>; ++d) out[d] = 0;
}

template <typename Storage>
C2V_TARGET_INLINE void pack_query(const Storage* query, int64_t head_dim, float* out) {
  for (int64_t d = 0; d < head_dim; ++d) out[d] = to_float(query[d]);
}

C2V_TARGET_INLINE void pack_query(const uint16_t* query, int64_t head_dim, uint32_t* out) {
  out[divide_up<int64_t>(head_dim, 2) - 1] = 0;
  std::memcpy(out, query, static_cast<size_t>(head_dim) * sizeof(*query));
}

// The part of an item that its tiles share.
template <typename Simd, typename Storage>
struct ItemView {
  const PackedAttentionArguments& a;
  const PackedAttentionItem& item;
  int64_t start, length;   // of the sequence's keys
  int64_t query_start;     // row of its first query
  int64_t first_position;  // of that query where queries are the last rows
  int64_t group;           // query heads to a key head
  int64_t origin;          // first packed key: a whole number of panels from the sequence's first
  int64_t end;             // behind the last packed key

  C2V_TARGET ItemView(const PackedAttentionArguments& a, const PackedAttentionItem& item)
      : a(a), item(item) {
    start = a.cu_seqlens[item.sequence];
    length = a.cu_seqlens[item.sequence + 1] - start;
    const PackedAttentionQueries queries = queries_of(a, item.sequence);
    query_start = queries.first;
    first_position = length - queries.count;
    group = a.heads / a.kv_heads;
    int64_t first = length;
    end = 0;
    for (int64_t i = item.row_begin / group; i * group < item.row_end; ++i) {
      first = smaller(first, low(position(i)));
      end = larger(end, high(position(i)));
    }
    origin = first / kColumns<Simd> * kColumns<Simd>;
  }

  C2V_TARGET int64_t query_row(int64_t i) const { return query_start + i; }
  C2V_TARGET int64_t position(int64_t i) const {
    return a.query_rows == nullptr ? first_position + i : a.query_rows[query_row(i)] - start;
  }
  // The keys that a position sees are [low, high).
  C2V_TARGET int64_t low(int64_t position) const {
    return a.window < 0 ? 0 : larger(0, position - a.window + 1);
  }
  C2V_TARGET int64_t high(int64_t position) const {
    if (a.causal) return position + 1;
    return a.window < 0 ? length : smaller(length, position + a.window);
  }
  C2V_TARGET const Storage* of(const PackedHeads& heads, int64_t row, int64_t head) const {
    return static_cast<const Storage*>(heads.data) + row * heads.row_stride +
           head * heads.head_stride;
  }
};

template <typename Simd, typename Storage>
C2V_TARGET void pack(const ItemView<Simd, Storage>& view, const Workspace<Simd>& w) {
  const PackedAttentionArguments& a = view.a;
  const int64_t kv_head = view.item.kv_head, count = view.end - view.origin;
  const Storage* key = view.of(a.key, view.start + view.origin, kv_head);
  for (int64_t j = 0; j < count; j += kColumns<Simd>) {
    Simd::pack_keys(key + j * a.key.row_stride, a.key.row_stride,
                    smaller(count - j, kColumns<Simd>), w.head_dim, w.keys + j * w.depth);
  }
  const Storage* value = view.of(a.value, view.start + view.origin, kv_head);
  for (int64_t j = 0; j < count; j += Simd::kPair, value += Simd::kPair * a.value.row_stride) {
    const Storage* next = j + 1 < count ? value + a.value.row_stride : nullptr;
    for (int64_t column = 0; column < w.head_dim; column += kColumns<Simd>) {
      pack_value_unit<Simd>(value + column, next == nullptr ? nullptr : next + column,
                            smaller(w.head_dim - column, kColumns<Simd>),
                            w.values + column * w.value_depth + j / Simd::kPair * kColumns<Simd>);
    }
  }
}

}  // namespace
}  // namespace c2v
