// CPU driver of packed attention: picks the kernel for the processor and shares out the work.
#include <algorithm>
#include <atomic>
#include <vector>

#include "packed_attention.h"

namespace c2v {
namespace {

// A thread that gets fewer multiplications than this costs more to wake than it saves.
constexpr int64_t kThreadCost = int64_t{1} << 20;
// Items a thread should find, so that the last one to finish is not far behind the others.
constexpr int64_t kItemsPerThread = 4;
// A split item packs its keys and values again: this many rows make up for it.
constexpr int64_t kLeastRows = 96;
// Longer sequences compute for so long that waiting for their rows is nothing, and need the caches.
constexpr int64_t kMostPrefetchedRows = 512;
// Scratch memory that a thread keeps between calls, in bytes.
constexpr size_t kKeptScratch = size_t{4} << 20;

int64_t item_rows(const PackedAttentionArguments& a, int64_t sequence) {
  return queries_of(a, sequence).count * (a.heads / a.kv_heads);
}

// Multiplications of a sequence for one head of keys, counting packing as one row.
int64_t item_cost(const PackedAttentionArguments& a, int64_t sequence) {
  const int64_t length = a.cu_seqlens[sequence + 1] - a.cu_seqlens[sequence];
  const int64_t seen = a.window < 0 ? length : std::min(length, 2 * a.window);
  return (item_rows(a, sequence) + 1) * seen * a.head_dim;
}

// The items, costliest first, so that what is left for the end is small.
std::vector<PackedAttentionItem> make_items(const PackedAttentionArguments& a, int64_t total_cost,
                                            int64_t threads) {
  std::vector<std::pair<int64_t, int64_t>> order;
  order.reserve(static_cast<size_t>(a.batch));
  for (int64_t b = 0; b < a.batch; ++b) {
    if (item_rows(a, b) > 0) order.emplace_back(item_cost(a, b), b);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& x, const auto& y) { return x.first > y.first; });
  const int64_t most_cost = std::max<int64_t>(1, total_cost / (threads * kItemsPerThread));

  std::vector<PackedAttentionItem> items;
  items.reserve(order.size() * static_cast<size_t>(a.kv_heads));
  for (const auto& [cost, sequence] : order) {
    const int64_t rows = item_rows(a, sequence);
    int64_t parts = threads == 1 ? 1 : std::min(cost / most_cost, rows / kLeastRows);
    parts = std::max<int64_t>(1, parts);
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      for (int64_t part = 0; part < parts; ++part) {
        items.push_back({sequence, head, rows * part / parts, rows * (part + 1) / parts});
      }
    }
  }
  return items;
}

// Memory of this thread, on a cache line's border.
class Scratch {
 public:
  std::byte* take(size_t bytes) {
    if (bytes + kAlignment > memory_.size()) memory_ = std::vector<std::byte>(bytes + kAlignment);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (kAlignment - address % kAlignment);
  }
  void give_back() {
    if (memory_.size() > kKeptScratch) memory_ = {};
  }

 private:
  static constexpr size_t kAlignment = 64;
  std::vector<std::byte> memory_;
};

inline void prefetch(const std::byte* line) {
#if defined(__GNUC__)
  __builtin_prefetch(line);
#else
  (void)line;
#endif
}

void prefetch_rows(const PackedHeads& heads, int64_t element, int64_t row, int64_t count,
                   int64_t head, int64_t neighbours, int64_t head_dim) {
  const int64_t bytes = ((neighbours - 1) * heads.head_stride + head_dim) * element;
  const auto* data = static_cast<const std::byte*>(heads.data);
  for (int64_t i = row; i < row + count; ++i) {
    const std::byte* first = data + (i * heads.row_stride + head * heads.head_stride) * element;
    for (int64_t at = 0; at < bytes; at += 64) prefetch(first + at);
    prefetch(first + bytes - 1);
  }
}

// Rows of one head stand far apart, where the processor does not look ahead by itself: asked for
// while another item is computed, they need not be waited for.
void prefetch_item(const PackedAttentionArguments& a, const PackedAttentionItem& item) {
  const int64_t start = a.cu_seqlens[item.sequence];
  const int64_t length = a.cu_seqlens[item.sequence + 1] - start;
  const PackedAttentionQueries queries = queries_of(a, item.sequence);
  // The keys before the first query's window are not read.
  const bool some_unseen = a.query_rows == nullptr && a.window >= 0;
  const int64_t unseen =
      some_unseen ? std::max<int64_t>(0, length - queries.count - a.window + 1) : 0;
  const int64_t keys = length - unseen;
  if (keys > kMostPrefetchedRows) return;
  const int64_t element = a.is_bfloat16 ? 2 : 4, group = a.heads / a.kv_heads;
  prefetch_rows(a.key, element, start + unseen, keys, item.kv_head, 1, a.head_dim);
  prefetch_rows(a.value, element, start + unseen, keys, item.kv_head, 1, a.head_dim);
  prefetch_rows(a.query, element, queries.first, queries.count, item.kv_head * group, group,
                a.head_dim);
}

// What the threads of one call share.
struct Work {
  const PackedAttentionArguments& arguments;
  PackedAttentionKernel kernel;
  std::vector<PackedAttentionItem> items;
  std::atomic<size_t> next{0};
};

void take_items(void* context) {
  thread_local Scratch scratch;
  auto& work = *static_cast<Work*>(context);
  if (work.next.load(std::memory_order_relaxed) >= work.items.size()) return;
  std::byte* memory = scratch.take(work.kernel.scratch_bytes(work.arguments));
  size_t index = work.next.fetch_add(1, std::memory_order_relaxed);
  while (index < work.items.size()) {
    const size_t next = work.next.fetch_add(1, std::memory_order_relaxed);
    if (next < work.items.size()) prefetch_item(work.arguments, work.items[next]);
    work.kernel.attend(work.arguments, work.items[index], memory);
    index = next;
  }
  scratch.give_back();
}

PackedAttentionKernel kernel_of(AttentionVariant variant, bool is_bfloat16) {
  switch (variant) {
    case AttentionVariant::kGeneric: return generic_packed_attention(is_bfloat16);
#ifdef C2V_X86_ATTENTION
    case AttentionVariant::kAvx2: return avx2_packed_attention(is_bfloat16);
    case AttentionVariant::kAvx512: return avx512_packed_attention(is_bfloat16);
    case AttentionVariant::kAvx512Bf16: return avx512_bf16_packed_attention();
#else
    default: return generic_packed_attention(is_bfloat16);
#endif
  }
  return generic_packed_attention(is_bfloat16);
}

int find_variants() {
  int found = 1 << static_cast<int>(AttentionVariant::kGeneric);
#ifdef C2V_X86_ATTENTION
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found |= 1 << static_cast<int>(AttentionVariant::kAvx2);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    found |= 1 << static_cast<int>(AttentionVariant::kAvx512);
    if (__builtin_cpu_supports("avx512bf16")) {
      found |= 1 << static_cast<int>(AttentionVariant::kAvx512Bf16);
    }
  }
#endif
  return found;
}

}  // namespace

int supported_attention_variants() {
  static const int variants = find_variants();
  return variants;
}

AttentionVariant best_attention_variant(bool is_bfloat16) {
  int best = static_cast<int>(is_bfloat16 ? AttentionVariant::kAvx512Bf16
                                          : AttentionVariant::kAvx512);
  while ((supported_attention_variants() >> best & 1) == 0) --best;
  return static_cast<AttentionVariant>(best);
}

void packed_attention_cpu(const PackedAttentionArguments& arguments, AttentionVariant variant,
                          int64_t max_threads, AttentionRunner run) {
  int64_t cost = 0;
  for (int64_t b = 0; b < arguments.batch; ++b) cost += item_cost(arguments, b);
  cost *= arguments.kv_heads;
  const int64_t threads = std::clamp<int64_t>(cost / kThreadCost, 1, max_threads);
  Work work{arguments, kernel_of(variant, arguments.is_bfloat16),
            make_items(arguments, cost, threads)};
  run(threads, &work, take_items);
}

}  // namespace c2v
