// What kernels use of <torch/all.h>, for the units that dca generates. The whole header brings autograd, nn, jit and
// every operator of ATen, and reading it takes most of the time of compiling a kernel.
#pragma once
#pragma push_macro("AT_PER_OPERATOR_HEADERS")
#undef AT_PER_OPERATOR_HEADERS
#define AT_PER_OPERATOR_HEADERS
#include <ATen/core/Tensor.h>
#include <ATen/DeviceGuard.h>
#include <ATen/Dispatch.h>
#include <ATen/TensorUtils.h>
#ifdef DCA_TORCH_FACTORIES
// torch::empty, torch::zeros and torch::from_blob are not those of ATen.
#include <torch/csrc/autograd/generated/variable_factories.h>
#endif
#pragma pop_macro("AT_PER_OPERATOR_HEADERS")
#include <optional>

namespace torch {
using namespace at;
using Dtype = at::ScalarType;
constexpr auto kUInt8 = at::kByte;
constexpr auto kInt8 = at::kChar;
constexpr auto kInt16 = at::kShort;
constexpr auto kInt32 = at::kInt;
constexpr auto kInt64 = at::kLong;
constexpr auto kFloat16 = at::kHalf;
constexpr auto kFloat32 = at::kFloat;
constexpr auto kFloat64 = at::kDouble;
}  // namespace torch
