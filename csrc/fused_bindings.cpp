// The fused row passes: checks tensors, calls the launchers, and registers the ops with torch.
#include "check.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "fused_rows.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

c2v::Dtype float_dtype(const Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return c2v::Dtype::kFloat32;
    case ScalarType::Half: return c2v::Dtype::kFloat16;
    case ScalarType::BFloat16: return c2v::Dtype::kBFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, op, ": the dtype must be float32, float16 or bfloat16");
}

// The tensor that decides dtype and device of the others: two-dimensional and not empty in width.
void check_main(const Tensor& tensor, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) >= 1, op, ": ", name,
                  " must be [rows, columns], at least one column wide");
}

void check_like(const Tensor& tensor, const Tensor& main, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == main.scalar_type(), op, ": ", name,
                  " must have the first argument's dtype and device");
}

void check_vector(const Tensor& tensor, const Tensor& main, int64_t size, const char* op,
                  const char* name) {
  check_like(tensor, main, op, name);
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size, op, ": ", name, " must be [", size,
                  "]");
}

void check_matrix(const Tensor& tensor, const Tensor& main, int64_t rows, int64_t columns,
                  const char* op, const char* name) {
  check_like(tensor, main, op, name);
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, op,
                  ": ", name, " must be [", rows, ", ", columns, "]");
}

bool has_contiguous_rows(const Tensor& tensor) {
  return tensor.dim() == 0 || tensor.size(tensor.dim() - 1) <= 1 ||
         tensor.stride(tensor.dim() - 1) == 1;
}

Tensor readable(const Tensor& tensor) {
  return has_contiguous_rows(tensor) ? tensor : torch::stable::contiguous(tensor);
}

std::optional<Tensor> readable(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(readable(*tensor)) : std::nullopt;
}

void check_writable(const Tensor& tensor, const char* op, const char* name) {
  STD_TORCH_CHECK(has_contiguous_rows(tensor) &&
                      (tensor.size(0) <= 1 || tensor.stride(0) >= tensor.size(1)),
                  op, ": ", name, " is written in place, so its rows must be contiguous and apart");
}

const void* pointer(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

c2v::InputRows input_rows(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0)};
}

c2v::InputRows input_rows(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? input_rows(*tensor) : c2v::InputRows{nullptr, 0};
}

c2v::OutputRows output_rows(Tensor& tensor) { return {tensor.mutable_data_ptr(), tensor.stride(0)}; }

Tensor new_rows(const Tensor& like, int64_t columns) {
  return torch::stable::new_empty(like, {like.size(0), columns}, like.scalar_type());
}

template <typename Arguments>
void run_rows(void (*launcher)(const Arguments&, int64_t, int64_t), const Arguments& arguments,
              int64_t rows, int64_t values_per_row) {
  // Under about 32k values a thread costs more to wake than it saves.
  const int64_t grain_size = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, values_per_row));
  torch::stable::parallel_for(0, rows, grain_size, [&](int64_t begin, int64_t end) {
    launcher(arguments, begin, end);
  });
}

Tensor add_rms_norm(Tensor residual, std::optional<Tensor> x, Tensor weight, double eps) {
  constexpr const char* op = "add_rms_norm";
  check_main(residual, op, "residual");
  const int64_t rows = residual.size(0), size = residual.size(1);
  if (x.has_value()) {
    check_matrix(*x, residual, rows, size, op, "x");
    check_writable(residual, op, "residual");
  }
  check_vector(weight, residual, size, op, "weight");
  Tensor read = x.has_value() ? residual : readable(residual);
  const std::optional<Tensor> added = readable(x);
  const Tensor scale = readable(weight);
  const Tensor normed = new_rows(residual, size);
  c2v::AddRmsNormArguments a{};
  a.residual = output_rows(read);
  a.x = input_rows(added);
  a.weight = scale.const_data_ptr();
  a.normed = normed.mutable_data_ptr();
  a.size = size;
  a.eps = static_cast<float>(eps);
  a.dtype = float_dtype(residual, op);
  run_rows(&c2v::add_rms_norm_cpu, a, rows, size);
  return normed;
}

Tensor add_layer_norm(Tensor x, std::optional<Tensor> residual, Tensor weight, Tensor bias,
                      double eps, std::optional<Tensor> x_bias) {
  constexpr const char* op = "add_layer_norm";
  check_main(x, op, "x");
  const int64_t rows = x.size(0), size = x.size(1);
  if (residual.has_value()) check_matrix(*residual, x, rows, size, op, "residual");
  check_vector(weight, x, size, op, "weight");
  check_vector(bias, x, size, op, "bias");
  if (x_bias.has_value()) check_vector(*x_bias, x, size, op, "x_bias");
  const Tensor read = readable(x);
  const std::optional<Tensor> added = readable(residual), x_shift = readable(x_bias);
  const Tensor scale = readable(weight), shift = readable(bias);
  const Tensor normed = new_rows(x, size);
  c2v::AddLayerNormArguments a{};
  a.x = input_rows(read);
  a.x_bias = pointer(x_shift);
  a.residual = input_rows(added);
  a.weight = scale.const_data_ptr();
  a.bias = shift.const_data_ptr();
  a.normed = normed.mutable_data_ptr();
  a.size = size;
  a.eps = static_cast<float>(eps);
  a.dtype = float_dtype(x, op);
  run_rows(&c2v::add_layer_norm_cpu, a, rows, size);
  return normed;
}

Tensor silu_and_mul(Tensor gate_up) {
  constexpr const char* op = "silu_and_mul";
  check_main(gate_up, op, "gate_up");
  STD_TORCH_CHECK(gate_up.size(1) % 2 == 0, op, ": gate_up must be [rows, 2 * size], got ",
                  gate_up.size(1), " columns");
  const int64_t size = gate_up.size(1) / 2;
  const Tensor read = readable(gate_up);
  const Tensor product = new_rows(gate_up, size);
  c2v::SiluAndMulArguments a{};
  a.gate_up = input_rows(read);
  a.product = product.mutable_data_ptr();
  a.size = size;
  a.dtype = float_dtype(gate_up, op);
  run_rows(&c2v::silu_and_mul_cpu, a, gate_up.size(0), 2 * size);
  return product;
}

std::tuple<Tensor, Tensor> quantize_rows_int8(Tensor x) {
  constexpr const char* op = "quantize_rows_int8";
  check_main(x, op, "x");
  const int64_t rows = x.size(0), size = x.size(1);
  const Tensor read = readable(x);
  const Tensor values = torch::stable::new_empty(x, {rows, size}, ScalarType::Byte);
  const Tensor scales = torch::stable::new_empty(x, {rows, 1}, ScalarType::Float);
  c2v::QuantizeRowsInt8Arguments a{};
  a.x = input_rows(read);
  a.values = static_cast<uint8_t*>(values.mutable_data_ptr());
  a.scales = static_cast<float*>(scales.mutable_data_ptr());
  a.size = size;
  a.dtype = float_dtype(x, op);
  run_rows(&c2v::quantize_rows_int8_cpu, a, rows, size);
  return {values, scales};
}

void scale_rows_(Tensor x, Tensor scales, std::optional<Tensor> bias) {
  constexpr const char* op = "scale_rows_";
  check_main(x, op, "x");
  check_writable(x, op, "x");
  const int64_t rows = x.size(0), size = x.size(1);
  STD_TORCH_CHECK(scales.is_cpu() && scales.scalar_type() == ScalarType::Float &&
                      scales.dim() == 2 && scales.size(0) == rows && scales.size(1) == 1,
                  op, ": scales must be float32 [", rows, ", 1]");
  if (bias.has_value()) check_vector(*bias, x, size, op, "bias");
  const Tensor factors = torch::stable::contiguous(scales);
  const std::optional<Tensor> shift = readable(bias);
  c2v::ScaleRowsArguments a{};
  a.x = output_rows(x);
  a.scales = static_cast<const float*>(factors.const_data_ptr());
  a.bias = pointer(shift);
  a.size = size;
  a.dtype = float_dtype(x, op);
  run_rows(&c2v::scale_rows_cpu, a, rows, size);
}

void check_positions(const Tensor& positions, int64_t rows, int64_t length) {
  STD_TORCH_CHECK(positions.is_cpu() && positions.dim() == 1 && positions.size(0) == rows &&
                      positions.scalar_type() == ScalarType::Int,
                  "qk_norm_rope_: positions must be int32 [", rows, "]");
  const int32_t* values = static_cast<const int32_t*>(positions.const_data_ptr());
  for (int64_t i = 0; i < rows; ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < length, "qk_norm_rope_: positions[", i, "] is ",
                    values[i], ", but the tables have ", length, " positions");
  }
}

void qk_norm_rope_(Tensor qkv, int64_t num_query_heads, int64_t num_key_heads, int64_t head_dim,
                   Tensor positions, Tensor cos, Tensor sin, std::optional<Tensor> query_norm,
                   std::optional<Tensor> key_norm, double eps, std::optional<Tensor> bias) {
  constexpr const char* op = "qk_norm_rope_";
  check_main(qkv, op, "qkv");
  check_writable(qkv, op, "qkv");
  STD_TORCH_CHECK(num_query_heads >= 0 && num_key_heads >= 0 && head_dim >= 2 && head_dim % 2 == 0,
                  op, ": head counts must not be negative, and head_dim must be even");
  const int64_t heads = num_query_heads + num_key_heads;
  STD_TORCH_CHECK(heads <= qkv.size(1) / head_dim, op, ": qkv has ", qkv.size(1), " columns, too ",
                  "few for ", heads, " heads of ", head_dim);
  STD_TORCH_CHECK(cos.dim() == 2, op, ": cos must be [positions, head_dim / 2]");
  check_matrix(cos, qkv, cos.size(0), head_dim / 2, op, "cos");
  check_matrix(sin, qkv, cos.size(0), head_dim / 2, op, "sin");
  if (query_norm.has_value()) check_vector(*query_norm, qkv, head_dim, op, "query_norm");
  if (key_norm.has_value()) check_vector(*key_norm, qkv, head_dim, op, "key_norm");
  if (bias.has_value()) check_vector(*bias, qkv, qkv.size(1), op, "bias");
  const Tensor indices = readable(positions), cosines = readable(cos), sines = readable(sin);
  check_positions(indices, qkv.size(0), cos.size(0));
  const std::optional<Tensor> query_scale = readable(query_norm), key_scale = readable(key_norm);
  const std::optional<Tensor> shift = readable(bias);
  c2v::QkNormRopeArguments a{};
  a.qkv = output_rows(qkv);
  a.bias = pointer(shift);
  a.positions = static_cast<const int32_t*>(indices.const_data_ptr());
  a.cos = input_rows(cosines);
  a.sin = input_rows(sines);
  a.query_norm = pointer(query_scale);
  a.key_norm = pointer(key_scale);
  a.width = qkv.size(1);
  a.num_query_heads = num_query_heads;
  a.num_key_heads = num_key_heads;
  a.head_dim = head_dim;
  a.eps = static_cast<float>(eps);
  a.dtype = float_dtype(qkv, op);
  const int64_t columns = bias.has_value() ? qkv.size(1) : heads * head_dim;
  run_rows(&c2v::qk_norm_rope_cpu, a, qkv.size(0), columns);
}

}  // namespace

// The schemas are those of kernels/<op>.py, which defines the ops where this extension is missing.
STABLE_TORCH_LIBRARY_FRAGMENT(c2v, m) {
  m.def(
      "add_rms_norm(Tensor(a!) residual, Tensor? x, Tensor weight, float eps) -> Tensor");
  m.def(
      "add_layer_norm(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps, "
      "Tensor? x_bias=None) -> Tensor");
  m.def("silu_and_mul(Tensor gate_up) -> Tensor");
  m.def("quantize_rows_int8(Tensor x) -> (Tensor values, Tensor scales)");
  m.def("scale_rows_(Tensor(a!) x, Tensor scales, Tensor? bias) -> ()");
  m.def(
      "qk_norm_rope_(Tensor(a!) qkv, int num_query_heads, int num_key_heads, int head_dim, "
      "Tensor positions, Tensor cos, Tensor sin, Tensor? query_norm, Tensor? key_norm, float eps, "
      "Tensor? bias=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(c2v, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm));
  m.impl("silu_and_mul", TORCH_BOX(&silu_and_mul));
  m.impl("quantize_rows_int8", TORCH_BOX(&quantize_rows_int8));
  m.impl("scale_rows_", TORCH_BOX(&scale_rows_));
  m.impl("qk_norm_rope_", TORCH_BOX(&qk_norm_rope_));
}
