// Streams as queues. Nothing runs by itself: what is queued is advanced in turns when the program launches, waits or asks.
#ifndef DCA_EMULATION_STREAMS_H
#define DCA_EMULATION_STREAMS_H

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace dca {

// One entry of a queue.
class Operation {
 public:
  virtual ~Operation() = default;
  // Advances it by at most about `budget` instructions, and adds those that ran to `executed`; true when it is done.
  virtual bool advance(uint64_t budget, uint64_t &executed) = 0;
  // What it is, for the message about a deadlock; empty if it cannot last.
  virtual std::string description() const { return ""; }

  std::vector<std::shared_ptr<Operation>> after;  // of other streams, done first
  bool done = false;
};

using Work = std::shared_ptr<Operation>;

// Something that is done at once.
class Call : public Operation {
 public:
  explicit Call(std::function<void()> function) : function_(std::move(function)) {}
  bool advance(uint64_t, uint64_t &) override {
    function_();
    return true;
  }

 private:
  std::function<void()> function_;
};

struct Stream {
  bool blocking;  // waits for the default stream, and the default stream for it
  int priority;
  uint64_t number;
  std::deque<Work> queue;
};

struct Event {
  bool timed;
  Work recorded;
  std::shared_ptr<double> reached;  // in milliseconds; of its last record
};

// Not locked: the device's lock is held by whoever calls.
class Scheduler {
 public:
  Scheduler();
  Stream *create(bool blocking, int priority);
  bool destroy(Stream *);  // after what is queued is done
  // The stream of a handle of CUDA's run time or driver interface; null if there is no such stream.
  Stream *of(const void *handle);
  void enqueue(Stream *, Work);
  void enqueue(Stream *, std::function<void()>);
  // Advances what is queued in turns until nothing is left or about `budget` instructions have run.
  void run(uint64_t budget);
  void finish(const Work &);
  void finish(Stream *);
  void finish_all();
  bool idle(const Stream *stream) const { return stream->queue.empty(); }
  bool idle() const;
  // How many operations were ever queued.
  uint64_t queued() const { return queued_; }

 private:
  // One turn of every stream; false if nothing could be advanced.
  bool turn(uint64_t &executed);
  void end_of_deadlock() const;
  void forget();

  Stream *default_;
  std::set<Stream *> streams_;
  uint64_t numbers_ = 0, queued_ = 0;
  uint64_t without_end_ = 0;  // instructions since the last operation was done
};

// Milliseconds of a clock that only goes forward.
double now();

}  // namespace dca

#endif
