// Packed attention: checks tensors, calls the CPU driver, and registers the op with torch.
#include "check.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "packed_attention.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostHeadDim = 256;

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Rows and heads may stand anywhere; the dimensions of a head must be neighbours.
Tensor with_contiguous_heads(const Tensor& tensor) {
  const bool neighbours = tensor.stride(2) == 1 || tensor.size(2) == 1;
  return neighbours ? tensor : torch::stable::contiguous(tensor);
}

c2v::PackedHeads packed_heads(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

void check_indices(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 1 && tensor.scalar_type() == ScalarType::Int,
                  "packed_attention: ", name, " must be one-dimensional int32 on the CPU");
}

// Everything that can be checked without reading the tensors.
void check_shapes(const Tensor& query, const Tensor& key, const Tensor& value,
                  const Tensor& cu_seqlens, int64_t max_seqlen, int64_t window,
                  const std::optional<Tensor>& query_rows,
                  const std::optional<Tensor>& cu_seqlens_q) {
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3,
                  "packed_attention: query, key and value must be [rows, heads, head_dim]");
  const ScalarType dtype = query.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "packed_attention: query must be float32, float16 or bfloat16");
  STD_TORCH_CHECK(key.scalar_type() == dtype && value.scalar_type() == dtype && key.is_cpu() &&
                      value.is_cpu(),
                  "packed_attention: key and value must have dtype and device of query");
  const int64_t tokens = key.size(0), kv_heads = key.size(1), head_dim = query.size(2);
  STD_TORCH_CHECK(head_dim >= 1 && head_dim <= kMostHeadDim,
                  "packed_attention: head_dim must be in [1, ", kMostHeadDim, "], got ", head_dim);
  STD_TORCH_CHECK(kv_heads >= 1 && query.size(1) >= 1 && query.size(1) % kv_heads == 0,
                  "packed_attention: the ", query.size(1),
                  " query heads must be a multiple of the ", kv_heads, " key heads");
  STD_TORCH_CHECK(key.size(2) == head_dim && value.size(0) == tokens &&
                      value.size(1) == kv_heads && value.size(2) == head_dim,
                  "packed_attention: key and value must be [tokens, kv_heads, ", head_dim, "]");
  check_indices(cu_seqlens, "cu_seqlens");
  STD_TORCH_CHECK(cu_seqlens.size(0) >= 1, "packed_attention: cu_seqlens must be [batch + 1]");
  STD_TORCH_CHECK(max_seqlen >= 0 && max_seqlen <= INT32_MAX,
                  "packed_attention: max_seqlen must be in [0, 2^31), got ", max_seqlen);
  STD_TORCH_CHECK(window == -1 || window >= 1,
                  "packed_attention: window must be -1 for none or at least 1, got ", window);
  if (cu_seqlens_q.has_value()) {
    STD_TORCH_CHECK(!query_rows.has_value(),
                    "packed_attention: query_rows and cu_seqlens_q must not both be given");
    check_indices(*cu_seqlens_q, "cu_seqlens_q");
    STD_TORCH_CHECK(cu_seqlens_q->size(0) == cu_seqlens.size(0),
                    "packed_attention: cu_seqlens_q must be [", cu_seqlens.size(0),
                    "], as cu_seqlens is, got [", cu_seqlens_q->size(0), "]");
    return;
  }
  if (!query_rows.has_value()) {
    STD_TORCH_CHECK(query.size(0) == tokens, "packed_attention: query must have the ", tokens,
                    " rows of key, got ", query.size(0));
    return;
  }
  check_indices(*query_rows, "query_rows");
  const int64_t rows = query_rows->size(0), batch = cu_seqlens.size(0) - 1;
  STD_TORCH_CHECK(query.size(0) == rows && (batch == 0 ? rows == 0 : rows % batch == 0),
                  "packed_attention: query_rows must be [batch * n] for [batch * n] rows of query; "
                  "got ", rows, " for a batch of ", batch, " and ", query.size(0), " rows");
}

// Checks that each sequence has as many queries as the offsets of `rows` query rows say, of its
// keys.
void check_queries(const c2v::PackedAttentionArguments& a, int64_t rows) {
  STD_TORCH_CHECK(a.cu_seqlens_q[0] == 0 && a.cu_seqlens_q[a.batch] == rows,
                  "packed_attention: cu_seqlens_q must run from 0 to the rows of query, ", rows,
                  "; it runs from ", a.cu_seqlens_q[0], " to ", a.cu_seqlens_q[a.batch]);
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t keys = int64_t{a.cu_seqlens[b + 1]} - a.cu_seqlens[b];
    const int64_t queries = int64_t{a.cu_seqlens_q[b + 1]} - a.cu_seqlens_q[b];
    STD_TORCH_CHECK(queries >= 0 && queries <= keys,
                    "packed_attention: cu_seqlens_q gives sequence ", b, " a length of ", queries,
                    "; expected 0 to its keys, ", keys);
  }
}

// Checks the other indices, and gives the length of the longest sequence.
int64_t check_values(const c2v::PackedAttentionArguments& a, int64_t tokens) {
  int64_t longest = 0;
  STD_TORCH_CHECK(a.cu_seqlens[0] == 0 && a.cu_seqlens[a.batch] == tokens,
                  "packed_attention: cu_seqlens must run from 0 to the number of tokens, ", tokens,
                  "; it runs from ", a.cu_seqlens[0], " to ", a.cu_seqlens[a.batch]);
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t first = a.cu_seqlens[b], last = a.cu_seqlens[b + 1];
    STD_TORCH_CHECK(first <= last && last - first <= a.max_seqlen, "packed_attention: sequence ", b,
                    " has length ", last - first, "; expected 0 to max_seqlen, ", a.max_seqlen);
    for (int64_t i = b * a.rows_per_sequence; i < (b + 1) * a.rows_per_sequence; ++i) {
      STD_TORCH_CHECK(a.query_rows[i] >= first && a.query_rows[i] < last,
                      "packed_attention: query_rows[", i, "] is ", a.query_rows[i],
                      ", but sequence ", b, " has rows ", first, " to ", last);
    }
    longest = std::max(longest, last - first);
  }
  return longest;
}

c2v::AttentionVariant checked_variant(int64_t code, bool is_bfloat16) {
  const auto variant = static_cast<c2v::AttentionVariant>(code);
  STD_TORCH_CHECK(code >= 0 && code <= 3 && (c2v::supported_attention_variants() >> code & 1) == 1,
                  "packed_attention: this processor has no variant ", code);
  STD_TORCH_CHECK(is_bfloat16 || variant != c2v::AttentionVariant::kAvx512Bf16,
                  "packed_attention: variant ", code, " is for bfloat16 only");
  return variant;
}

// torch's thread pool calls ranges; each thread is a range of one.
void run_in_parallel(int64_t threads, void* context, void (*work)(void*)) {
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) work(context);
  });
}

// A negative variant means the best one.
Tensor attend(const Tensor& query, const Tensor& key, const Tensor& value,
              const Tensor& cu_seqlens, int64_t max_seqlen, bool causal, int64_t window,
              double scale, const std::optional<Tensor>& query_rows,
              const std::optional<Tensor>& cu_seqlens_q, int64_t variant_code) {
  check_shapes(query, key, value, cu_seqlens, max_seqlen, window, query_rows, cu_seqlens_q);
  const Tensor q = with_contiguous_heads(query), k = with_contiguous_heads(key);
  const Tensor v = with_contiguous_heads(value), offsets = as_contiguous(cu_seqlens);
  const Tensor rows = query_rows.has_value() ? as_contiguous(*query_rows) : offsets;
  const Tensor query_offsets = cu_seqlens_q.has_value() ? as_contiguous(*cu_seqlens_q) : offsets;
  Tensor output = torch::stable::new_empty(query, {query.size(0), query.size(1), query.size(2)});

  c2v::PackedAttentionArguments a{};
  a.query = packed_heads(q);
  a.key = packed_heads(k);
  a.value = packed_heads(v);
  a.cu_seqlens = static_cast<const int32_t*>(offsets.const_data_ptr());
  a.cu_seqlens_q = static_cast<const int32_t*>(query_offsets.const_data_ptr());
  a.output = output.mutable_data_ptr();
  a.batch = offsets.size(0) - 1;
  if (query_rows.has_value()) {
    a.query_rows = static_cast<const int32_t*>(rows.const_data_ptr());
    a.rows_per_sequence = a.batch == 0 ? 0 : rows.size(0) / a.batch;
  }
  a.heads = query.size(1);
  a.kv_heads = key.size(1);
  a.head_dim = query.size(2);
  a.max_seqlen = max_seqlen;
  a.window = std::min(window, max_seqlen);  // a larger one sees no more, and sums would overflow
  a.scale = static_cast<float>(scale);
  a.causal = causal;
  a.is_bfloat16 = query.scalar_type() == ScalarType::BFloat16;
  a.max_seqlen = check_values(a, key.size(0));  // scratch memory is for what is there
  if (cu_seqlens_q.has_value()) check_queries(a, query.size(0));
  if (query.size(0) == 0) return output;  // query_rows without memory must not read as not given
  const auto variant = variant_code < 0 ? c2v::best_attention_variant(a.is_bfloat16)
                                        : checked_variant(variant_code, a.is_bfloat16);
  c2v::packed_attention_cpu(a, variant, torch::stable::get_num_threads(), run_in_parallel);
  return output;
}

// The bounds of rows are for the CUDA kernels; the ones here read cu_seqlens. float16, which no CPU
// kernel is made for, is computed in float32.
Tensor packed_attention(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens,
                        int64_t max_seqlen, bool causal, int64_t window, double scale,
                        std::optional<Tensor> query_rows, std::optional<Tensor> row_bounds,
                        std::optional<Tensor> cu_seqlens_q) {
  (void)row_bounds;
  const auto half = [](const Tensor& x) { return x.scalar_type() == ScalarType::Half; };
  if (!half(query)) {
    return attend(query, key, value, cu_seqlens, max_seqlen, causal, window, scale, query_rows,
                  cu_seqlens_q, -1);
  }
  STD_TORCH_CHECK(half(key) && half(value),
                  "packed_attention: key and value must have dtype and device of query");
  const auto wide = [](const Tensor& x) { return torch::stable::to(x, ScalarType::Float); };
  return torch::stable::to(attend(wide(query), wide(key), wide(value), cu_seqlens, max_seqlen,
                                  causal, window, scale, query_rows, cu_seqlens_q, -1),
                           ScalarType::Half);
}

Tensor packed_attention_variant(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens,
                                int64_t max_seqlen, bool causal, int64_t window, double scale,
                                std::optional<Tensor> query_rows, int64_t variant,
                                std::optional<Tensor> cu_seqlens_q) {
  STD_TORCH_CHECK(variant >= 0, "packed_attention: variant must be at least 0, got ", variant);
  return attend(query, key, value, cu_seqlens, max_seqlen, causal, window, scale, query_rows,
                cu_seqlens_q, variant);
}

int64_t packed_attention_variants() { return c2v::supported_attention_variants(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(c2v, m) {
  m.def(
      "packed_attention(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, "
      "int max_seqlen, bool causal, int window, float scale, Tensor? query_rows, "
      "Tensor? row_bounds=None, Tensor? cu_seqlens_q=None) -> Tensor");
  // For tests and c2v doctor: one variant of the CPU kernel, and the bits of those that run here.
  m.def(
      "_packed_attention_variant(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, "
      "int max_seqlen, bool causal, int window, float scale, Tensor? query_rows, int variant, "
      "Tensor? cu_seqlens_q=None) -> Tensor");
  m.def("_packed_attention_variants() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(c2v, CPU, m) {
  m.impl("packed_attention", TORCH_BOX(&packed_attention));
  m.impl("_packed_attention_variant", TORCH_BOX(&packed_attention_variant));
}

STABLE_TORCH_LIBRARY_IMPL(c2v, CompositeExplicitAutograd, m) {
  m.impl("_packed_attention_variants", TORCH_BOX(&packed_attention_variants));
}
