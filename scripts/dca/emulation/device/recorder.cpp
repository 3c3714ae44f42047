#include "recorder.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>

#include "device.h"
#include "report.h"

namespace dca {
namespace {

// A launch that is not run keeps the content of buffers up to this size: lists and lengths, not tensors.
constexpr size_t SMALL = 1 << 20;
// How much more than the recording's limit a launch's buffers may have, as compression may make it small enough.
constexpr size_t COMPRESSED_BY = 4;
constexpr char OVERLAPPING[] = "it runs at the same time as work of another stream";

std::set<Recorded *> running;
// Kernels of which the translator wants no more launches.
std::set<std::string> enough;
std::string label;
bool any = false;

size_t limit() {
  static const size_t bytes = setting("DCA_EMULATION_RECORD_LIMIT", 48 << 20);
  return bytes;
}

struct Pointer {
  uint32_t at;
  uint64_t buffer;
  size_t offset;
};

// Every aligned word of eight bytes that is an address in an allocation counts as a pointer. A number that happens to be
// one is taken for a pointer too: addresses begin far above what sizes and strides reach.
std::vector<Pointer> pointers(const Recordable &one) {
  std::vector<Pointer> found;
  auto *bytes = static_cast<const char *>(one.launch.parameters);
  for (uint32_t i = 0; i < one.facts->parameters; i++) {
    uint32_t start = (one.facts->offsets[i] + 7) / 8 * 8, end = one.facts->offsets[i] + one.facts->sizes[i];
    for (uint32_t at = start; at + 8 <= end; at += 8) {
      uint64_t word;
      std::memcpy(&word, bytes + at, sizeof word);
      const Allocation *its = device().memory.find(static_cast<uintptr_t>(word));
      if (its) found.push_back({at, its->number, static_cast<size_t>(word - its->start)});
    }
  }
  return found;
}

std::vector<Buffer> buffers(const Recordable &one, const std::vector<Pointer> &pointers) {
  std::vector<Buffer> found;
  auto *bytes = static_cast<const char *>(one.launch.parameters);
  for (const Pointer &pointer : pointers) {
    if (std::any_of(found.begin(), found.end(), [&](const Buffer &its) { return its.number == pointer.buffer; })) continue;
    uint64_t word;
    std::memcpy(&word, bytes + pointer.at, sizeof word);
    const Allocation &its = *device().memory.find(static_cast<uintptr_t>(word));
    found.push_back({its.number, its.start, its.bytes, {}});
  }
  return found;
}

// Whether a content has the address of an allocation: a replay would have to know that it is one.
bool has_pointers(const char *content, size_t bytes) {
  auto [first, end] = device().memory.range();
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    uint64_t word;
    std::memcpy(&word, content + at, sizeof word);
    if (word >= first && word < end && device().memory.find(static_cast<uintptr_t>(word))) return true;
  }
  return false;
}

std::string numbers(const uint32_t *values) {
  return "[" + std::to_string(values[0]) + ", " + std::to_string(values[1]) + ", " + std::to_string(values[2]) + "]";
}

std::string hexadecimal(const void *start, size_t bytes) {
  constexpr char DIGITS[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < bytes; i++) {
    auto byte = static_cast<const unsigned char *>(start)[i];
    text += {DIGITS[byte >> 4], DIGITS[byte & 15]};
  }
  return text;
}

std::string identity(const Recordable &one) {
  return one.module.path + "\n" + std::to_string(one.module.address) + "\n" + one.kernel;
}

// Sends a launch; `parts` are the contents that its buffers say follow.
void hand_over(const Recordable &one, bool ran, const std::string &left_out, const std::string &buffers,
               const std::vector<Part> &parts) {
  std::string pointing;
  for (const Pointer &pointer : pointers(one))
    pointing += (pointing.empty() ? "{" : ", {") + std::string("\"at\": ") + std::to_string(pointer.at) +
                ", \"buffer\": " + std::to_string(pointer.buffer) + ", \"offset\": " + std::to_string(pointer.offset) + "}";
  std::string offsets;
  for (uint32_t i = 0; i < one.facts->parameters; i++) offsets += (i ? ", " : "") + std::to_string(one.facts->offsets[i]);
  const DcaLaunch &launch = one.launch;
  std::string text = "{\"module\": " + quoted(one.module.path) + ", \"address\": " + std::to_string(one.module.address) + ", \"kernel\": " + quoted(one.kernel) +
                     ", \"label\": " + quoted(label) + ", \"stream\": " + std::to_string(one.stream) +
                     ", \"grid\": " + numbers(launch.grid) + ", \"block\": " + numbers(launch.block) +
                     ", \"shared\": " + std::to_string(launch.dynamic_shared) + ", \"parameters\": \"" +
                     hexadecimal(launch.parameters, launch.parameter_bytes) + "\", \"offsets\": [" + offsets + "], \"pointers\": [" + pointing +
                     "], \"buffers\": [" + buffers + "], \"ran\": " + (ran ? "true" : "false") +
                     ", \"left_out\": " + quoted(left_out) + "}";
  if (ask("launch\n" + std::to_string(text.size()) + "\n" + text, parts) == "enough") enough.insert(identity(one));
  any = true;
}

std::string described(const Buffer &one, bool before, bool after) {
  return "{\"number\": " + std::to_string(one.number) + ", \"bytes\": " + std::to_string(one.bytes) +
         ", \"before\": " + (before ? "true" : "false") + ", \"after\": " + (after ? "true" : "false") + "}";
}

// What the translator has not written is lost when the process is killed; at an orderly end it says what it has.
__attribute__((destructor)) void finish() {
  if (any && asked()) ask("finish\n");
}

}  // namespace

bool recording() {
  static const bool on = std::getenv("DCA_EMULATION_RECORD") != nullptr;
  return on;
}

bool only_shapes() {
  static const bool on = recording() && setting("DCA_EMULATION_RECORD_SHAPES", 0) != 0;
  return on;
}

Recorded::Recorded(const Operation *operation, const Recordable &launch, const std::vector<UsedVariable> &variables)
    : operation_(operation), launch_(launch), variables_(variables), buffers_(buffers(launch, pointers(launch))) {
  size_t bytes = 0;
  for (const Buffer &one : buffers_) bytes += one.bytes;
  if (enough.count(identity(launch))) left_out_ = "enough launches of its kernel are recorded";
  if (changed()) left_out_ = "a variable of the module has another value than its initial one";
  if (!running.empty()) left_out_ = OVERLAPPING;
  if (bytes > COMPRESSED_BY * limit()) left_out_ = "its buffers are far larger than the recording may be";
  for (Buffer &one : buffers_) {
    if (!left_out_.empty()) break;
    auto *content = reinterpret_cast<const char *>(one.start);
    one.before.assign(content, content + one.bytes);
  }
  running.insert(this);
}

Recorded::~Recorded() { running.erase(this); }

bool Recorded::changed() const {
  return std::any_of(variables_.begin(), variables_.end(), [](const UsedVariable &used) {
    const Variable &one = *used.variable;
    if (used.initial) return std::memcmp(one.storage, used.initial, one.bytes) != 0;
    return std::any_of(one.storage, one.storage + one.bytes, [](char byte) { return byte != 0; });
  });
}

void Recorded::end() {
  running.erase(this);
  if (left_out_.empty() && changed()) left_out_ = "it changes a variable of its module";
  std::string text;
  std::vector<Part> parts;
  for (const Buffer &one : buffers_) {
    if (!left_out_.empty()) break;
    auto *after = reinterpret_cast<const char *>(one.start);
    bool written = std::memcmp(one.before.data(), after, one.bytes) != 0;
    text += (text.empty() ? "" : ", ") + described(one, true, written);
    parts.push_back({one.before.data(), one.bytes});
    if (written) parts.push_back({after, one.bytes});
    if (has_pointers(one.before.data(), one.bytes) || has_pointers(after, one.bytes))
      left_out_ = "a buffer contains the address of another one";
  }
  if (!left_out_.empty()) {
    text.clear();
    parts.clear();
  }
  hand_over(launch_, true, left_out_, text, parts);
}

void advancing(const Operation *operation) {
  for (Recorded *one : running)
    if (one->operation_ != operation) one->left_out_ = OVERLAPPING;
}

void record_shape(const Recordable &launch) {
  std::string text, left_out;
  std::vector<Part> parts;
  for (const Buffer &one : buffers(launch, pointers(launch))) {
    bool small = one.bytes <= SMALL;
    auto *content = reinterpret_cast<const char *>(one.start);
    text += (text.empty() ? "" : ", ") + described(one, small, false);
    if (small) parts.push_back({content, one.bytes});
    if (small && has_pointers(content, one.bytes)) left_out = "a buffer contains the address of another one";
  }
  hand_over(launch, false, left_out, left_out.empty() ? text : "", left_out.empty() ? parts : std::vector<Part>());
}

}  // namespace dca

// What a program says the launches that follow are, for the report of the replay.
extern "C" void dca_emulation_label(const char *text) {
  dca::Locked locked(dca::device().lock);
  dca::label = text ? text : "";
}
