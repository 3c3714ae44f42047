// The device that is emulated: its compute capability, and what follows from it.
#ifndef DCA_EMULATION_PROPERTIES_H
#define DCA_EMULATION_PROPERTIES_H

#include <cuda.h>
#include <driver_types.h>

#include <cstdint>
#include <string>

namespace dca {

struct Properties {
  int major, minor, multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor;
  size_t shared_per_multiprocessor, shared_per_block;  // the second with the attribute for more than 48 KiB
  int l2_bytes, bus_bits;

  std::string name() const { return "emulated sm_" + std::to_string(major) + std::to_string(minor); }
  std::string number() const { return std::to_string(major) + "." + std::to_string(minor); }
};

inline constexpr size_t SHARED_BY_DEFAULT = 48 * 1024, SHARED_RESERVED = 1024;
inline constexpr int MOST_THREADS = 1024, REGISTERS = 65536, WARP = 32;
inline constexpr int BLOCK_LIMITS[3] = {1024, 1024, 64}, GRID_LIMITS[3] = {2147483647, 65535, 65535};
inline constexpr int CLOCK_KHZ = 1410000, MEMORY_CLOCK_KHZ = 1215000;
inline constexpr char UUID[17] = "dca-emulated-gpu", PCI_BUS[] = "0000:00:00.0";

// By the variable DCA_EMULATION_ARCH.
const Properties &properties();
// The memory of this machine, in bytes: the device's is that.
size_t total_memory();
// Numbers of CUDA's run time and of its driver interface are the same; false if there is no such attribute.
bool attribute(int which, int *value);

}  // namespace dca

#endif
