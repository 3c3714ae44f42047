// CUDA's run time: the device, its errors, its kernels' attributes.
#include <cuda_runtime_api.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "calls.h"
#include "driver.h"
#include "properties.h"

using namespace dca;

namespace {

cudaError_t chosen(int number) {
  if (number == 0) return cudaSuccess;
  if (number > 0)
    say({"DCA-836", "the program asks for device " + std::to_string(number) + "; one device, number 0, is emulated.", "",
         "use one device a process: one rank, or --tensor-parallel-size 1."});
  return cudaErrorInvalidDevice;
}

cudaError_t set(int *to, int value) {
  if (!to) return cudaErrorInvalidValue;
  *to = value;
  return cudaSuccess;
}

Function *find(const void *stub) { return device().modules.of_stub(stub); }

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};
// CUDA's own names; the texts are those of its documentation, shortened.
constexpr ErrorText ERRORS[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidSymbol, "cudaErrorInvalidSymbol", "invalid device symbol"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorPeerAccessUnsupported, "cudaErrorPeerAccessUnsupported", "peer access is not supported"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered", "host memory is already registered"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered", "host memory is not registered"},
};

const ErrorText *text_of(cudaError_t error) {
  for (const ErrorText &one : ERRORS)
    if (one.error == error) return &one;
  return nullptr;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int *count) { return result_of_host(set(count, 1)); }
cudaError_t cudaGetDevice(int *number) { return result_of_host(set(number, 0)); }
cudaError_t cudaSetDevice(int number) { return result_of_host(chosen(number)); }
#if CUDART_VERSION >= 12000
cudaError_t cudaInitDevice(int number, unsigned int, unsigned int) { return result(chosen(number)); }
#endif
cudaError_t cudaSetDeviceFlags(unsigned int) { return result(cudaSuccess); }
cudaError_t cudaGetDeviceFlags(unsigned int *flags) {
  *flags = 0;
  return result(cudaSuccess);
}

cudaError_t cudaDeviceSynchronize() {
  return call([] {
    device().streams.finish_all();
    return failed_for_good();
  });
}

cudaError_t cudaDeviceReset() {
  Locked locked(device().lock);
  forget_errors();
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *to, int number) {
  if (!to) return result(cudaErrorInvalidValue);
  if (cudaError_t error = chosen(number)) return result(error);
  const Properties &from = properties();
  *to = {};
  std::strncpy(to->name, from.name().c_str(), sizeof to->name - 1);
  std::memcpy(&to->uuid, UUID, sizeof to->uuid);
  to->totalGlobalMem = total_memory();
  to->sharedMemPerBlock = SHARED_BY_DEFAULT;
  to->regsPerBlock = to->regsPerMultiprocessor = REGISTERS;
  to->warpSize = WARP;
  to->memPitch = 0x7fffffff;
  to->maxThreadsPerBlock = MOST_THREADS;
  std::copy(BLOCK_LIMITS, BLOCK_LIMITS + 3, to->maxThreadsDim);
  std::copy(GRID_LIMITS, GRID_LIMITS + 3, to->maxGridSize);
  to->totalConstMem = 64 * 1024;
  to->major = from.major;
  to->minor = from.minor;
  to->textureAlignment = 512;
  to->multiProcessorCount = from.multiprocessors;
  to->canMapHostMemory = to->concurrentKernels = to->asyncEngineCount = to->unifiedAddressing = 1;
  to->managedMemory = to->hostRegisterSupported = to->streamPrioritiesSupported = 1;
  to->canUseHostPointerForRegisteredMem = 1;
  to->memoryBusWidth = from.bus_bits;
  to->l2CacheSize = from.l2_bytes;
  to->maxThreadsPerMultiProcessor = from.threads_per_multiprocessor;
  to->sharedMemPerMultiprocessor = from.shared_per_multiprocessor;
  to->sharedMemPerBlockOptin = from.shared_per_block;
  to->reservedSharedMemPerBlock = SHARED_RESERVED;
  to->maxBlocksPerMultiProcessor = from.blocks_per_multiprocessor;
#if CUDART_VERSION < 13000
  to->clockRate = CLOCK_KHZ;
  to->memoryClockRate = MEMORY_CLOCK_KHZ;
#endif
  return result(cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int number) {
  if (cudaError_t error = chosen(number)) return result(error);
  return result(value && attribute(which, value) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { return result(set(can, 0)); }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned int) { return result(cudaErrorPeerAccessUnsupported); }

cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int number) {
  if (cudaError_t error = chosen(number)) return result(error);
  if (!text || bytes < static_cast<int>(sizeof PCI_BUS)) return result(cudaErrorInvalidValue);
  std::memcpy(text, PCI_BUS, sizeof PCI_BUS);
  return result(cudaSuccess);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return result(cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int *version) { return result(set(version, CUDART_VERSION)); }
cudaError_t cudaRuntimeGetVersion(int *version) { return result(set(version, CUDART_VERSION)); }

cudaError_t cudaGetLastError() { return last_error(true); }
cudaError_t cudaPeekAtLastError() { return last_error(false); }

const char *cudaGetErrorName(cudaError_t error) {
  const ErrorText *one = text_of(error);
  return one ? one->name : "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
  const ErrorText *one = text_of(error);
  return one ? one->text : "unrecognized error code";
}

cudaError_t cudaProfilerStart() { return result(cudaSuccess); }
cudaError_t cudaProfilerStop() { return result(cudaSuccess); }

#if CUDART_VERSION < 13000
cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long,
                                    cudaDriverEntryPointQueryResult *found) {
  *function = driver_function(name);
  if (found) *found = cudaDriverEntryPointSuccess;
  return result(cudaSuccess);
}
#endif

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned int, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found) {
  *function = driver_function(name);
  if (found) *found = cudaDriverEntryPointSuccess;
  return result(cudaSuccess);
}
#endif

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *to, const void *stub) {
  return call([&] {
    Function *function = find(stub);
    if (!to || !function) return cudaErrorInvalidDeviceFunction;
    const DcaKernel &facts = *function->loaded().facts;
    *to = {};
    to->sharedSizeBytes = facts.static_shared;
    to->maxThreadsPerBlock = facts.max_threads ? static_cast<int>(facts.max_threads) : MOST_THREADS;
    to->ptxVersion = to->binaryVersion = properties().major * 10 + properties().minor;
    to->maxDynamicSharedSizeBytes =
        static_cast<int>(std::max(function->most_dynamic_shared, SHARED_BY_DEFAULT - facts.static_shared));
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetAttribute(const void *stub, cudaFuncAttribute which, int value) {
  return call([&] {
    Function *function = find(stub);
    if (!function) return cudaErrorInvalidDeviceFunction;
    if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    return allow_dynamic_shared(*function, value);
  });
}

cudaError_t cudaFuncSetCacheConfig(const void *stub, cudaFuncCache) {
  return call([&] { return find(stub) ? cudaSuccess : cudaErrorInvalidDeviceFunction; });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *stub, int threads,
                                                                   size_t dynamic_shared, unsigned int) {
  return call([&] {
    Function *function = find(stub);
    return blocks && function ? occupancy(*function, threads, dynamic_shared, blocks) : cudaErrorInvalidDeviceFunction;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *stub, int threads,
                                                          size_t dynamic_shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, stub, threads, dynamic_shared, 0);
}

}  // extern "C"
