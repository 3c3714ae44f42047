// Registers the index conversion with torch's stable ABI, in a namespace of its own: DCA_NAMESPACE. Upstream's source,
// DCA_SOURCE, is compiled unchanged, behind the stand-in for <torch/all.h> beside this file.
#include DCA_SOURCE

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

namespace {
struct Delete {
  void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
};

// An argument as it lies on the stack: a tensor belongs to whoever takes it from there.
template <typename T>
class Argument {
 public:
  explicit Argument(StableIValue value) { std::memcpy(&value_, &value, sizeof(value_)); }
  T& get() { return value_; }

 private:
  T value_;
};

template <>
class Argument<torch::Tensor> {
 public:
  explicit Argument(StableIValue value) : owner_(handle(value)), tensor_(owner_.get()) {}
  torch::Tensor& get() { return tensor_; }

 private:
  static AtenTensorHandle handle(StableIValue value) {
    AtenTensorHandle handle;
    std::memcpy(&handle, &value, sizeof(handle));
    return handle;
  }

  std::unique_ptr<std::remove_pointer_t<AtenTensorHandle>, Delete> owner_;
  torch::Tensor tensor_;
};

template <typename... Types, std::size_t... Places>
void call(void (*function)(Types...), StableIValue* stack, std::index_sequence<Places...>) {
  std::tuple<Argument<std::decay_t<Types>>...> arguments{Argument<std::decay_t<Types>>(stack[Places])...};
  function(std::get<Places>(arguments).get()...);
}

template <auto function>
struct Boxed;

template <typename... Types, void (*function)(Types...)>
struct Boxed<function> {
  static void run(StableIValue* stack, uint64_t, uint64_t) {
    call(function, stack, std::index_sequence_for<Types...>{});
  }
};
}  // namespace

// The macros of torch do not expand the name.
#define DCA_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define DCA_LIBRARY_IMPL(name, m) STABLE_TORCH_LIBRARY_IMPL(name, CUDA, m)

DCA_LIBRARY(DCA_NAMESPACE, m) {
  m.def(
      "convert_vertical_slash_indexes(Tensor(a!) block_count, Tensor(b!) block_offset, Tensor(c!) column_count, "
      "Tensor(d!) column_index, Tensor q_seqlens, Tensor kv_seqlens, Tensor vertical_indexes, Tensor slash_indexes, "
      "int context_size, int block_size_M, int block_size_N, bool causal) -> ()");
  m.def(
      "convert_vertical_slash_indexes_mergehead(Tensor(a!) block_count, Tensor(b!) block_offset, "
      "Tensor(c!) column_count, Tensor(d!) column_index, Tensor q_seqlens, Tensor kv_seqlens, Tensor vertical_indexes, "
      "Tensor slash_indexes, Tensor vertical_indices_count, Tensor slash_indices_count, int context_size, "
      "int block_size_M, int block_size_N, bool causal) -> ()");
}

DCA_LIBRARY_IMPL(DCA_NAMESPACE, m) {
  m.impl("convert_vertical_slash_indexes", &Boxed<&convert_vertical_slash_indexes>::run);
  m.impl("convert_vertical_slash_indexes_mergehead", &Boxed<&convert_vertical_slash_indexes_mergehead>::run);
}
