// The one emulated device of a process: its memory, its streams, its modules, and the lock that guards them.
#ifndef DCA_EMULATION_DEVICE_H
#define DCA_EMULATION_DEVICE_H

#include <driver_types.h>

#include <cstdint>
#include <mutex>

#include "memory.h"
#include "modules.h"
#include "streams.h"

namespace dca {

struct Device {
  std::recursive_mutex lock;
  Memory memory;
  Scheduler streams;
  Modules modules;
};

// It lives as long as the process: modules unregister themselves after every destructor.
Device &device();

using Locked = std::lock_guard<std::recursive_mutex>;

// Bits of DcaServices.checks, by the variable DCA_EMULATION_CHECKS.
uint32_t checks();
// A number of a variable of the environment.
uint64_t setting(const char *name, uint64_t otherwise);

// Where and how a kernel is launched.
struct Launch {
  unsigned grid[3], block[3];
  size_t dynamic_shared;
  Stream *stream;
};

// Copies the kernel's parameters, queues the launch, and runs what is queued for a while.
cudaError_t launch(Function &, const Launch &, void **arguments);
// Raises a kernel's limit of dynamic shared memory, up to the device's.
cudaError_t allow_dynamic_shared(Function &, int bytes);
// How many blocks of a kernel fit on one multiprocessor.
cudaError_t occupancy(Function &, int threads, size_t dynamic_shared, int *blocks);

}  // namespace dca

#endif
