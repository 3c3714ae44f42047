#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <set>
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
// The same where launches are checked for what shared memory begins with: it takes those that end before the next one.
constexpr uint64_t AT_CHECKED_LAUNCH = 20'000'000;
// What shared memory begins with: NaN, -1; once more, to see whether a result depends on it: small positive numbers; and
// what further orders of warps begin with.
constexpr uint32_t FILL = 0xff, OTHER_FILL = 0x3c, FILLS[] = {FILL, OTHER_FILL, 0x00, 0xbc};

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

// What a launch may have changed: the allocations that its parameters point into, and variables.
class Contents {
 public:
  explicit Contents(const std::vector<char> &parameters) {
    std::set<const Allocation *> found;
    for (size_t at = 0; at + sizeof(uintptr_t) <= parameters.size(); at += sizeof(uintptr_t)) {
      uintptr_t address;
      std::memcpy(&address, parameters.data() + at, sizeof address);
      if (const Allocation *one = device().memory.find(address)) found.insert(one);
    }
    device().memory.each([&](const Allocation &one) {
      if (one.kind == Kind::variable || one.kind == Kind::constant) found.insert(&one);
    });
    for (const Allocation *one : found) {
      const char *start = reinterpret_cast<const char *>(one->start);
      copies_.emplace(one->start, std::string(start, start + one->bytes));
    }
  }
  void restore() const {
    for (const auto &[start, bytes] : copies_) std::memcpy(reinterpret_cast<char *>(start), bytes.data(), bytes.size());
  }
  bool operator==(const Contents &other) const { return copies_ == other.copies_; }

 private:
  std::map<uintptr_t, std::string> copies_;
};

// A launch in its queue.
class Grid : public Operation {
 public:
  Grid(Function &function, const Launch &launch, void **arguments, uint32_t fill = FILL,
       uint64_t seed = setting("DCA_EMULATION_SEED", 0))
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
    services_ = {DCA_EMULATION_ABI, this, accessible, variable, finding, seed, checks(), fill, unwritten, print};
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
      if (recording() && !quiet_) recorded_ = std::make_unique<Recorded>(this, recordable(), variables_);
      if (twin_) before_ = std::make_unique<Contents>(parameters_);
    }
    uint64_t before = kernel_.executed(grid_);
    int state = kernel_.advance(grid_, budget);
    executed += kernel_.executed(grid_) - before;
    if (state == DCA_DONE && twin_) compare();
    if (state == DCA_FAILED || failure_ != cudaSuccess)
      fail_for_good(failure_ != cudaSuccess ? failure_ : cudaErrorLaunchFailure);
    if (state == DCA_DONE && recorded_) recorded_->end();
    return state != DCA_MORE;
  }

  const std::vector<char> &parameters() const { return parameters_; }
  // Known faults and the launch are recorded by the launch itself.
  void keep_quiet() {
    quiet_ = true;
    for (Known &one : known_) one.recorded = true;
  }
  // If it reads shared memory that nothing has written, it is run again, on the same memory, as a `twin` whose shared memory
  // begins with something else; what it writes must be the same. Not if anything is queued before it is done.
  void watch(std::unique_ptr<Grid> twin) {
    twin_ = std::move(twin);
    twin_->keep_quiet();
    queued_ = device().streams.queued() + 1;
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
    if (memory.accessible(start, static_cast<size_t>(bytes), write)) return 1;
    auto &grid = *static_cast<Grid *>(self);
    grid.refused_ = {start, static_cast<size_t>(bytes)};
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
    auto *grid = static_cast<Grid *>(self);
    std::string kind = one->kind, text = one->text;
    auto [address, bytes] = grid->refused_;
    if (kind == "address" && text.find(" at " + hexadecimal(address) + " ") != std::string::npos) {
      std::string where = device().memory.about(address, bytes);
      if (!where.empty()) text += ": " + where;
    }
    DcaFinding whole = *one;
    whole.text = text.c_str();
    record(whole);
    grid->failure_ = kind == "address"     ? cudaErrorIllegalAddress
                     : kind == "alignment" ? cudaErrorMisalignedAddress
                     : kind == "assertion" ? cudaErrorAssert
                                           : cudaErrorLaunchFailure;
  }

  // What a launch prints that runs once more has been printed.
  static void print(void *self, const char *text, uint64_t bytes) {
    if (!static_cast<Grid *>(self)->quiet_) std::fwrite(text, 1, static_cast<size_t>(bytes), stdout);
  }

  static void unwritten(void *self, const DcaFinding *one) {
    auto *grid = static_cast<Grid *>(self);
    if (!grid->unwritten_text_.empty()) return;
    grid->unwritten_ = *one;
    grid->unwritten_text_ = std::string(one->text) + ", and what the kernel writes depends on it";
  }

  void compare() {
    if (unwritten_text_.empty() || device().streams.queued() != queued_) return;
    const Contents first(parameters_);
    before_->restore();
    uint64_t executed = 0;
    const uint64_t most = 4 * kernel_.executed(grid_) + AT_LAUNCH;
    bool ended = false;
    while (!(ended = twin_->advance(AT_LAUNCH, executed)) && executed < most) {
    }
    const bool same = ended && Contents(parameters_) == first;
    first.restore();
    if (same || failed_for_good()) return;
    unwritten_.text = unwritten_text_.c_str();
    finding(this, &unwritten_);
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
  std::pair<uintptr_t, size_t> refused_ = {0, 0};  // what an access was to that was not let pass
  bool quiet_ = false;
  std::unique_ptr<Grid> twin_;
  std::unique_ptr<Contents> before_;
  uint64_t queued_ = 0;
  DcaFinding unwritten_ = {};
  std::string unwritten_text_;
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

// Runs a kernel's first launch in as many random orders of its warps as DCA_EMULATION_ORDERS says, each on the same memory
// but with other contents of shared memory, before it is launched. What was done is a line of JSON in the file that DCA_EMULATION_ORDERED names.
void run_in_orders(Function &function, const Launch &how, void **arguments) {
  const uint64_t orders = setting("DCA_EMULATION_ORDERS", 0), most = setting("DCA_EMULATION_ORDERS_BOUND", 1'000'000'000);
  if (!orders || function.ordered) return;
  function.ordered = true;
  device().streams.finish_all();
  Grid begun(function, how, arguments);
  uint64_t none = 0;
  // Variables have their initial values once a kernel has begun.
  begun.advance(0, none);
  const Contents before(begun.parameters());
  std::unique_ptr<Contents> first;
  bool differs = false, ended = true;
  uint64_t done = 0, executed = 0;
  while (done < orders && executed < most && ended && !failed_for_good()) {
    const uint32_t fill = FILLS[done % std::size(FILLS)];
    Grid grid(function, how, arguments, fill, ++done);
    grid.keep_quiet();
    // One that waits for another launch does not end.
    while (!grid.advance(AT_LAUNCH, executed) && (ended = executed < most)) {
    }
    Contents after(grid.parameters());
    if (!first) first = std::make_unique<Contents>(after);
    differs = differs || (ended && !(after == *first));
    before.restore();
  }
  append("DCA_EMULATION_ORDERED", "{\"kernel\": " + quoted(function.name) + ", \"orders\": " + std::to_string(done - !ended) +
                                      ", \"instructions\": " + std::to_string(executed) + ", \"differs\": " +
                                      (differs ? "true" : "false") + "}");
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
  run_in_orders(function, how, arguments);
  const bool checked = checks() & DCA_CHECK_SHARED;
  if (checked && device().streams.idle()) grid->watch(std::make_unique<Grid>(function, how, arguments, OTHER_FILL));
  device().streams.enqueue(how.stream, grid);
  device().streams.run(checked ? AT_CHECKED_LAUNCH : AT_LAUNCH);
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
