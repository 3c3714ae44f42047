// What the functions of CUDA's interfaces share.
#ifndef DCA_EMULATION_CALLS_H
#define DCA_EMULATION_CALLS_H

#include "device.h"
#include "report.h"

namespace dca {

// Copies memory in a stream's order; a copy to or from memory that is not pinned has taken place when it returns, as
// CUDA's API synchronisation behaviour says.
cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind, Stream *, bool wait);
cudaError_t copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                      cudaMemcpyKind, Stream *, bool wait);
cudaError_t fill(void *to, int value, size_t value_bytes, size_t pitch, size_t width, size_t height, Stream *, bool wait);
cudaError_t record(Event *, Stream *);
cudaError_t wait_for(Stream *, const Event *);
// A module whose image is in memory: PTX, a fat binary or a cubin. Null with an error if it is none of them.
Module *load_image(const void *image);

// Runs a call under the device's lock and keeps its error.
template <class Body>
cudaError_t call(Body body) {
  Locked locked(device().lock);
  return result(body());
}

// The same with the stream of a handle.
template <class Body>
cudaError_t in_stream(const void *handle, Body body) {
  return call([&] {
    Stream *stream = device().streams.of(handle);
    return stream ? body(stream) : cudaErrorInvalidResourceHandle;
  });
}

}  // namespace dca

#endif
