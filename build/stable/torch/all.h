// What a source of plain kernels uses of <torch/all.h>, over the C functions that torch keeps from release to release.
//
// torch's own class for them (torch/csrc/stable/tensor.h) counts with shared_ptr and writes messages with stringstream,
// whose symbols systems of manylinux_2_28 do not have.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <stdexcept>

namespace torch {
// A tensor that somebody else owns.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}

  int64_t size(int64_t dimension) const {
    int64_t size = 0;
    check(aoti_torch_get_size(handle_, dimension, &size));
    return size;
  }

  int32_t get_device() const {
    int32_t device = 0;
    check(aoti_torch_get_device_index(handle_, &device));
    return device;
  }

  template <typename T>
  T* data_ptr() const {
    void* data = nullptr;
    check(aoti_torch_get_data_ptr(handle_, &data));
    return static_cast<T*>(data);
  }

 private:
  static void check(AOTITorchError error) {
    if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("torch refused a tensor");
  }

  AtenTensorHandle handle_;
};
}  // namespace torch
