// Modules that are registered or loaded, their kernels and variables, and the translator that makes kernels of them.
#ifndef DCA_EMULATION_MODULES_H
#define DCA_EMULATION_MODULES_H

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../runtime/abi.h"
#include "memory.h"

namespace dca {

struct Stream;

// A kernel that was translated and loaded.
struct Kernel {
  const DcaKernel *facts;
  decltype(&dca_start) start;
  decltype(&dca_advance) advance;
  decltype(&dca_executed) executed;
  decltype(&dca_waits) waits;
  decltype(&dca_finish) finish;
};

// A variable of a module. What the host wrote before the module's first kernel was loaded is kept over the initial value.
struct Variable {
  std::string name;
  size_t bytes = 0;
  char *storage = nullptr;
  Kind kind = Kind::variable;
  bool initialised = false;
  std::vector<bool> written;
};

// A fat binary that was registered, or an image that was loaded.
struct Module {
  std::string path;   // of the shared library, or of a file with the image alone
  uint64_t address;   // of the fat binary in the library, as its sections have it; 0 where the file is the image
  bool owned = false;
  std::map<std::string, Variable> variables;

  // What is known of it first decides whether it is constant.
  Variable &variable(const std::string &name, size_t bytes, Kind = Kind::variable);
};

struct Function {
  Module *module;
  std::string name;
  size_t most_dynamic_shared;
  bool ordered = false;  // its first launch was run in several orders
  Kernel kernel = {};

  // The translated kernel; ends the process if there is none.
  Kernel &loaded();
};

class Modules {
 public:
  // A registered fat binary of a library.
  Module &add(const std::string &path, uint64_t address);
  // An image in a file of its own; `owned` files are deleted with it.
  Module &add_image(const std::string &path, bool owned);
  void remove(Module *);
  Function &function(Module &, const std::string &name);
  void bind(const void *stub, Function &function) { stubs_[stub] = &function; }
  void bind_variable(const void *host, Module &module, const std::string &name, size_t bytes, Kind);
  Function *of_stub(const void *) const;
  // Null if there is no such variable.
  Variable *of_host(const void *) const;

 private:
  std::deque<std::unique_ptr<Module>> modules_;
  std::map<std::pair<Module *, std::string>, std::unique_ptr<Function>> functions_;
  std::unordered_map<const void *, Function *> stubs_;
  std::unordered_map<const void *, Variable *> variables_;
};

struct Part {
  const void *start;
  size_t bytes;
};
// The answer of the program that DCA_EMULATION_TRANSLATOR names to a request: its first word, lines, and further bytes.
// Ends the process with that program's message if it fails.
std::string ask(const std::string &request, const std::vector<Part> &parts = {});
bool asked();  // whether this process has started that program
// The path of the shared object of a kernel.
std::string translated(const Module &, const std::string &entry);
// Whether a module has a kernel, as PTX or as machine code.
bool has_kernel(const Module &, const std::string &entry);

}  // namespace dca

#endif
