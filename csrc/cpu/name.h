// Strings among the arguments of an op.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/headeronly/util/shim_utils.h>

#include <string>

namespace args_fast {

// In place of std::string, which torch's own conversion leaks at every call (2.13: it returns a copy
// of what it has allocated).
struct Name {
  std::string text;
};

}  // namespace args_fast

template <>
struct torch::stable::detail::ToImpl<args_fast::Name> {
  static args_fast::Name call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length;
    const char* text;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
    args_fast::Name name{std::string(text, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return name;
  }
};
