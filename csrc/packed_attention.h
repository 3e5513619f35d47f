// Attention over packed sequences: what the CPU kernels need, in raw pointers. Nothing here knows
// torch.
//
// The mathematics is in the docstring of kernels/packed_attention.py, whose PyTorch form is the
// reference that every kernel is tested against.
#pragma once

#include <cstddef>
#include <cstdint>

namespace c2v {

// [rows, heads, head_dim] whose last dimension is contiguous; strides count elements.
struct PackedHeads {
  const void* data;
  int64_t row_stride;
  int64_t head_stride;
};

struct PackedAttentionArguments {
  PackedHeads query;            // [rows, heads, head_dim]
  PackedHeads key;              // [tokens, kv_heads, head_dim]
  PackedHeads value;            // likewise
  const int32_t* cu_seqlens;    // [batch + 1], rising from 0 to tokens
  const int32_t* cu_seqlens_q;  // [batch + 1], rising from 0 to rows, the queries of the last keys
                                // of each sequence; read where query_rows is not given
  const int32_t* query_rows;    // [batch * rows_per_sequence], each in its sequence, or nullptr
  void* output;                 // contiguous, of the shape of the query
  int64_t batch;
  int64_t rows_per_sequence;  // read where query_rows is given
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t max_seqlen;  // no sequence is longer
  int64_t window;  // -1 for none
  float scale;
  bool causal;
  bool is_bfloat16;  // every tensor; float32 otherwise
};

// The codes are the bits of `supported_attention_variants` and those of CpuVariant in
// kernels/packed_attention.py.
enum class AttentionVariant : int {
  kGeneric = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAvx512Bf16 = 3,  // bfloat16 tensors only
};

// A share of the work: query rows [row_begin, row_end) of one sequence and one head of keys, where
// row r is position r / group and query head r % group of the heads that share the keys.
struct PackedAttentionItem {
  int64_t sequence;
  int64_t kv_head;
  int64_t row_begin;
  int64_t row_end;
};

// The query rows of a sequence, of which those of one head of keys are `group` times as many.
struct PackedAttentionQueries {
  int64_t first;
  int64_t count;
};

static inline PackedAttentionQueries queries_of(const PackedAttentionArguments& a,
                                                int64_t sequence) {
  if (a.query_rows != nullptr) return {sequence * a.rows_per_sequence, a.rows_per_sequence};
  const int64_t first = a.cu_seqlens_q[sequence];
  return {first, a.cu_seqlens_q[sequence + 1] - first};
}

// One instruction set's form of the kernel.
struct PackedAttentionKernel {
  size_t (*scratch_bytes)(const PackedAttentionArguments&);
  void (*attend)(const PackedAttentionArguments&, const PackedAttentionItem&, std::byte* scratch);
};

PackedAttentionKernel generic_packed_attention(bool is_bfloat16);
#if defined(__GNUC__) && defined(__x86_64__)
#define C2V_X86_ATTENTION 1
PackedAttentionKernel avx2_packed_attention(bool is_bfloat16);
PackedAttentionKernel avx512_packed_attention(bool is_bfloat16);
PackedAttentionKernel avx512_bf16_packed_attention();
#endif

// Which variants this processor runs, as a set of bits.
int supported_attention_variants();

// The fastest variant that this processor has for the dtype.
AttentionVariant best_attention_variant(bool is_bfloat16);

// Attends with at most `max_threads` calls of `work` side by side: `run(threads, context, work)`
// calls `work(context)` that many times and returns when all have. The arguments must have been
// checked.
using AttentionRunner = void (*)(int64_t threads, void* context, void (*work)(void* context));
void packed_attention_cpu(const PackedAttentionArguments& arguments, AttentionVariant variant,
                          int64_t max_threads, AttentionRunner run);

}  // namespace c2v
