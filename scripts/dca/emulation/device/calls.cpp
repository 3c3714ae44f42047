#include "calls.h"

#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace dca {
namespace {

// The head of a fat binary, of which the driver interface gives no size: magic, version, bytes of the head, of the rest.
struct FatBinary {
  uint32_t magic;
  uint16_t version, head;
  uint64_t rest;
};
// What a program of CUDA has instead of its address: magic, version, address.
struct Wrapper {
  uint32_t magic, version;
  const void *image;
};
constexpr uint32_t FAT_BINARY = 0xba55ed50, WRAPPER = 0x466243b1;

bool pageable(const void *address) { return !device().memory.find(reinterpret_cast<uintptr_t>(address)); }

size_t bytes_of(const void *image) {
  auto *fat = static_cast<const FatBinary *>(image);
  if (fat->magic == FAT_BINARY) return fat->head + fat->rest;
  auto *text = static_cast<const char *>(image);
  if (std::memcmp(text, ELFMAG, SELFMAG) != 0) return std::strlen(text);
  // A cubin has its section headers, or its program headers, at its end.
  auto *head = static_cast<const Elf64_Ehdr *>(image);
  return std::max<size_t>(head->e_shoff + size_t{head->e_shentsize} * head->e_shnum,
                          head->e_phoff + size_t{head->e_phentsize} * head->e_phnum);
}

// Whether the program may copy or fill so many bytes: whatever begins in an allocation must end there, and memory of the
// device must be in one. What the program has registered itself may be a part of something larger.
bool lies_inside(const char *what, const void *start, size_t bytes, bool of_device) {
  const Memory &memory = device().memory;
  auto address = reinterpret_cast<uintptr_t>(start);
  const Allocation *one = memory.find(address);
  if (one ? one->kind == Kind::registered || memory.accessible(address, bytes) : !of_device) return true;
  const std::string where = memory.about(address, bytes);
  say({"DCA-837", std::string("the program ") + what + " " + std::to_string(bytes) + " bytes of the device's memory at " +
                      hexadecimal(address) + ", which are not inside of an allocation" + (where.empty() ? "" : ": " + where) + ".",
       "", "the call returns its error, cudaErrorInvalidValue, to the program."});
  append("DCA_EMULATION_FINDINGS", "{\"kind\": \"call\", \"code\": \"DCA-837\", \"text\": " +
                                       quoted(std::string(what) + " " + std::to_string(bytes) + " bytes " + where) + "}");
  return false;
}

}  // namespace

cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, Stream *stream, bool wait) {
  return copy_rows(to, bytes, from, bytes, bytes, 1, kind, stream, wait);
}

cudaError_t copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                      cudaMemcpyKind kind, Stream *stream, bool wait) {
  if (!width || !height) return cudaSuccess;
  if (!to || !from || to_pitch < width || from_pitch < width) return cudaErrorInvalidValue;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (!lies_inside("writes", to, (height - 1) * to_pitch + width, to_device)) return cudaErrorInvalidValue;
  if (!lies_inside("reads", from, (height - 1) * from_pitch + width, from_device)) return cudaErrorInvalidValue;
  device().streams.enqueue(stream, [=] {
    for (size_t row = 0; row < height; row++)
      std::memmove(static_cast<char *>(to) + row * to_pitch, static_cast<const char *>(from) + row * from_pitch, width);
  });
  if (wait || pageable(to) || pageable(from)) device().streams.finish(stream);
  return failed_for_good();
}

cudaError_t fill(void *to, int value, size_t value_bytes, size_t pitch, size_t width, size_t height, Stream *stream,
                 bool wait) {
  if (!width || !height) return cudaSuccess;
  if (!to || pitch < width) return cudaErrorInvalidValue;
  if (!lies_inside("fills", to, (height - 1) * pitch + width, true)) return cudaErrorInvalidValue;
  device().streams.enqueue(stream, [=] {
    for (size_t row = 0; row < height; row++) {
      char *start = static_cast<char *>(to) + row * pitch;
      for (size_t at = 0; at < width; at += value_bytes) std::memcpy(start + at, &value, value_bytes);
    }
  });
  if (wait) device().streams.finish(stream);
  return failed_for_good();
}

cudaError_t record(Event *event, Stream *stream) {
  // What waits for the event's earlier record keeps it.
  auto reached = std::make_shared<double>(0);
  event->reached = reached;
  auto mark = std::make_shared<Call>([reached] { *reached = now(); });
  event->recorded = mark;
  device().streams.enqueue(stream, mark);
  return cudaSuccess;
}

cudaError_t wait_for(Stream *stream, const Event *event) {
  if (!event->recorded || event->recorded->done) return cudaSuccess;
  auto barrier = std::make_shared<Call>([] {});
  barrier->after.push_back(event->recorded);
  device().streams.enqueue(stream, barrier);
  return cudaSuccess;
}

Module *load_image(const void *image) {
  if (!image) return nullptr;
  auto *wrapper = static_cast<const Wrapper *>(image);
  if (wrapper->magic == WRAPPER) image = wrapper->image;
  const char *folder = std::getenv("TMPDIR");
  std::string path = std::string(folder && *folder ? folder : "/tmp") + "/dca-emulation-XXXXXX";
  int file = mkstemp(path.data());
  if (file < 0) return nullptr;
  size_t bytes = bytes_of(image);
  bool whole = write(file, image, bytes) == static_cast<ssize_t>(bytes);
  close(file);
  if (!whole) {
    unlink(path.c_str());
    return nullptr;
  }
  return &device().modules.add_image(path, true);
}

}  // namespace dca
