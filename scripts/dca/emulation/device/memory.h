// The device's memory: this machine's, in allocations that are known one by one.
#ifndef DCA_EMULATION_MEMORY_H
#define DCA_EMULATION_MEMORY_H

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>

namespace dca {

// A constant is a variable that kernels must not write.
enum class Kind { device, pinned, registered, managed, variable, constant };

struct Allocation {
  uintptr_t start;
  size_t bytes;
  Kind kind;
  bool mapped;      // by mmap, otherwise by aligned_alloc
  uint64_t number;  // no other allocation of the process has it
};

// Bytes behind each allocation that no other one has. A GPU's allocations begin at multiples of as many.
constexpr size_t SLACK = 256;

// Not locked: the device's lock is held by whoever calls.
class Memory {
 public:
  // Null if the device has no space left. New memory has every bit set, which is NaN in every float type, where
  // addresses are checked or launches recorded.
  void *allocate(size_t bytes, Kind);
  // False for what is not the start of a living allocation of this kind.
  bool release(void *, Kind);
  bool enlist(void *, size_t bytes);  // host memory that the program has allocated itself
  const Allocation *find(uintptr_t address) const;
  bool accessible(uintptr_t address, size_t bytes, bool write = false) const;
  // Where bytes that are not accessible lie: behind an allocation, in one that was freed, or in a constant; else empty.
  std::string about(uintptr_t address, size_t bytes) const;
  // Where the first allocation begins, and where the last one ends.
  std::pair<uintptr_t, uintptr_t> range() const;
  // How many of these bytes lie behind the end of the allocation before them; more than SLACK where that is far away.
  size_t behind(uintptr_t address, size_t bytes) const;
  size_t used() const { return used_; }
  size_t most_used() const { return most_used_; }  // since the last call of forget_most
  void forget_most() { most_used_ = used_; }
  template <class Use>
  void each(Use use) const {
    for (const auto &[start, one] : living_) use(one);
  }

 private:
  // Gives memory back to the machine, or first holds it for a while.
  void give_back(const Allocation &);
  void hold(const Allocation &);

  std::map<uintptr_t, Allocation> living_;
  // Freed last, and not given back yet: an access is one to nothing, and not to a new allocation at the same address.
  std::deque<Allocation> held_;
  size_t held_bytes_ = 0;
  size_t used_ = 0, most_used_ = 0;
  uint64_t numbers_ = 0;
  mutable const Allocation *recent_ = nullptr;
};

}  // namespace dca

#endif
