// torch's checks without streams; to be included before torch's headers, which use them too.
//
// torch's own put their messages together in a std::ostringstream, whose constructor libtorch exports.
// In an extension that was linked with another libstdc++ than libtorch was, the stream is then made
// by the one and written to by the other: the message ends at its first number, or the process.
#pragma once

#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace c2v {

template <typename Part>
void append(std::string& message, const Part& part) {
  if constexpr (std::is_convertible_v<const Part&, std::string_view>) {
    message += std::string_view(part);
  } else {
    message += std::to_string(part);
  }
}

// The condition is the message where there is no other.
template <typename... Parts>
[[noreturn]] void fail(const char* condition, const Parts&... parts) {
  std::string message = sizeof...(parts) == 0 ? condition : "";
  (append(message, parts), ...);
  throw std::runtime_error(message);
}

}  // namespace c2v

#undef STD_TORCH_CHECK
#define STD_TORCH_CHECK(condition, ...)                  \
  if (C10_UNLIKELY_OR_CONST(!(condition))) {             \
    ::c2v::fail(#condition " is not so", ##__VA_ARGS__); \
  }

#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call)       \
  if ((call) != TORCH_SUCCESS) {           \
    ::c2v::fail("torch failed in " #call); \
  }
