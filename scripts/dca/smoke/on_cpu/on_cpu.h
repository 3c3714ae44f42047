// Lets g++ compile the unmodified vertical_slash_index.cu for the CPU; given with -include. Threads run one by one.
//
// g++ cannot read a launch `kernel<<<dimGrid, dimBlock>>>(arguments)`. Each kernel is named twice, where it is defined
// and where it is launched, so its name is a macro that counts: at the launch it opens two argument lists and the name
// of an operator, `launch<Of<kernel, &operator`, and the `<<`, `<`, `>>>` and arguments that follow complete them.
// The declarations of dimGrid and dimBlock leave a type of that name behind, which may stand in an argument list.
#pragma once
#include <cstdint>

#define __global__
#define __device__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline thread_local dim3 gridDim{1}, blockDim{1}, blockIdx{0}, threadIdx{0};

template <class A, class B>
auto max(A a, B b) -> decltype(a + b) {
  return a > b ? a : b;
}
template <class A, class B>
auto min(A a, B b) -> decltype(a + b) {
  return a < b ? a : b;
}

namespace on_cpu {
template <class Grid, class Block>
void operator<<(dim3, dim3) {}

template <auto kernel, auto shape>
struct Of {
  static constexpr auto run = kernel;
};

template <class Kernel, class... Arguments>
void launch(Arguments... arguments) {
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) Kernel::run(arguments...);
}
}  // namespace on_cpu

#define dimGrid(...) grid(__VA_ARGS__); ::gridDim = grid; struct dimGrid {}
#define dimBlock(...) block(__VA_ARGS__); ::blockDim = block; struct dimBlock {}

#define ON_CPU_JOIN(name, number) name##number
#define ON_CPU_NAMED(name, number) ON_CPU_JOIN(name, number)
#define ON_CPU_LAUNCH(kernel) on_cpu::launch<on_cpu::Of<kernel, &on_cpu::operator
#define convert_vertical_slash_indexes_kernel ON_CPU_NAMED(on_cpu_, __COUNTER__)
#define convert_vertical_slash_indexes_kernel_mergehead ON_CPU_NAMED(on_cpu_, __COUNTER__)
#define on_cpu_1 ON_CPU_LAUNCH(on_cpu_0)
#define on_cpu_3 ON_CPU_LAUNCH(on_cpu_2)
