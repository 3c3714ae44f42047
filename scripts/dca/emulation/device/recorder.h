// Hands launches to the translator, which keeps them for a replay on a GPU (`dca emulate --record`).
#ifndef DCA_EMULATION_RECORDER_H
#define DCA_EMULATION_RECORDER_H

#include <cstdint>
#include <string>
#include <vector>

#include "../runtime/abi.h"
#include "modules.h"

namespace dca {

class Operation;

// Whether launches are recorded (DCA_EMULATION_RECORD), and whether that is all that is done with them
// (DCA_EMULATION_RECORD_SHAPES).
bool recording();
bool only_shapes();

// A launch, as long as it is not done.
struct Recordable {
  const Module &module;
  const std::string &kernel;
  const DcaKernel *facts;
  const DcaLaunch &launch;
  uint64_t stream;
};

// A variable that a kernel uses, with its initial value; null for zeros.
struct UsedVariable {
  const Variable *variable;
  const char *initial;
};

// An allocation that a parameter points into.
struct Buffer {
  uint64_t number;
  uintptr_t start;
  size_t bytes;
  std::vector<char> before;
};

// The record of a launch that runs: it is made when the launch starts.
class Recorded {
 public:
  Recorded(const Operation *, const Recordable &, const std::vector<UsedVariable> &);
  ~Recorded();
  void end();  // the launch is done: hands it to the translator

 private:
  friend void advancing(const Operation *);
  bool changed() const;

  const Operation *operation_;
  Recordable launch_;
  const std::vector<UsedVariable> &variables_;
  std::vector<Buffer> buffers_;
  std::string left_out_;  // why this launch is not recorded
};

// The scheduler goes on with an operation: launches that have not ended, other than this one, overlap with it.
void advancing(const Operation *);
// Records a launch that is not run: sizes, and what small buffers contain.
void record_shape(const Recordable &);

}  // namespace dca

#endif
