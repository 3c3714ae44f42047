// CUDA's run time: streams and events.
#include <cuda_runtime_api.h>

#include "calls.h"

using namespace dca;

namespace {

// What a program that asks in a loop advances with each question.
constexpr uint64_t AT_A_QUESTION = 2'000'000;

Event *event_of(cudaEvent_t handle) { return reinterpret_cast<Event *>(handle); }

template <class Body>
cudaError_t of_event(cudaEvent_t handle, Body body) {
  return call([&] { return handle ? body(event_of(handle)) : cudaErrorInvalidResourceHandle; });
}

cudaError_t create(cudaStream_t *to, unsigned int flags, int priority) {
  return call([&] {
    if (!to || flags & ~static_cast<unsigned int>(cudaStreamNonBlocking)) return cudaErrorInvalidValue;
    *to = reinterpret_cast<cudaStream_t>(device().streams.create(!(flags & cudaStreamNonBlocking), priority));
    return cudaSuccess;
  });
}

}  // namespace

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t *to) { return create(to, cudaStreamDefault, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *to, unsigned int flags) { return create(to, flags, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *to, unsigned int flags, int priority) {
  return create(to, flags, priority);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return in_stream(handle, [&](Stream *stream) {
    return device().streams.destroy(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int *to) {
  return in_stream(handle, [&](Stream *stream) {
    *to = stream->priority;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned int *to) {
  return in_stream(handle, [&](Stream *stream) {
    *to = stream->blocking ? cudaStreamDefault : cudaStreamNonBlocking;
    return cudaSuccess;
  });
}
#if CUDART_VERSION >= 12000
cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long *to) {
  return in_stream(handle, [&](Stream *stream) {
    *to = stream->number;
    return cudaSuccess;
  });
}
#endif
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return in_stream(handle, [&](Stream *stream) {
    device().streams.finish(stream);
    return failed_for_good();
  });
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return in_stream(handle, [&](Stream *stream) {
    if (!device().streams.idle(stream)) device().streams.run(AT_A_QUESTION);
    return device().streams.idle(stream) ? failed_for_good() : cudaErrorNotReady;
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int) {
  return in_stream(handle, [&](Stream *stream) {
    return event ? wait_for(stream, event_of(event)) : cudaErrorInvalidResourceHandle;
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *data) {
  return in_stream(handle, [&](Stream *stream) {
    device().streams.enqueue(stream, [=] { function(data); });
    device().streams.run(AT_A_QUESTION);
    return failed_for_good();
  });
}
cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void *data, unsigned int) {
  return in_stream(handle, [&](Stream *stream) {
    device().streams.enqueue(stream, [=] { function(handle, cudaSuccess, data); });
    device().streams.run(AT_A_QUESTION);
    return failed_for_good();
  });
}

// Nothing is ever captured: cudaStreamBeginCapture is not emulated.
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *to) {
  return in_stream(handle, [&](Stream *) {
    *to = cudaStreamCaptureStatusNone;
    return cudaSuccess;
  });
}
// The other results are those of a capture. CUDA 13 has the last of these forms alone, by the name without a number.
#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus *to, unsigned long long *,
                                     cudaGraph_t *, const cudaGraphNode_t **, const cudaGraphEdgeData **, size_t *) {
  return cudaStreamIsCapturing(handle, to);
}
#elif CUDART_VERSION >= 12000
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t handle, cudaStreamCaptureStatus *to, unsigned long long *,
                                        cudaGraph_t *, const cudaGraphNode_t **, size_t *) {
  return cudaStreamIsCapturing(handle, to);
}
#if CUDART_VERSION >= 12030
cudaError_t cudaStreamGetCaptureInfo_v3(cudaStream_t handle, cudaStreamCaptureStatus *to, unsigned long long *,
                                        cudaGraph_t *, const cudaGraphNode_t **, const cudaGraphEdgeData **, size_t *) {
  return cudaStreamIsCapturing(handle, to);
}
#endif
#endif
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  thread_local cudaStreamCaptureMode own = cudaStreamCaptureModeGlobal;
  std::swap(*mode, own);
  return result(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *to, unsigned int flags) {
  return call([&] {
    if (!to) return cudaErrorInvalidValue;
    *to = reinterpret_cast<cudaEvent_t>(new Event{!(flags & cudaEventDisableTiming), nullptr, nullptr});
    return cudaSuccess;
  });
}
cudaError_t cudaEventCreate(cudaEvent_t *to) { return cudaEventCreateWithFlags(to, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return of_event(handle, [](Event *event) {
    delete event;
    return cudaSuccess;
  });
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t in) {
  return in_stream(in, [&](Stream *stream) {
    if (!handle) return cudaErrorInvalidResourceHandle;
    record(event_of(handle), stream);
    // What lies between two records takes its time between them, as far as nothing has to be waited for.
    device().streams.run(AT_A_QUESTION);
    return failed_for_good();
  });
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t in, unsigned int) {
  return cudaEventRecord(handle, in);
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  return of_event(handle, [](Event *event) {
    device().streams.finish(event->recorded);
    return failed_for_good();
  });
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return of_event(handle, [](Event *event) {
    if (event->recorded && !event->recorded->done) device().streams.run(AT_A_QUESTION);
    return !event->recorded || event->recorded->done ? failed_for_good() : cudaErrorNotReady;
  });
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
  return call([&] {
    if (!from || !to || !milliseconds) return cudaErrorInvalidResourceHandle;
    Event *first = event_of(from), *second = event_of(to);
    if (!first->timed || !second->timed || !first->recorded || !second->recorded) return cudaErrorInvalidResourceHandle;
    if (!first->recorded->done || !second->recorded->done) return cudaErrorNotReady;
    *milliseconds = static_cast<float>(*second->reached - *first->reached);
    return cudaSuccess;
  });
}

}  // extern "C"
