#include "properties.h"

#include <unistd.h>

#include <climits>
#include <cstdlib>

#include "report.h"

namespace dca {
namespace {

constexpr size_t KIB = 1024;
// CUDA C++ Programming Guide, "Compute Capabilities"; multiprocessors, L2 and bus of A100, A40, L40 and H100 (SXM).
constexpr Properties KNOWN[] = {
    {8, 0, 108, 2048, 32, 164 * KIB, 163 * KIB, 40 << 20, 5120},
    {8, 6, 84, 1536, 16, 100 * KIB, 99 * KIB, 6 << 20, 384},
    {8, 9, 142, 1536, 24, 100 * KIB, 99 * KIB, 96 << 20, 384},
    {9, 0, 132, 2048, 32, 228 * KIB, 227 * KIB, 50 << 20, 5120},
};

const Properties &chosen() {
  const char *text = std::getenv("DCA_EMULATION_ARCH");
  std::string asked = text && *text ? text : "8.0";
  std::string known;
  for (const Properties &one : KNOWN) {
    if (one.number() == asked) return one;
    known += (known.empty() ? "" : ", ") + one.number();
  }
  end({"DCA-836", "a device of compute capability " + asked + " is not emulated.", "DCA_EMULATION_ARCH names it.",
       "use one of " + known + "."});
}

}  // namespace

const Properties &properties() {
  static const Properties &one = chosen();
  return one;
}

size_t total_memory() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
}

bool attribute(int which, int *value) {
  const Properties &device = properties();
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = MOST_THREADS; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: *value = BLOCK_LIMITS[0]; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: *value = BLOCK_LIMITS[1]; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: *value = BLOCK_LIMITS[2]; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *value = GRID_LIMITS[0]; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: *value = GRID_LIMITS[1]; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *value = GRID_LIMITS[2]; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = SHARED_BY_DEFAULT; break;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: *value = 64 * KIB; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = WARP; break;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: *value = INT_MAX; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = REGISTERS; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: *value = REGISTERS; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = CLOCK_KHZ; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = MEMORY_CLOCK_KHZ; break;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: *value = 512; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = device.multiprocessors; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = device.bus_bits; break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = device.l2_bytes; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = device.threads_per_multiprocessor; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: *value = device.blocks_per_multiprocessor; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = device.major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = device.minor; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = static_cast<int>(device.shared_per_multiprocessor);
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = static_cast<int>(device.shared_per_block); break;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: *value = SHARED_RESERVED; break;
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
      *value = 1;
      break;
    // Everything else that the header knows is a feature that the emulated device does not have.
    default: *value = 0; return which > 0 && which < CU_DEVICE_ATTRIBUTE_MAX;
  }
  return true;
}

}  // namespace dca
