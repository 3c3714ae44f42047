#include "device.h"

#include <cstdlib>

#include "report.h"

namespace dca {

Device &device() {
  static auto *one = new Device;
  return *one;
}

uint64_t setting(const char *name, uint64_t otherwise) {
  const char *text = std::getenv(name);
  if (!text || !*text) return otherwise;
  char *after = nullptr;
  uint64_t value = std::strtoull(text, &after, 10);
  if (*after) end({"DCA-836", std::string(name) + "=" + text + " is not a number.", "", "set it to digits."});
  return value;
}

uint32_t checks() {
  static const auto bits = static_cast<uint32_t>(setting("DCA_EMULATION_CHECKS", 0));
  return bits;
}

}  // namespace dca
