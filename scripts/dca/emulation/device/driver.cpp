// CUDA's driver interface, over the same device.
#include "driver.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>

#include "calls.h"
#include "properties.h"
#include "unknown.h"

using namespace dca;

namespace dca {

void *driver_function(const char *name) {
  Locked locked(device().lock);
  Dl_info own;
  dladdr(reinterpret_cast<void *>(&driver_function), &own);
  void *library = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  // Without a version it is the latest one.
  for (const std::string &one : {std::string(name) + "_v3", std::string(name) + "_v2", std::string(name)})
    if (void *found = library ? dlsym(library, one.c_str()) : nullptr; found && !is_unknown(found)) return found;
  return unknown_function(name);
}

}  // namespace dca

namespace {

// The number of the only device, and the address that stands for its context.
constexpr CUdevice ONLY = 0;
CUcontext context() { return reinterpret_cast<CUcontext>(&device()); }
thread_local CUcontext current = nullptr;

// Errors of both interfaces have the same numbers, but for a few of the run time's alone.
CUresult code(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? CUDA_ERROR_INVALID_VALUE : static_cast<CUresult>(error);
}

template <class Body>
CUresult driver(Body body) {
  Locked locked(device().lock);
  if (cudaError_t failed = failed_for_good()) return code(failed);
  return code(body());
}

template <class Body>
CUresult driver_in(const void *handle, Body body) {
  return driver([&] {
    Stream *stream = device().streams.of(handle);
    return stream ? body(stream) : cudaErrorInvalidResourceHandle;
  });
}

CUresult chosen(CUdevice number) { return number == ONLY ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }

void *pointer(CUdeviceptr address) { return reinterpret_cast<void *>(address); }
Function *function(CUfunction handle) { return reinterpret_cast<Function *>(handle); }

CUresult fill_memory(CUdeviceptr to, int value, size_t value_bytes, size_t count, CUstream handle, bool wait) {
  return driver_in(handle, [&](Stream *stream) {
    return fill(pointer(to), value, value_bytes, count * value_bytes, count * value_bytes, 1, stream, wait);
  });
}

CUresult copy_memory(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, CUstream handle, bool wait) {
  return driver_in(handle, [&](Stream *stream) { return copy(to, from, bytes, kind, stream, wait); });
}

// Parameters that are packed into one buffer, as pointers to each.
std::vector<void *> unpacked(const DcaKernel &facts, void **extra) {
  char *buffer = nullptr;
  for (void **one = extra; one && *one != CU_LAUNCH_PARAM_END; one += 2)
    if (*one == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = static_cast<char *>(one[1]);
  std::vector<void *> each;
  for (uint32_t i = 0; buffer && i < facts.parameters; i++) each.push_back(buffer + facts.offsets[i]);
  return each;
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned int) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char **text) {
  *text = "an error of the emulated device";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult, const char **text) {
  *text = "CUDA_ERROR";
  return CUDA_SUCCESS;
}
CUresult cuGetProcAddress(const char *name, void **to, int, cuuint64_t, CUdriverProcAddressQueryResult *found) {
  *to = driver_function(name);
  if (found) *found = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}
// Only a run time that is linked into the program asks for it.
CUresult cuGetExportTable(const void **, const CUuuid *) {
  Dl_info asker;
  std::string name = dladdr(__builtin_return_address(0), &asker) && asker.dli_fname ? asker.dli_fname : "the program";
  name = name.substr(name.rfind('/') + 1);
  // A profiler goes on without what it would measure on a GPU.
  if (name.rfind("libcupti", 0) == 0) return CUDA_ERROR_NOT_SUPPORTED;
  if (name.rfind("libcudart.so", 0) == 0)
    end({"DCA-836", "the program uses " + name + ", and the device stands in for another run time.", asker.dli_fname,
         std::string("name it: dca emulate --cudart ") + asker.dli_fname + " -- PROGRAM."});
  end({"DCA-836", name + " has CUDA's run time linked into it, which cannot be replaced.", "",
       "use a setting of the program that does not need " + name + "; what you compile, link with nvcc's --cudart shared."});
}

CUresult cuDeviceGetCount(int *count) {
  *count = 1;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *to, int number) {
  *to = number;
  return chosen(number);
}
CUresult cuDeviceGetName(char *name, int bytes, CUdevice number) {
  std::strncpy(name, properties().name().c_str(), static_cast<size_t>(bytes));
  return chosen(number);
}
CUresult cuDeviceGetUuid(CUuuid *to, CUdevice number) {
  std::memcpy(to, UUID, sizeof *to);
  return chosen(number);
}
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice number) {
  *bytes = total_memory();
  return chosen(number);
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice number) {
  if (CUresult error = chosen(number)) return error;
  return attribute(which, value) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice number, unsigned int *flags, int *active) {
  *flags = 0;
  *active = 1;
  return chosen(number);
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *to, CUdevice number) {
  *to = context();
  return chosen(number);
}
CUresult cuDevicePrimaryCtxRelease(CUdevice number) { return chosen(number); }
CUresult cuCtxGetCurrent(CUcontext *to) {
  *to = current;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext to) {
  current = to;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice *to) {
  *to = ONLY;
  return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() {
  return driver([] {
    device().streams.finish_all();
    return failed_for_good();
  });
}

CUresult cuMemAlloc(CUdeviceptr *to, size_t bytes) {
  return driver([&] {
    *to = reinterpret_cast<CUdeviceptr>(device().memory.allocate(bytes, Kind::device));
    return *to ? cudaSuccess : cudaErrorMemoryAllocation;
  });
}
CUresult cuMemFree(CUdeviceptr start) {
  return driver([&] {
    device().streams.finish_all();
    return device().memory.release(pointer(start), Kind::device) ? failed_for_good() : cudaErrorInvalidValue;
  });
}
CUresult cuMemGetInfo(size_t *left, size_t *total) {
  return driver([&] {
    *total = total_memory();
    *left = *total - device().memory.used();
    return cudaSuccess;
  });
}
CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) {
  return copy_memory(pointer(to), from, bytes, cudaMemcpyHostToDevice, nullptr, true);
}
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
  return copy_memory(to, pointer(from), bytes, cudaMemcpyDeviceToHost, nullptr, true);
}
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return copy_memory(pointer(to), pointer(from), bytes, cudaMemcpyDeviceToDevice, nullptr, true);
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
  return copy_memory(pointer(to), from, bytes, cudaMemcpyHostToDevice, stream, false);
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_memory(to, pointer(from), bytes, cudaMemcpyDeviceToHost, stream, false);
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_memory(pointer(to), pointer(from), bytes, cudaMemcpyDeviceToDevice, stream, false);
}
CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count) {
  return fill_memory(to, value, 1, count, nullptr, true);
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  return fill_memory(to, value, 1, count, stream, false);
}
CUresult cuMemsetD32(CUdeviceptr to, unsigned int value, size_t count) {
  return fill_memory(to, static_cast<int>(value), 4, count, nullptr, true);
}
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t count, CUstream stream) {
  return fill_memory(to, static_cast<int>(value), 4, count, stream, false);
}
CUresult cuPointerGetAttribute(void *to, CUpointer_attribute which, CUdeviceptr address) {
  return driver([&] {
    const Allocation *one = device().memory.find(static_cast<uintptr_t>(address));
    if (!one) return cudaErrorInvalidValue;
    bool of_host = one->kind == Kind::pinned || one->kind == Kind::registered;
    switch (which) {
      case CU_POINTER_ATTRIBUTE_CONTEXT: *static_cast<CUcontext *>(to) = context(); break;
      case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int *>(to) = ONLY; break;
      case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *static_cast<CUdeviceptr *>(to) = address; break;
      case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *static_cast<CUdeviceptr *>(to) = one->start; break;
      case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *static_cast<size_t *>(to) = one->bytes; break;
      case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *static_cast<unsigned int *>(to) = of_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        break;
      default: return cudaErrorNotSupported;
    }
    return cudaSuccess;
  });
}

CUresult cuModuleLoadData(CUmodule *to, const void *image) {
  return driver([&] {
    *to = reinterpret_cast<CUmodule>(load_image(image));
    return *to ? cudaSuccess : cudaErrorInvalidValue;
  });
}
CUresult cuModuleLoadDataEx(CUmodule *to, const void *image, unsigned int, CUjit_option *, void **) {
  return cuModuleLoadData(to, image);
}
CUresult cuModuleLoadFatBinary(CUmodule *to, const void *image) { return cuModuleLoadData(to, image); }
CUresult cuModuleLoad(CUmodule *to, const char *path) {
  if (!std::ifstream(path)) return CUDA_ERROR_FILE_NOT_FOUND;
  return driver([&] {
    *to = reinterpret_cast<CUmodule>(&device().modules.add_image(path, false));
    return cudaSuccess;
  });
}
CUresult cuModuleUnload(CUmodule module) {
  return driver([&] {
    device().streams.finish_all();
    device().modules.remove(reinterpret_cast<Module *>(module));
    return cudaSuccess;
  });
}
CUresult cuModuleGetFunction(CUfunction *to, CUmodule module, const char *name) {
  return driver([&] {
    auto &its = *reinterpret_cast<Module *>(module);
    if (!has_kernel(its, name)) return cudaErrorSymbolNotFound;
    *to = reinterpret_cast<CUfunction>(&device().modules.function(its, name));
    return cudaSuccess;
  });
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction handle) {
  return driver([&] {
    const DcaKernel &facts = *function(handle)->loaded().facts;
    switch (which) {
      case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = static_cast<int>(facts.static_shared); break;
      case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = facts.max_threads ? static_cast<int>(facts.max_threads) : MOST_THREADS;
        break;
      case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
      case CU_FUNC_ATTRIBUTE_NUM_REGS:  // ptxas's choice, which is not emulated
        *value = 0;
        break;
      default: return cudaErrorNotSupported;
    }
    return cudaSuccess;
  });
}
CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
  return driver([&] {
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return cudaSuccess;
    return allow_dynamic_shared(*function(handle), value);
  });
}
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction handle, int threads, size_t shared) {
  return driver([&] { return occupancy(*function(handle), threads, shared, blocks); });
}

CUresult cuLaunchKernel(CUfunction handle, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                        unsigned int by, unsigned int bz, unsigned int shared, CUstream stream, void **arguments,
                        void **extra) {
  return driver_in(stream, [&](Stream *in) {
    Function &one = *function(handle);
    std::vector<void *> each;
    if (!arguments) {
      each = unpacked(*one.loaded().facts, extra);
      arguments = each.data();
    }
    return launch(one, {{gx, gy, gz}, {bx, by, bz}, shared, in}, arguments);
  });
}
CUresult cuLaunchCooperativeKernel(CUfunction handle, unsigned int gx, unsigned int gy, unsigned int gz,
                                   unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
                                   CUstream stream, void **arguments) {
  return cuLaunchKernel(handle, gx, gy, gz, bx, by, bz, shared, stream, arguments, nullptr);
}

CUresult cuStreamCreate(CUstream *to, unsigned int flags) {
  return driver([&] {
    *to = reinterpret_cast<CUstream>(device().streams.create(!(flags & CU_STREAM_NON_BLOCKING), 0));
    return cudaSuccess;
  });
}
CUresult cuStreamDestroy(CUstream handle) {
  return driver_in(handle, [](Stream *stream) {
    return device().streams.destroy(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}
CUresult cuStreamSynchronize(CUstream handle) {
  return driver_in(handle, [](Stream *stream) {
    device().streams.finish(stream);
    return failed_for_good();
  });
}

// Handles and numbers of events are those of the run time.
CUresult cuEventCreate(CUevent *to, unsigned int flags) { return code(cudaEventCreateWithFlags(to, flags)); }
CUresult cuEventDestroy(CUevent event) { return code(cudaEventDestroy(event)); }
CUresult cuEventRecord(CUevent event, CUstream stream) { return code(cudaEventRecord(event, stream)); }
CUresult cuEventQuery(CUevent event) { return code(cudaEventQuery(event)); }
CUresult cuEventSynchronize(CUevent event) { return code(cudaEventSynchronize(event)); }
CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to) {
  return code(cudaEventElapsedTime(milliseconds, from, to));
}
#ifdef cuEventElapsedTime
// Headers from CUDA 13 on give the name above a version; the driver has both.
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to) {
  return code(cudaEventElapsedTime(milliseconds, from, to));
}
#endif

}  // extern "C"
