// CUDA's run time: what nvcc's host code calls to register modules and to launch kernels.
#include <cuda_runtime_api.h>

#include <dlfcn.h>
#include <link.h>

#include <algorithm>

#include "calls.h"

using namespace dca;

namespace {

// What a module registers: magic, version, its fat binary.
struct FatBinaryWrapper {
  int magic, version;
  const void *data;
};

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void *stream;
};
thread_local Configuration configured;

cudaError_t start(const void *stub, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t handle) {
  return in_stream(handle, [&](Stream *stream) {
    Function *function = device().modules.of_stub(stub);
    if (!function) return cudaErrorInvalidDeviceFunction;
    return launch(*function, {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, stream}, arguments);
  });
}

// Its library, and its address there: one library has many, and several of them may have kernels of one name.
Module &registered(const void *fat_binary) {
  Dl_info info;
  link_map *library = nullptr;
  if (!dladdr1(fat_binary, &info, reinterpret_cast<void **>(&library), RTLD_DL_LINKMAP) || !info.dli_fname || !library)
    return device().modules.add("", 0);
  // Of the program itself the name is the word that it was called by.
  char *whole = realpath(info.dli_fname, nullptr);
  std::string path = whole ? whole : "/proc/self/exe";
  std::free(whole);
  return device().modules.add(path, reinterpret_cast<uintptr_t>(fat_binary) - library->l_addr);
}

}  // namespace

extern "C" {

void **__cudaRegisterFatBinary(void *wrapper) {
  Locked locked(device().lock);
  return reinterpret_cast<void **>(&registered(static_cast<FatBinaryWrapper *>(wrapper)->data));
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **module) {
  Locked locked(device().lock);
  device().modules.remove(reinterpret_cast<Module *>(module));
}
char __cudaInitModule(void **) { return 1; }

void __cudaRegisterFunction(void **module, const char *stub, char *, const char *name, int, uint3 *, uint3 *, dim3 *,
                            dim3 *, int *) {
  Locked locked(device().lock);
  Modules &modules = device().modules;
  modules.bind(stub, modules.function(*reinterpret_cast<Module *>(module), name));
}
void __cudaRegisterVar(void **module, char *host, char *, const char *name, int, size_t bytes, int constant,
                       int) {
  Locked locked(device().lock);
  const Kind kind = constant ? Kind::constant : Kind::variable;
  device().modules.bind_variable(host, *reinterpret_cast<Module *>(module), name, bytes, kind);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  configured = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configured.grid;
  *block = configured.block;
  *shared = configured.shared;
  *static_cast<void **>(stream) = configured.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *stub, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
  return start(stub, grid, block, arguments, shared, stream);
}
// Since CUDA 13 nvcc's host code asks for a kernel once, and launches what it got.
cudaError_t __cudaGetKernel(cudaKernel_t *to, const void *stub) {
  return call([&] {
    *to = reinterpret_cast<cudaKernel_t>(const_cast<void *>(stub));
    return device().modules.of_stub(stub) ? cudaSuccess : cudaErrorInvalidDeviceFunction;
  });
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
  return start(kernel, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void *stub, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t stream) {
  return start(stub, grid, block, arguments, shared, stream);
}
#if CUDART_VERSION >= 11080
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *stub, void **arguments) {
  for (unsigned i = 0; i < config->numAttrs; i++) {
    const cudaLaunchAttribute &one = config->attrs[i];
    if (one.id != cudaLaunchAttributeClusterDimension) continue;
    if (one.val.clusterDim.x * one.val.clusterDim.y * one.val.clusterDim.z > 1)
      end({"DCA-836", "a kernel is launched in clusters of thread blocks, which are not emulated.", "",
           "use another kernel, or a GPU."});
  }
  return start(stub, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, config->stream);
}
#endif

}  // extern "C"
