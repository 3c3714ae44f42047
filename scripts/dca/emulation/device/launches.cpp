#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "device.h"
#include "properties.h"
#include "recorder.h"
#include "report.h"

namespace dca {
namespace {

// Instructions that a launch runs before it returns to the program; the rest runs in later launches and waits. Kernels that
// wait for another launch must not be run to their end here.
constexpr uint64_t AT_LAUNCH = 2'000'000;

// A fault of a kernel that is known and that no GPU notices: it accesses up to so many bytes behind an allocation.
struct Fault {
  bool write;
  size_t behind;
  std::string kernels, text;  // what the symbols of its kernels begin with; a sentence
};

// By the variable DCA_EMULATION_KNOWN: a line for each, its fields separated by tabs.
const std::vector<Fault> &known_faults() {
  static const std::vector<Fault> all = [] {
    std::vector<Fault> faults;
    const char *variable = std::getenv("DCA_EMULATION_KNOWN");
    std::istringstream lines(variable ? variable : "");
    for (std::string access, behind, kernels, text; std::getline(lines, access, '\t') && std::getline(lines, behind, '\t') &&
                                                    std::getline(lines, kernels, '\t') && std::getline(lines, text);)
      faults.push_back({access == "write", std::min<size_t>(std::strtoull(behind.c_str(), nullptr, 10), SLACK), kernels, text});
    return faults;
  }();
  return all;
}

// A launch in its queue.
class Grid : public Operation {
 public:
  Grid(Function &function, const Launch &launch, void **arguments)
      : module_(function.module), kernel_(function.loaded()), name_(function.name), stream_(launch.stream->number) {
    const DcaKernel &facts = *kernel_.facts;
    parameters_.resize(facts.parameter_bytes);
    for (uint32_t i = 0; i < facts.parameters; i++)
      std::memcpy(parameters_.data() + facts.offsets[i], arguments[i], facts.sizes[i]);
    std::copy(launch.grid, launch.grid + 3, launch_.grid);
    std::copy(launch.block, launch.block + 3, launch_.block);
    launch_.dynamic_shared = launch.dynamic_shared;
    launch_.parameters = parameters_.data();
    launch_.parameter_bytes = parameters_.size();
    for (const Fault &fault : known_faults())
      if (name_.rfind(fault.kernels, 0) == 0) known_.push_back({&fault, false});
    services_ = {DCA_EMULATION_ABI, this, accessible, variable, finding, setting("DCA_EMULATION_SEED", 0), checks()};
  }

  ~Grid() override {
    if (grid_) kernel_.finish(grid_);
  }

  bool advance(uint64_t budget, uint64_t &executed) override {
    if (!grid_) {
      grid_ = kernel_.start(&launch_, &services_);
      if (!grid_) {
        say({"DCA-836", "the launch of " + readable(name_) + " is not valid.", shape(), ""});
        fail_for_good(cudaErrorLaunchFailure);
        return true;
      }
      if (recording()) recorded_ = std::make_unique<Recorded>(this, recordable(), variables_);
    }
    uint64_t before = kernel_.executed(grid_);
    int state = kernel_.advance(grid_, budget);
    executed += kernel_.executed(grid_) - before;
    if (state == DCA_FAILED || failure_ != cudaSuccess)
      fail_for_good(failure_ != cudaSuccess ? failure_ : cudaErrorLaunchFailure);
    if (state == DCA_DONE && recorded_) recorded_->end();
    return state != DCA_MORE;
  }

  // What the recorder keeps of it.
  Recordable recordable() const { return {*module_, name_, kernel_.facts, launch_, stream_}; }

  std::string description() const override {
    DcaFinding at = {};
    return readable(name_) + " (" + shape() + ") has run " + std::to_string(grid_ ? kernel_.executed(grid_) : 0) +
           " warp instructions" + (grid_ && kernel_.waits(grid_, &at) ? " and is at " + place(at) : "");
  }

 private:
  struct Known {
    const Fault *fault;
    bool recorded;
  };

  static int accessible(void *self, uint64_t address, uint64_t bytes, int write) {
    const Memory &memory = device().memory;
    auto start = static_cast<uintptr_t>(address);
    if (memory.accessible(start, static_cast<size_t>(bytes))) return 1;
    auto &grid = *static_cast<Grid *>(self);
    for (Known &one : grid.known_) {
      if (one.fault->write != (write != 0) || memory.behind(start, static_cast<size_t>(bytes)) > one.fault->behind) continue;
      if (!one.recorded) record_known(grid.name_, one.fault->text);
      one.recorded = true;
      return 1;
    }
    return 0;
  }

  static uint64_t variable(void *self, const char *name, uint64_t bytes, uint64_t, const void *initial) {
    auto *grid = static_cast<Grid *>(self);
    Variable &one = grid->module_->variable(name, bytes);
    for (size_t i = 0; !one.initialised && initial && i < bytes; i++)
      if (!one.written[i]) one.storage[i] = static_cast<const char *>(initial)[i];
    one.initialised = true;
    grid->variables_.push_back({&one, static_cast<const char *>(initial)});
    return reinterpret_cast<uint64_t>(one.storage);
  }

  static void finding(void *self, const DcaFinding *one) {
    record(*one);
    std::string kind = one->kind;
    static_cast<Grid *>(self)->failure_ = kind == "address"     ? cudaErrorIllegalAddress
                                          : kind == "alignment" ? cudaErrorMisalignedAddress
                                                                : cudaErrorLaunchFailure;
  }

  std::string shape() const {
    std::string text;
    for (int i = 0; i < 3; i++) text += (i ? " x " : "grid ") + std::to_string(launch_.grid[i]);
    for (int i = 0; i < 3; i++) text += (i ? " x " : ", block ") + std::to_string(launch_.block[i]);
    return text + ", " + std::to_string(launch_.dynamic_shared) + " bytes of dynamic shared memory";
  }

  Module *module_;
  Kernel kernel_;
  std::string name_;
  uint64_t stream_;
  std::vector<Known> known_;
  std::vector<char> parameters_;
  std::vector<UsedVariable> variables_;
  std::unique_ptr<Recorded> recorded_;
  DcaLaunch launch_ = {};
  DcaServices services_ = {};
  void *grid_ = nullptr;
  cudaError_t failure_ = cudaSuccess;
};

cudaError_t rejected(const Function &function, const std::string &why, cudaError_t error) {
  say({"DCA-836", "the launch of " + readable(function.name) + " is rejected, as a GPU would: " + why + ".", "",
       "the launch returns its error to the program."});
  return error;
}

cudaError_t check(Function &function, const Launch &launch) {
  uint64_t threads = 1;
  for (int i = 0; i < 3; i++) {
    if (!launch.grid[i] || !launch.block[i]) return rejected(function, "a size is 0", cudaErrorInvalidConfiguration);
    if (launch.grid[i] > static_cast<unsigned>(GRID_LIMITS[i]))
      return rejected(function, "the grid has " + std::to_string(launch.grid[i]) + " blocks in a direction that holds " +
                                    std::to_string(GRID_LIMITS[i]), cudaErrorInvalidConfiguration);
    if (launch.block[i] > static_cast<unsigned>(BLOCK_LIMITS[i]))
      return rejected(function, "a block has " + std::to_string(launch.block[i]) +
                                    " threads in a direction that holds " + std::to_string(BLOCK_LIMITS[i]),
                      cudaErrorInvalidConfiguration);
    threads *= launch.block[i];
  }
  if (threads > MOST_THREADS)
    return rejected(function, std::to_string(threads) + " threads in a block, more than " + std::to_string(MOST_THREADS),
                    cudaErrorInvalidConfiguration);
  const DcaKernel &facts = *function.loaded().facts;
  if (facts.max_threads && threads > facts.max_threads)
    return rejected(function, std::to_string(threads) + " threads in a block, and it is compiled for at most " +
                                  std::to_string(facts.max_threads), cudaErrorInvalidConfiguration);
  size_t limit = std::max(function.most_dynamic_shared, SHARED_BY_DEFAULT - std::min<size_t>(SHARED_BY_DEFAULT, facts.static_shared));
  if (launch.dynamic_shared > limit)
    return rejected(function, std::to_string(launch.dynamic_shared) + " bytes of dynamic shared memory, more than " +
                                  std::to_string(limit), cudaErrorInvalidValue);
  return cudaSuccess;
}

}  // namespace

cudaError_t launch(Function &function, const Launch &how, void **arguments) {
  if (cudaError_t error = check(function, how)) return error;
  auto grid = std::make_shared<Grid>(function, how, arguments);
  if (only_shapes()) {
    device().streams.finish(how.stream);
    record_shape(grid->recordable());
    return failed_for_good();
  }
  device().streams.enqueue(how.stream, grid);
  device().streams.run(AT_LAUNCH);
  return failed_for_good();
}

cudaError_t allow_dynamic_shared(Function &function, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > properties().shared_per_block) return cudaErrorInvalidValue;
  function.most_dynamic_shared = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t occupancy(Function &function, int threads, size_t dynamic_shared, int *blocks) {
  const Properties &limits = properties();
  if (threads < 1 || threads > MOST_THREADS) return cudaErrorInvalidValue;
  int warps = (threads + WARP - 1) / WARP;
  size_t shared = function.loaded().facts->static_shared + dynamic_shared + SHARED_RESERVED;
  // Registers are ptxas's choice, which is not emulated: they do not limit here.
  *blocks = std::min({limits.blocks_per_multiprocessor, limits.threads_per_multiprocessor / (warps * WARP),
                      static_cast<int>(limits.shared_per_multiprocessor / shared)});
  return cudaSuccess;
}

}  // namespace dca
