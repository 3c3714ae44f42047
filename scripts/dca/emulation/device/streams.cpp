#include "streams.h"

#include <driver_types.h>

#include <algorithm>
#include <chrono>

#include "device.h"
#include "recorder.h"
#include "report.h"

// Not 0 while something is queued or has failed: whoever works on the device's memory by itself must then wait first.
extern "C" int dca_emulation_pending;
int dca_emulation_pending = 0;

namespace dca {
namespace {

constexpr uint64_t A_TURN = 100'000;
// A hundred times what the largest kernel of the proof takes.
constexpr uint64_t WITHOUT_END = 4'000'000'000;

}  // namespace

double now() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

Scheduler::Scheduler() : default_(new Stream{true, 0, 0, {}}) { streams_.insert(default_); }

Stream *Scheduler::create(bool blocking, int priority) {
  auto *stream = new Stream{blocking, priority, ++numbers_, {}};
  streams_.insert(stream);
  return stream;
}

bool Scheduler::destroy(Stream *stream) {
  if (stream == default_ || !streams_.count(stream)) return false;
  finish(stream);
  streams_.erase(stream);
  delete stream;
  return true;
}

Stream *Scheduler::of(const void *handle) {
  if (!handle || handle == cudaStreamLegacy) return default_;
  if (handle == cudaStreamPerThread) {
    thread_local Stream *own = create(true, 0);
    return own;
  }
  auto *stream = static_cast<Stream *>(const_cast<void *>(handle));
  return streams_.count(stream) ? stream : nullptr;
}

void Scheduler::enqueue(Stream *stream, Work work) {
  for (const Stream *other : streams_) {
    bool ordered = other->blocking && stream->blocking && (stream == default_ || other == default_);
    if (ordered && other != stream && !other->queue.empty()) work->after.push_back(other->queue.back());
  }
  stream->queue.push_back(std::move(work));
  queued_++;
  dca_emulation_pending++;
}

void Scheduler::enqueue(Stream *stream, std::function<void()> function) {
  enqueue(stream, std::make_shared<Call>(std::move(function)));
}

bool Scheduler::idle() const {
  return std::all_of(streams_.begin(), streams_.end(), [](const Stream *one) { return one->queue.empty(); });
}

bool Scheduler::turn(uint64_t &executed) {
  bool advanced = false;
  // A callback may create streams.
  std::vector<Stream *> all(streams_.begin(), streams_.end());
  for (Stream *stream : all) {
    if (stream->queue.empty()) continue;
    Work work = stream->queue.front();
    auto &after = work->after;
    after.erase(std::remove_if(after.begin(), after.end(), [](const Work &one) { return one->done; }), after.end());
    if (!after.empty()) continue;
    uint64_t ran = 0;
    advancing(work.get());
    work->done = work->advance(A_TURN, ran);
    advanced = true;
    executed += ran;
    without_end_ = work->done ? 0 : without_end_ + ran;
    if (failed_for_good()) {
      forget();
      return false;
    }
    if (work->done) {
      stream->queue.pop_front();
      dca_emulation_pending--;
    }
    if (without_end_ > setting("DCA_EMULATION_BOUND", WITHOUT_END)) end_of_deadlock();
  }
  return advanced;
}

void Scheduler::run(uint64_t budget) {
  uint64_t executed = 0;
  while (executed < budget && turn(executed)) {
  }
}

void Scheduler::finish(const Work &work) {
  uint64_t executed = 0;
  while (work && !work->done && !failed_for_good()) {
    if (!turn(executed) && !failed_for_good()) end_of_deadlock();
  }
}

void Scheduler::finish(Stream *stream) {
  if (!stream->queue.empty()) finish(Work(stream->queue.back()));
}

void Scheduler::finish_all() {
  std::vector<Stream *> all(streams_.begin(), streams_.end());
  for (Stream *stream : all) finish(stream);
}

void Scheduler::forget() {
  for (Stream *stream : streams_) {
    for (const Work &work : stream->queue) work->done = true;
    stream->queue.clear();
  }
}

void Scheduler::end_of_deadlock() const {
  std::string waiting;
  for (const Stream *stream : streams_) {
    if (stream->queue.empty()) continue;
    std::string text = stream->queue.front()->description();
    if (!text.empty()) waiting += (waiting.empty() ? "" : "\n") + text;
  }
  end({"DCA-837", "the kernels of this process wait for something that never happens: a deadlock.", waiting,
       "if they only take long, raise the bound: DCA_EMULATION_BOUND=INSTRUCTIONS."});
}

}  // namespace dca
