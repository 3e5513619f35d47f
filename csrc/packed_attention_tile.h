// The algorithm of packed attention, written once for every instruction set.
//
// A file that includes this defines C2V_TARGET, the target attribute of its functions, and a `Simd`
// that names the vectors and what is done with them; the templates have internal linkage, so that
// no two files share code of different instruction sets.
//
// An item packs the keys and values of one sequence and head into panels of kColumns columns,
// 32-bit unit after unit (a float, or two neighbouring bfloat16 of the summed dimension), and then
// takes its query rows in tiles of kRows. A tile runs over the keys it sees in chunks of kChunk:
// scores, softmax, weighted sum, with the running maximum and sum of an online softmax between
// chunks. Chunks, vectors and units stand at fixed positions of the sequence and what a row does
// not see adds exact zeros, so that a row's bits depend on nothing but its sequence: neither on the
// tile and item it is in nor on the number of threads.
#pragma once

#include "packed_attention_pack.h"

namespace c2v {
namespace {

// 2^f = 1 + f (kExp2[0] + f (kExp2[1] + ...)) within 1e-7 of itself for |f| <= 1/2: the minimax
// polynomial of degree 5 that is exact at 0.
constexpr float kExp2[] = {0.6931469775973312f, 0.2402224208267581f, 0.05550733744824635f,
                           0.009671512812597104f, 0.0013264727213997407f};

// Writes the first `count` lanes, at most a vector, for an instruction set without masked stores.
template <typename Simd, typename Storage>
C2V_TARGET_INLINE void write_by_element(Storage* out, typename Simd::Vector x, int64_t count) {
  float lanes[Simd::kLanes];
  Simd::store(lanes, x);
  if (count >= Simd::kLanes) {
    for (int i = 0; i < Simd::kLanes; ++i) from_float(lanes[i], out + i);
  } else {
    for (int64_t i = 0; i < count; ++i) from_float(lanes[i], out + i);
  }
}

// The query rows that are computed together, and what they see.
template <typename Simd, typename Storage>
struct Tile {
  int rows;
  int64_t low[Simd::kRows], high[Simd::kRows];  // visible keys
  int64_t begin, end;                           // all of them
  int64_t full_begin, full_end;                 // those that every row sees
  Storage* output[Simd::kRows];
  float maximum[Simd::kRows], sum[Simd::kRows];
  float correction[Simd::kRows];  // of what earlier chunks left
};

// acc[r][v] = sum over u of a[r][u] * b[u][v]
template <typename Simd, int kR, int kV>
C2V_TARGET_INLINE void multiply(const typename Simd::Unit* a, int64_t a_stride,
                                const typename Simd::Unit* b, int64_t depth,
                                typename Simd::Vector (&acc)[kR][kV]) {
  C2V_UNROLL for (int r = 0; r < kR; ++r) {
    C2V_UNROLL for (int v = 0; v < kV; ++v) acc[r][v] = Simd::broadcast(0.0f);
  }
  for (int64_t u = 0; u < depth; ++u, b += kColumns<Simd>) {
    typename Simd::Units columns[kV];
    C2V_UNROLL for (int v = 0; v < kV; ++v) columns[v] = Simd::load_units(b + v * Simd::kLanes);
    C2V_UNROLL for (int r = 0; r < kR; ++r) {
      const typename Simd::Units row = Simd::broadcast_unit(a + r * a_stride + u);
      C2V_UNROLL for (int v = 0; v < kV; ++v) acc[r][v] = Simd::dot(acc[r][v], row, columns[v]);
    }
  }
}

// Scores of the tile against the panel that begins at key `first`, in units of log2, with minus
// infinity for what a row does not see; the maxima follow.
template <typename Simd, typename Storage>
struct ScorePanel {
  const Workspace<Simd>& w;
  const Tile<Simd, Storage>& tile;
  const typename Simd::Unit* panel;
  int64_t first;
  float* scores;
  float scale;

  template <int kR, int kV>
  C2V_TARGET void run() const {
    typename Simd::Vector acc[kR][kV];
    multiply<Simd, kR, kV>(w.queries, w.depth, panel, w.depth, acc);
    const typename Simd::Vector factor = Simd::broadcast(scale);
    const bool masked =
        first < tile.full_begin || first + kV * Simd::kLanes > tile.full_end;
    C2V_UNROLL for (int r = 0; r < kR; ++r) {
      typename Simd::Vector maximum = Simd::load(w.maxima + r * Simd::kLanes);
      C2V_UNROLL for (int v = 0; v < kV; ++v) {
        typename Simd::Vector score = Simd::multiply(acc[r][v], factor);
        const int64_t lane = first + v * Simd::kLanes;
        if (masked) score = Simd::keep(score, tile.low[r] - lane, tile.high[r] - lane);
        Simd::store(scores + r * kScoreStride + v * Simd::kLanes, score);
        maximum = Simd::maximum(maximum, score);
      }
      Simd::store(w.maxima + r * Simd::kLanes, maximum);
    }
  }
};

// Weights of the tile times the panel of values that begins at column `column`.
template <typename Simd, typename Storage>
struct ValuePanel {
  const Workspace<Simd>& w;
  const Tile<Simd, Storage>& tile;
  const typename Simd::Unit* panel;
  int64_t depth;
  int64_t column;
  bool is_first, is_last;  // chunk

  template <int kR, int kV>
  C2V_TARGET void run() const {
    typename Simd::Vector acc[kR][kV];
    const auto* weights = reinterpret_cast<const typename Simd::Unit*>(w.scores);
    multiply<Simd, kR, kV>(weights, kScoreStride, panel, depth, acc);
    C2V_UNROLL for (int r = 0; r < kR; ++r) {
      float* partial = w.outputs + r * w.padded_head_dim + column;
      const typename Simd::Vector correction = Simd::broadcast(tile.correction[r]);
      const typename Simd::Vector inverse = Simd::broadcast(1.0f / tile.sum[r]);
      C2V_UNROLL for (int v = 0; v < kV; ++v) {
        const int64_t at = v * Simd::kLanes;
        typename Simd::Vector out = acc[r][v];
        if (!is_first) out = Simd::multiply_add(Simd::load(partial + at), correction, out);
        if (!is_last) {
          Simd::store(partial + at, out);
        } else {
          Simd::write(tile.output[r] + column + at, Simd::multiply(out, inverse),
                      smaller(w.head_dim - column - at, Simd::kLanes));
        }
      }
    }
  }
};

// Calls panel.run<rows, vectors>().
template <int kR, int kV, typename Panel>
C2V_TARGET_INLINE void run_panel(const Panel& panel, int rows, int64_t vectors) {
  if constexpr (kR > 1) {
    if (rows < kR) return run_panel<kR - 1, kV>(panel, rows, vectors);
  }
  if constexpr (kV > 1) {
    if (vectors < kV) return run_panel<kR, kV - 1>(panel, rows, vectors);
  }
  panel.template run<kR, kV>();
}

// Turns the scores of keys [from, to) into weights and brings maximum and sum up to date.
template <typename Simd, typename Storage>
C2V_TARGET void weigh(const Workspace<Simd>& w, Tile<Simd, Storage>& tile, int64_t vectors) {
  using Vector = typename Simd::Vector;
  for (int r = 0; r < tile.rows; ++r) {
    const float in_chunk = Simd::reduce_maximum(Simd::load(w.maxima + r * Simd::kLanes));
    const float maximum = in_chunk > tile.maximum[r] ? in_chunk : tile.maximum[r];
    // A row that sees nothing yet has weights of zero, not of exp(-inf + inf).
    const Vector shift = Simd::broadcast(maximum == kMinusInfinity ? 0.0f : maximum);
    const Vector before = Simd::broadcast(tile.maximum[r]);
    tile.correction[r] = tile.maximum[r] == kMinusInfinity
                             ? 0.0f
                             : Simd::first(Simd::exp2(Simd::subtract(before, shift)));
    tile.maximum[r] = maximum;

    float* scores = w.scores + r * kScoreStride;
    auto* weights = reinterpret_cast<typename Simd::Unit*>(scores);
    Vector sum = Simd::broadcast(0.0f);
    for (int64_t v = 0; v < vectors; ++v) {
      const Vector score = Simd::load(scores + v * Simd::kLanes);
      const Vector weight = Simd::exp2(Simd::subtract(score, shift));
      sum = Simd::add(sum, weight);
      Simd::store_weights(weights + v * (Simd::kLanes / Simd::kPair), weight);
    }
    tile.sum[r] = tile.sum[r] * tile.correction[r] + Simd::reduce_add(sum);
  }
}

template <typename Simd, typename Storage>
C2V_TARGET Tile<Simd, Storage> make_tile(const ItemView<Simd, Storage>& view,
                                         const Workspace<Simd>& w, int64_t first_row) {
  const PackedAttentionArguments& a = view.a;
  Tile<Simd, Storage> tile;
  tile.rows = static_cast<int>(smaller(view.item.row_end - first_row, Simd::kRows));
  tile.begin = tile.full_end = view.length;
  tile.end = tile.full_begin = 0;
  int64_t i = first_row / view.group, in_group = first_row % view.group;
  for (int r = 0; r < tile.rows; ++r) {
    const int64_t head = view.item.kv_head * view.group + in_group;
    const int64_t row = view.query_row(i), position = view.position(i);
    pack_query(view.of(a.query, row, head), a.head_dim, w.queries + r * w.depth);
    tile.output[r] = static_cast<Storage*>(a.output) + (row * a.heads + head) * a.head_dim;
    // Stores that miss the caches are waited for one after the other; loads are not.
    for (int64_t d = 0; d < a.head_dim; d += 64 / sizeof(Storage)) prefetch(tile.output[r] + d);
    tile.low[r] = view.low(position);
    tile.high[r] = view.high(position);
    tile.begin = smaller(tile.begin, tile.low[r]);
    tile.full_begin = larger(tile.full_begin, tile.low[r]);
    tile.end = larger(tile.end, tile.high[r]);
    tile.full_end = smaller(tile.full_end, tile.high[r]);
    tile.maximum[r] = kMinusInfinity;
    tile.sum[r] = 0.0f;
    if (++in_group == view.group) {
      in_group = 0;
      ++i;
    }
  }
  return tile;
}

template <typename Simd, typename Storage>
C2V_TARGET void attend_tile(const ItemView<Simd, Storage>& view, const Workspace<Simd>& w,
                            int64_t first_row, float scale) {
  constexpr int64_t kColumns = c2v::kColumns<Simd>;
  Tile<Simd, Storage> tile = make_tile<Simd, Storage>(view, w, first_row);
  const int64_t begin = tile.begin / kColumns * kColumns;
  for (int64_t chunk = begin / kChunk * kChunk; chunk < tile.end; chunk += kChunk) {
    const int64_t from = larger(begin, chunk), to = smaller(tile.end, chunk + kChunk);
    for (int i = 0; i < tile.rows * Simd::kLanes; ++i) w.maxima[i] = kMinusInfinity;
    for (int64_t key = from; key < to; key += kColumns) {
      const auto* panel = w.keys + (key - view.origin) * w.depth;
      const ScorePanel<Simd, Storage> scores{w, tile, panel, key, w.scores + (key - from), scale};
      run_panel<Simd::kRows, Simd::kVectors>(scores, tile.rows,
                                             divide_up<int64_t>(to - key, Simd::kLanes));
    }
    weigh(w, tile, divide_up<int64_t>(to - from, Simd::kLanes));
    for (int64_t column = 0; column < w.head_dim; column += kColumns) {
      const auto* panel = w.values + column * w.value_depth +
                          (from - view.origin) / Simd::kPair * kColumns;
      const int64_t depth = divide_up<int64_t>(to - from, Simd::kPair);
      const ValuePanel<Simd, Storage> values{w,      tile,          panel,         depth,
                                             column, from == begin, to == tile.end};
      run_panel<Simd::kRows, Simd::kVectors>(
          values, tile.rows, divide_up<int64_t>(w.head_dim - column, Simd::kLanes));
    }
  }
}

template <typename Simd, typename Storage>
C2V_TARGET void attend(const PackedAttentionArguments& a, const PackedAttentionItem& item,
                       std::byte* scratch) {
  const Workspace<Simd> w(a, scratch);
  const ItemView<Simd, Storage> view(a, item);
  pack(view, w);
  const float scale = static_cast<float>(a.scale * 1.4426950408889634);  // exp(x) is 2^(x log2 e)
  for (int64_t row = item.row_begin; row < item.row_end; row += Simd::kRows) {
    attend_tile<Simd, Storage>(view, w, row, scale);
  }
}

}  // namespace
}  // namespace c2v
