#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "device.h"
#include "properties.h"
#include "recorder.h"

namespace dca {
namespace {

// As cudaMalloc does at least.
constexpr size_t ALIGNMENT = 512;
// Larger ones are mapped, so that what is never touched takes no memory.
constexpr size_t MAPPED_FROM = 1 << 20;
// Larger ones are not filled, because that would touch all of a KV cache.
constexpr size_t FILLED_UP_TO = 16 << 20;
// What is held after it was freed, where addresses are checked. Of mapped ones only the addresses are.
constexpr size_t HELD = 1024, HELD_BYTES = 32 << 20;

}  // namespace

void *Memory::allocate(size_t bytes, Kind kind) {
  bool counted = kind == Kind::device || kind == Kind::managed;
  if (counted && (bytes > total_memory() || used_ > total_memory() - bytes)) return nullptr;
  bool mapped = bytes >= MAPPED_FROM;
  void *start = mapped ? mmap(nullptr, bytes + SLACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                       : std::aligned_alloc(ALIGNMENT, (bytes + SLACK + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  if (start == MAP_FAILED || !start) return nullptr;
  if ((checks() || recording()) && bytes <= FILLED_UP_TO && kind != Kind::variable && kind != Kind::constant)
    std::memset(start, 0xff, bytes + SLACK);
  living_[reinterpret_cast<uintptr_t>(start)] = {reinterpret_cast<uintptr_t>(start), bytes, kind, mapped, ++numbers_};
  if (counted) used_ += bytes;
  most_used_ = std::max(most_used_, used_);
  return start;
}

bool Memory::release(void *start, Kind kind) {
  auto found = living_.find(reinterpret_cast<uintptr_t>(start));
  if (found == living_.end()) return false;
  Allocation one = found->second;
  bool of_device = one.kind == Kind::device || one.kind == Kind::managed;
  if (kind == Kind::device ? !of_device : one.kind != kind) return false;
  living_.erase(found);
  recent_ = nullptr;
  if (of_device) used_ -= one.bytes;
  if (kind == Kind::registered) return true;
  if (checks() & DCA_CHECK_ADDRESSES)
    hold(one);
  else
    give_back(one);
  return true;
}

void Memory::give_back(const Allocation &one) {
  auto *start = reinterpret_cast<void *>(one.start);
  if (one.mapped) {
    munmap(start, one.bytes + SLACK);
  } else {
    std::free(start);
  }
}

void Memory::hold(const Allocation &one) {
  auto *start = reinterpret_cast<void *>(one.start);
  if (one.mapped && mmap(start, one.bytes + SLACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
                         0) == MAP_FAILED)
    return give_back(one);
  held_.push_back(one);
  held_bytes_ += one.mapped ? 0 : one.bytes;
  while (held_.size() > HELD || held_bytes_ > HELD_BYTES) {
    held_bytes_ -= held_.front().mapped ? 0 : held_.front().bytes;
    give_back(held_.front());
    held_.pop_front();
  }
}

bool Memory::enlist(void *start, size_t bytes) {
  auto address = reinterpret_cast<uintptr_t>(start);
  if (!bytes || find(address) || find(address + bytes - 1)) return false;
  living_[address] = {address, bytes, Kind::registered, false, ++numbers_};
  return true;
}

const Allocation *Memory::find(uintptr_t address) const {
  if (recent_ && address - recent_->start < recent_->bytes) return recent_;
  auto after = living_.upper_bound(address);
  if (after == living_.begin()) return nullptr;
  const Allocation &one = std::prev(after)->second;
  if (address - one.start >= one.bytes) return nullptr;
  recent_ = &one;
  return recent_;
}

bool Memory::accessible(uintptr_t address, size_t bytes, bool write) const {
  const Allocation *one = find(address);
  return one && bytes <= one->bytes - (address - one->start) && !(write && one->kind == Kind::constant);
}

std::string Memory::about(uintptr_t address, size_t bytes) const {
  auto of = [](const char *what, size_t size) { return what + std::to_string(size) + " bytes"; };
  const Allocation *one = find(address);
  if (one && bytes <= one->bytes - (address - one->start)) return one->kind == Kind::constant ? "in constant memory, which kernels cannot write" : "";
  if (one) return of("across the end of an allocation of ", one->bytes);
  for (auto freed = held_.rbegin(); freed != held_.rend(); ++freed)
    if (address - freed->start < freed->bytes) return of("in an allocation that was freed, of ", freed->bytes);
  auto after = living_.upper_bound(address);
  if (after != living_.end() && after->second.start - address <= SLACK)
    return of("", after->second.start - address) + of(" before an allocation of ", after->second.bytes);
  if (after == living_.begin()) return "";
  const Allocation &before = std::prev(after)->second;
  size_t behind = address - before.start - before.bytes;
  return behind < SLACK ? of("", behind) + of(" behind an allocation of ", before.bytes) : "";
}

std::pair<uintptr_t, uintptr_t> Memory::range() const {
  if (living_.empty()) return {0, 0};
  const Allocation &last = living_.rbegin()->second;
  return {living_.begin()->first, last.start + last.bytes};
}

size_t Memory::behind(uintptr_t address, size_t bytes) const {
  auto after = living_.upper_bound(address);
  if (after == living_.begin()) return SLACK + 1;
  const Allocation &one = std::prev(after)->second;
  size_t end = address - one.start + bytes;
  return end <= one.bytes + SLACK && one.kind != Kind::registered ? end - std::min(end, one.bytes) : SLACK + 1;
}

}  // namespace dca
