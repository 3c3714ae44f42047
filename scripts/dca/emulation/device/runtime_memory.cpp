// CUDA's run time: memory, copies, variables of modules.
#include <cuda_runtime_api.h>

#include "calls.h"
#include "properties.h"

using namespace dca;

namespace {

cudaError_t allocate(void **to, size_t bytes, Kind kind) {
  return call([&] {
    if (!to) return cudaErrorInvalidValue;
    *to = nullptr;
    if (!bytes) return cudaSuccess;
    *to = device().memory.allocate(bytes, kind);
    return *to ? cudaSuccess : cudaErrorMemoryAllocation;
  });
}

// Also after a failure, unlike on a GPU: programs free memory where they cannot report one.
cudaError_t release(void *start, Kind kind) {
  Locked locked(device().lock);
  if (!start) return cudaSuccess;
  // What still runs may use it.
  device().streams.finish_all();
  if (device().memory.release(start, kind)) return cudaSuccess;
  const auto address = reinterpret_cast<uintptr_t>(start);
  const std::string where = device().memory.about(address, 1);
  say({"DCA-837", std::string("the program frees ") + (kind == Kind::pinned ? "pinned memory" : "memory of the device") + " at " +
                      hexadecimal(address) + ", where no such allocation begins" + (where.empty() ? "" : ": " + where) + ".",
       "", "the call returns its error, cudaErrorInvalidValue, to the program."});
  return result(cudaErrorInvalidValue);
}

// The place in a variable's storage; null if it is not the module's, or not of this size.
char *place(const void *symbol, size_t bytes, size_t offset, Variable **variable = nullptr) {
  Variable *one = device().modules.of_host(symbol);
  if (variable) *variable = one;
  return one && offset <= one->bytes && bytes <= one->bytes - offset ? one->storage + offset : nullptr;
}

// A variable's initial value is known when a kernel of its module has been loaded.
void must_be_known(const Variable &one) {
  if (one.initialised) return;
  for (bool written : one.written)
    if (!written)
      end({"DCA-836", "the variable " + one.name + " is read before a kernel of its module was launched.",
           "its initial value is in the module's PTX, which is read with the first kernel.", "write it first."});
}

cudaError_t to_symbol(const void *symbol, const void *from, size_t bytes, size_t offset, cudaStream_t handle, bool wait) {
  return in_stream(handle, [&](Stream *stream) {
    Variable *one = nullptr;
    char *to = place(symbol, bytes, offset, &one);
    if (!to) return one ? cudaErrorInvalidValue : cudaErrorInvalidSymbol;
    for (size_t i = 0; i < bytes; i++) one->written[offset + i] = true;
    return copy(to, from, bytes, cudaMemcpyDefault, stream, wait);
  });
}

cudaError_t from_symbol(void *to, const void *symbol, size_t bytes, size_t offset, cudaStream_t handle, bool wait) {
  return in_stream(handle, [&](Stream *stream) {
    Variable *one = nullptr;
    const char *from = place(symbol, bytes, offset, &one);
    if (!from) return one ? cudaErrorInvalidValue : cudaErrorInvalidSymbol;
    must_be_known(*one);
    return copy(to, from, bytes, cudaMemcpyDefault, stream, wait);
  });
}

}  // namespace

extern "C" {

// What torch's own count of memory is made of where its allocator does not count: bytes that are allocated, and the most
// that were since `forget` was given last.
void dca_emulation_memory(size_t *used, size_t *most, int forget) {
  Locked locked(device().lock);
  if (forget) device().memory.forget_most();
  *used = device().memory.used();
  *most = device().memory.most_used();
}

cudaError_t cudaMalloc(void **to, size_t bytes) { return allocate(to, bytes, Kind::device); }
cudaError_t cudaMallocAsync(void **to, size_t bytes, cudaStream_t) { return allocate(to, bytes, Kind::device); }
cudaError_t cudaMallocManaged(void **to, size_t bytes, unsigned int) { return allocate(to, bytes, Kind::managed); }
cudaError_t cudaMallocHost(void **to, size_t bytes) { return allocate(to, bytes, Kind::pinned); }
cudaError_t cudaHostAlloc(void **to, size_t bytes, unsigned int) { return allocate(to, bytes, Kind::pinned); }
cudaError_t cudaFree(void *start) { return release(start, Kind::device); }
cudaError_t cudaFreeAsync(void *start, cudaStream_t) { return release(start, Kind::device); }
cudaError_t cudaFreeHost(void *start) { return release(start, Kind::pinned); }

cudaError_t cudaMallocPitch(void **to, size_t *pitch, size_t width, size_t height) {
  if (!pitch) return result(cudaErrorInvalidValue);
  *pitch = (width + 511) / 512 * 512;
  return allocate(to, *pitch * height, Kind::device);
}

cudaError_t cudaHostRegister(void *start, size_t bytes, unsigned int) {
  return call([&] { return device().memory.enlist(start, bytes) ? cudaSuccess : cudaErrorHostMemoryAlreadyRegistered; });
}

cudaError_t cudaHostUnregister(void *start) {
  return call([&] {
    return device().memory.release(start, Kind::registered) ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
  });
}

cudaError_t cudaHostGetDevicePointer(void **to, void *host, unsigned int) {
  return call([&] {
    if (!to || !device().memory.find(reinterpret_cast<uintptr_t>(host))) return cudaErrorInvalidValue;
    *to = host;
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
  return call([&] {
    if (total) *total = total_memory();
    if (left) *left = total_memory() - device().memory.used();
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *to, const void *address) {
  return call([&] {
    if (!to) return cudaErrorInvalidValue;
    *to = {};
    const Allocation *one = device().memory.find(reinterpret_cast<uintptr_t>(address));
    auto *pointer = const_cast<void *>(address);
    if (!one) {
      to->device = -1;
      to->hostPointer = pointer;
      return cudaSuccess;
    }
    bool of_host = one->kind == Kind::pinned || one->kind == Kind::registered;
    to->type = of_host ? cudaMemoryTypeHost : one->kind == Kind::managed ? cudaMemoryTypeManaged : cudaMemoryTypeDevice;
    to->devicePointer = pointer;
    to->hostPointer = to->type == cudaMemoryTypeDevice ? nullptr : pointer;
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  return in_stream(nullptr, [&](Stream *stream) { return copy(to, from, bytes, kind, stream, true); });
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle) {
  return in_stream(handle, [&](Stream *stream) { return copy(to, from, bytes, kind, stream, false); });
}
cudaError_t cudaMemcpyPeer(void *to, int, const void *from, int, size_t bytes) {
  return cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes, cudaStream_t handle) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle);
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
  return in_stream(nullptr, [&](Stream *stream) {
    return copy_rows(to, to_pitch, from, from_pitch, width, height, kind, stream, true);
  });
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t handle) {
  return in_stream(handle, [&](Stream *stream) {
    return copy_rows(to, to_pitch, from, from_pitch, width, height, kind, stream, false);
  });
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) {
  return in_stream(nullptr, [&](Stream *stream) { return fill(to, value, 1, bytes, bytes, 1, stream, true); });
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t handle) {
  return in_stream(handle, [&](Stream *stream) { return fill(to, value, 1, bytes, bytes, 1, stream, false); });
}
cudaError_t cudaMemset2D(void *to, size_t pitch, int value, size_t width, size_t height) {
  return in_stream(nullptr, [&](Stream *stream) { return fill(to, value, 1, pitch, width, height, stream, true); });
}
cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t height, cudaStream_t handle) {
  return in_stream(handle, [&](Stream *stream) { return fill(to, value, 1, pitch, width, height, stream, false); });
}

cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t bytes, size_t offset, cudaMemcpyKind) {
  return to_symbol(symbol, from, bytes, offset, nullptr, true);
}
cudaError_t cudaMemcpyToSymbolAsync(const void *symbol, const void *from, size_t bytes, size_t offset, cudaMemcpyKind,
                                    cudaStream_t handle) {
  return to_symbol(symbol, from, bytes, offset, handle, false);
}
cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t offset, cudaMemcpyKind) {
  return from_symbol(to, symbol, bytes, offset, nullptr, true);
}
cudaError_t cudaMemcpyFromSymbolAsync(void *to, const void *symbol, size_t bytes, size_t offset, cudaMemcpyKind,
                                      cudaStream_t handle) {
  return from_symbol(to, symbol, bytes, offset, handle, false);
}
cudaError_t cudaGetSymbolAddress(void **to, const void *symbol) {
  return call([&] {
    Variable *one = nullptr;
    *to = place(symbol, 0, 0, &one);
    if (!one) return cudaErrorInvalidSymbol;
    must_be_known(*one);
    return cudaSuccess;
  });
}
cudaError_t cudaGetSymbolSize(size_t *bytes, const void *symbol) {
  return call([&] {
    Variable *one = device().modules.of_host(symbol);
    if (!one) return cudaErrorInvalidSymbol;
    *bytes = one->bytes;
    return cudaSuccess;
  });
}

}  // extern "C"
