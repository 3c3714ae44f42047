// NVIDIA's management library, as far as engines use it to find and describe a device. Declarations are from its
// documentation: no package of CUDA's run time has its header.
#include <cstdio>
#include <cstring>

#include "device.h"
#include "properties.h"

using namespace dca;

namespace {

using Return = int;
constexpr Return SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7;

Return put(char *to, unsigned int bytes, const std::string &text) {
  if (!to) return INVALID_ARGUMENT;
  if (text.size() >= bytes) return INSUFFICIENT_SIZE;
  std::memcpy(to, text.c_str(), text.size() + 1);
  return SUCCESS;
}

std::string uuid() {
  std::string text = "GPU-";
  for (int i = 0; i < 16; i++) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", UUID[i]);
    text += (i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "") + std::string(digits);
  }
  return text;
}

struct Memory_v1 {
  unsigned long long total, free, used;
};
struct Memory_v2 {
  unsigned int version;
  unsigned long long total, reserved, free, used;
};
struct Pci {
  char legacy_bus_id[16];
  unsigned int domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
};

size_t used() {
  Locked locked(device().lock);
  return device().memory.used();
}

}  // namespace

extern "C" {

Return nvmlInit_v2() { return SUCCESS; }
Return nvmlInitWithFlags(unsigned int) { return SUCCESS; }
Return nvmlShutdown() { return SUCCESS; }
const char *nvmlErrorString(Return code) { return code == SUCCESS ? "Success" : "Not Supported"; }
Return nvmlSystemGetDriverVersion(char *to, unsigned int bytes) { return put(to, bytes, "emulated"); }
Return nvmlSystemGetNVMLVersion(char *to, unsigned int bytes) { return put(to, bytes, "emulated"); }
Return nvmlSystemGetCudaDriverVersion(int *version) {
  *version = CUDA_VERSION;
  return SUCCESS;
}
Return nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

Return nvmlDeviceGetCount_v2(unsigned int *count) {
  *count = 1;
  return SUCCESS;
}
Return nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
  *handle = &device();
  return index == 0 ? SUCCESS : INVALID_ARGUMENT;
}
Return nvmlDeviceGetHandleByUUID(const char *asked, void **handle) {
  *handle = &device();
  return uuid() == asked ? SUCCESS : INVALID_ARGUMENT;
}
Return nvmlDeviceGetHandleByPciBusId_v2(const char *, void **handle) {
  *handle = &device();
  return SUCCESS;
}
Return nvmlDeviceGetIndex(void *, unsigned int *index) {
  *index = 0;
  return SUCCESS;
}
Return nvmlDeviceGetName(void *, char *to, unsigned int bytes) { return put(to, bytes, properties().name()); }
Return nvmlDeviceGetUUID(void *, char *to, unsigned int bytes) { return put(to, bytes, uuid()); }
Return nvmlDeviceGetCudaComputeCapability(void *, int *major, int *minor) {
  *major = properties().major;
  *minor = properties().minor;
  return SUCCESS;
}
Return nvmlDeviceGetMemoryInfo(void *, Memory_v1 *to) {
  *to = {total_memory(), total_memory() - used(), used()};
  return SUCCESS;
}
Return nvmlDeviceGetMemoryInfo_v2(void *, Memory_v2 *to) {
  *to = {to->version, total_memory(), 0, total_memory() - used(), used()};
  return SUCCESS;
}
Return nvmlDeviceGetPciInfo_v3(void *, Pci *to) {
  *to = {};
  put(to->bus_id, sizeof to->bus_id, PCI_BUS);
  put(to->legacy_bus_id, sizeof to->legacy_bus_id, PCI_BUS);
  return SUCCESS;
}
Return nvmlDeviceGetComputeRunningProcesses_v3(void *, unsigned int *count, void *) {
  *count = 0;
  return SUCCESS;
}
// One device has no links to others.
Return nvmlDeviceGetP2PStatus(void *, void *, int, int *) { return NOT_SUPPORTED; }
Return nvmlDeviceGetNvLinkState(void *, unsigned int, unsigned int *) { return NOT_SUPPORTED; }

}  // extern "C"
