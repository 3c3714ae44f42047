// SPDX-License-Identifier: Apache-2.0
// The plugin's one operator, on torch's stable ABI: the C functions below are all that is used of torch, and they stay
// the same from release to release. So the module is compiled without torch, and serves every one that has them.
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "lines.cuh"

extern "C" {
struct AtenTensorOpaque;
struct TorchLibraryOpaque;
using Tensor = AtenTensorOpaque *;
using Library = TorchLibraryOpaque *;
int32_t aoti_torch_library_init_fragment(const char *, const char *, uint32_t, Library *);
int32_t aoti_torch_library_init_impl(const char *, const char *, const char *, uint32_t, Library *);
int32_t aoti_torch_library_def(Library, const char *);
int32_t aoti_torch_library_impl(Library, const char *, void (*)(uint64_t *, uint64_t, uint64_t));
int32_t aoti_torch_get_data_ptr(Tensor, void **);
int32_t aoti_torch_get_size(Tensor, int64_t, int64_t *);
int32_t aoti_torch_get_device_index(Tensor, int32_t *);
int32_t aoti_torch_get_current_cuda_stream(int32_t, void **);
int32_t aoti_torch_delete_tensor_object(Tensor);
}

namespace {

constexpr const char *kSchema =
    "convert_lines(Tensor query_lengths, Tensor key_lengths, Tensor verticals, Tensor slashes, Tensor vertical_counts, "
    "Tensor slash_counts, Tensor(a!) block_count, Tensor(b!) block_offset, Tensor(c!) column_count, "
    "Tensor(d!) column_index, bool causal) -> ()";
constexpr int kTensors = 10;

void check(bool good, const char *what) {
  if (!good) throw std::runtime_error(std::string("vllm_dca::convert_lines: ") + what);
}

// What torch hands over is ours to release.
struct Arguments {
  Tensor tensors[kTensors];
  explicit Arguments(const uint64_t *stack) {
    for (int i = 0; i < kTensors; i++) tensors[i] = reinterpret_cast<Tensor>(stack[i]);
  }
  ~Arguments() {
    for (Tensor one : tensors) aoti_torch_delete_tensor_object(one);
  }
  int *data(int i) const {
    void *found = nullptr;
    check(aoti_torch_get_data_ptr(tensors[i], &found) == 0, "a tensor has no data");
    return static_cast<int *>(found);
  }
  int64_t size(int i, int dimension) const {
    int64_t found = 0;
    check(aoti_torch_get_size(tensors[i], dimension, &found) == 0, "a tensor lacks a dimension");
    return found;
  }
};

void convert(uint64_t *stack, uint64_t, uint64_t) {
  const Arguments given(stack);
  const bool causal = stack[kTensors] & 1;
  const int64_t sequences = given.size(2, 0), heads = given.size(2, 1), rows = given.size(6, 2);
  int32_t device = 0;
  void *stream = nullptr;
  check(aoti_torch_get_device_index(given.tensors[0], &device) == 0, "a tensor has no device");
  check(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "there is no CUDA stream");
  const dim3 grid(heads, sequences, (rows + kRow - 1) / kRow);
  convert_lines<<<grid, kRow, 0, static_cast<cudaStream_t>(stream)>>>(
      given.data(0), given.data(1), given.data(2), given.data(3), given.data(4), given.data(5), given.data(6),
      given.data(7), given.data(8), given.data(9), heads, rows, given.size(2, 2), given.size(3, 2), causal);
  const cudaError_t error = cudaGetLastError();
  check(error == cudaSuccess, cudaGetErrorString(error));
}

struct Registration {
  Registration() {
    Library definition = nullptr, implementation = nullptr;
    check(aoti_torch_library_init_fragment("vllm_dca", "module.cu", __LINE__, &definition) == 0 &&
              aoti_torch_library_def(definition, kSchema) == 0 &&
              aoti_torch_library_init_impl("vllm_dca", "CUDA", "module.cu", __LINE__, &implementation) == 0 &&
              aoti_torch_library_impl(implementation, "convert_lines", convert) == 0,
          "torch does not register it");
  }
} registration;

}  // namespace
