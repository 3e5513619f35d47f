// c2v_engine._C: checks tensors, calls the launchers, and registers the ops with torch.
//
// Only the stable ABI of torch is used, so one binary serves every torch from 2.11 on.
#include <Python.h>

#include "check.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "dual_token_pool.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

c2v::Dtype float_dtype(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return c2v::Dtype::kFloat32;
    case ScalarType::Half: return c2v::Dtype::kFloat16;
    case ScalarType::BFloat16: return c2v::Dtype::kBFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, "dual_token_pool: ", name, " must be float32, float16 or bfloat16");
}

ScalarType output_dtype(c2v::Precision precision) {
  switch (precision) {
    case c2v::Precision::kFloat32: return ScalarType::Float;
    case c2v::Precision::kFloat16: return ScalarType::Half;
    case c2v::Precision::kBFloat16: return ScalarType::BFloat16;
    case c2v::Precision::kInt8:
    case c2v::Precision::kBinary: return ScalarType::Char;
    case c2v::Precision::kUint8:
    case c2v::Precision::kUbinary: return ScalarType::Byte;
  }
  STD_TORCH_CHECK(false, "dual_token_pool: unknown precision code");
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

void check_device(const Tensor& tensor, const Tensor& hidden_states, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() == hidden_states.is_cpu() &&
                      tensor.is_cuda() == hidden_states.is_cuda() &&
                      tensor.get_device_index() == hidden_states.get_device_index(),
                  "dual_token_pool: ", name, " must be on the device of hidden_states");
}

void check_indices(const Tensor& tensor, const Tensor& hidden_states, const char* name) {
  check_device(tensor, hidden_states, name);
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.scalar_type() == ScalarType::Int,
                  "dual_token_pool: ", name, " must be one-dimensional int32");
}

// Everything that can be checked without reading the tensors.
void check_shapes(const Tensor& hidden_states, const Tensor& rows, const Tensor& offsets,
                  const Tensor& norm_weight, int64_t segments, int64_t keep) {
  STD_TORCH_CHECK(hidden_states.dim() == 2, "dual_token_pool: hidden_states must be ",
                  "[tokens, hidden], got ", hidden_states.dim(), " dimensions");
  const int64_t hidden_size = hidden_states.size(1);
  check_indices(rows, hidden_states, "rows");
  check_indices(offsets, hidden_states, "offsets");
  check_device(norm_weight, hidden_states, "norm_weight");
  STD_TORCH_CHECK(norm_weight.dim() == 1 && norm_weight.size(0) == hidden_size,
                  "dual_token_pool: norm_weight must be [", hidden_size, "]");
  STD_TORCH_CHECK(segments >= 1, "dual_token_pool: segments must be at least 1, got ", segments);
  STD_TORCH_CHECK(keep >= 1 && keep <= hidden_size, "dual_token_pool: keep must be in [1, ",
                  hidden_size, "], got ", keep);
  STD_TORCH_CHECK(offsets.size(0) >= 1 && (offsets.size(0) - 1) % segments == 0,
                  "dual_token_pool: offsets must be [batch * ", segments, " + 1], got [",
                  offsets.size(0), "]");
  const int64_t largest = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(hidden_size <= largest && segments <= largest / hidden_size &&
                      rows.size(0) <= largest && offsets.size(0) <= largest,
                  "dual_token_pool: a size is over the int32 range");
}

void check_ranges(const std::optional<Tensor>& ranges, const Tensor& hidden_states,
                  int64_t width) {
  STD_TORCH_CHECK(ranges.has_value(), "dual_token_pool: int8 and uint8 need ranges");
  check_device(*ranges, hidden_states, "ranges");
  STD_TORCH_CHECK(ranges->dim() == 2 && ranges->size(0) == 2 && ranges->size(1) == width &&
                      ranges->scalar_type() == ScalarType::Float,
                  "dual_token_pool: ranges must be float32 [2, ", width, "]");
}

void check_values(const c2v::DualTokenPoolArguments& a) {
  const int64_t count = a.batch * a.segments;
  STD_TORCH_CHECK(a.offsets[0] == 0 && a.offsets[count] == a.num_rows,
                  "dual_token_pool: offsets must run from 0 to the number of rows, ", a.num_rows,
                  "; they run from ", a.offsets[0], " to ", a.offsets[count]);
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(a.offsets[i] <= a.offsets[i + 1], "dual_token_pool: offsets fall from ",
                    a.offsets[i], " to ", a.offsets[i + 1], " at index ", i + 1);
    STD_TORCH_CHECK(a.offsets[i] < a.offsets[i + 1], "dual_token_pool: a segment is empty");
  }
  for (int64_t i = 0; i < a.num_rows; ++i) {
    STD_TORCH_CHECK(a.rows[i] >= 0 && a.rows[i] < a.tokens, "dual_token_pool: rows[", i, "] is ",
                    a.rows[i], ", but hidden_states has ", a.tokens, " rows");
  }
}

// The inputs, contiguous, and the outputs: what keeps the pointers of `arguments` alive.
struct Call {
  Tensor hidden_states, rows, offsets, norm_weight;
  std::optional<Tensor> ranges;
  Tensor embeddings, norms;
  c2v::DualTokenPoolArguments arguments;
};

Call prepare(const Tensor& hidden_states, const Tensor& rows, const Tensor& offsets,
             const Tensor& norm_weight, double eps, int64_t segments, int64_t keep, bool normalize,
             int64_t precision_code, const std::optional<Tensor>& ranges) {
  check_shapes(hidden_states, rows, offsets, norm_weight, segments, keep);
  STD_TORCH_CHECK(precision_code >= 0 && precision_code <= 6,
                  "dual_token_pool: precision must be a code in [0, 6], got ", precision_code);
  const auto precision = static_cast<c2v::Precision>(precision_code);
  const int64_t batch = (offsets.size(0) - 1) / segments, width = segments * keep;
  const bool reads_ranges =
      precision == c2v::Precision::kInt8 || precision == c2v::Precision::kUint8;
  if (reads_ranges) check_ranges(ranges, hidden_states, width);
  const bool bits =
      precision == c2v::Precision::kBinary || precision == c2v::Precision::kUbinary;

  Call call{as_contiguous(hidden_states),
            as_contiguous(rows),
            as_contiguous(offsets),
            as_contiguous(norm_weight),
            reads_ranges ? std::optional<Tensor>(as_contiguous(*ranges)) : std::nullopt,
            torch::stable::new_empty(hidden_states, {batch, bits ? (width + 7) / 8 : width},
                                     output_dtype(precision)),
            torch::stable::new_empty(hidden_states, {batch}, ScalarType::Float),
            {}};
  c2v::DualTokenPoolArguments& a = call.arguments;
  a.hidden_states = call.hidden_states.const_data_ptr();
  a.rows = static_cast<const int32_t*>(call.rows.const_data_ptr());
  a.offsets = static_cast<const int32_t*>(call.offsets.const_data_ptr());
  a.norm_weight = call.norm_weight.const_data_ptr();
  a.ranges = reads_ranges ? static_cast<const float*>(call.ranges->const_data_ptr()) : nullptr;
  a.embeddings = call.embeddings.mutable_data_ptr();
  a.norms = static_cast<float*>(call.norms.mutable_data_ptr());
  a.tokens = hidden_states.size(0);
  a.hidden_size = hidden_states.size(1);
  a.num_rows = rows.size(0);
  a.batch = batch;
  a.segments = segments;
  a.keep = keep;
  a.hidden_dtype = float_dtype(hidden_states, "hidden_states");
  a.weight_dtype = float_dtype(norm_weight, "norm_weight");
  a.precision = precision;
  a.eps = static_cast<float>(eps);
  a.normalize = normalize;
  return call;
}

std::tuple<Tensor, Tensor> dual_token_pool_cpu(Tensor hidden_states, Tensor rows, Tensor offsets,
                                               Tensor norm_weight, double eps, int64_t segments,
                                               int64_t keep, bool normalize, int64_t precision,
                                               std::optional<Tensor> ranges) {
  const Call call = prepare(hidden_states, rows, offsets, norm_weight, eps, segments, keep,
                            normalize, precision, ranges);
  const c2v::DualTokenPoolArguments& arguments = call.arguments;
  check_values(arguments);
  // Under about 32k values a thread costs more to wake than it saves.
  const int64_t values_per_text = std::max<int64_t>(
      1, arguments.hidden_size * arguments.num_rows / std::max<int64_t>(1, arguments.batch));
  const int64_t grain_size = std::max<int64_t>(1, 32768 / values_per_text);
  torch::stable::parallel_for(0, arguments.batch, grain_size, [&](int64_t begin, int64_t end) {
    c2v::dual_token_pool_cpu(arguments, begin, end);
  });
  return {call.embeddings, call.norms};
}

#ifdef USE_CUDA
std::tuple<Tensor, Tensor> dual_token_pool_cuda(Tensor hidden_states, Tensor rows, Tensor offsets,
                                                Tensor norm_weight, double eps, int64_t segments,
                                                int64_t keep, bool normalize, int64_t precision,
                                                std::optional<Tensor> ranges) {
  const int32_t device = hidden_states.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Call call = prepare(hidden_states, rows, offsets, norm_weight, eps, segments, keep,
                            normalize, precision, ranges);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const char* error = c2v::dual_token_pool_cuda(call.arguments, stream);
  STD_TORCH_CHECK(error == nullptr, "dual_token_pool: ", error);
  return {call.embeddings, call.norms};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(c2v, m) {
  m.def(
      "dual_token_pool(Tensor hidden_states, Tensor rows, Tensor offsets, Tensor norm_weight, "
      "float eps, int segments, int keep, bool normalize, int precision, Tensor? ranges) "
      "-> (Tensor embeddings, Tensor norms)");
}

STABLE_TORCH_LIBRARY_IMPL(c2v, CPU, m) {
  m.impl("dual_token_pool", TORCH_BOX(&dual_token_pool_cpu));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(c2v, CUDA, m) {
  m.impl("dual_token_pool", TORCH_BOX(&dual_token_pool_cuda));
}
#endif

// Importing the module loads the library, which registers the ops.
extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "c2v_engine._C",
                                   "The compiled ops of C2V Engine.", -1, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
#ifdef C2V_CUDA_VERSION
  const char* cuda_version = C2V_CUDA_VERSION;
#else
  const char* cuda_version = "";
#endif
  if (PyModule_AddStringConstant(module, "cuda_version", cuda_version) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
