#include "modules.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstring>

#include "device.h"
#include "report.h"

namespace dca {

Variable &Module::variable(const std::string &name, size_t bytes, Kind kind) {
  Variable &one = variables[name];
  if (one.storage) return one;
  one.name = name;
  one.bytes = bytes;
  one.kind = kind;
  one.written.assign(bytes, false);
  one.storage = static_cast<char *>(device().memory.allocate(bytes, kind));
  if (!one.storage) end({"DCA-836", "there is no memory for the variable " + name + ".", "", "free some memory."});
  std::memset(one.storage, 0, bytes);
  return one;
}

Kernel &Function::loaded() {
  if (kernel.facts) return kernel;
  std::string path = translated(*module, name);
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  auto symbol = [&](const char *wanted) {
    void *found = library ? dlsym(library, wanted) : nullptr;
    if (!found) {
      const char *why = dlerror();
      end({"DCA-836", "the translation of " + readable(name) + " cannot be loaded.", why ? why : "",
           "delete " + path + " and run the program again."});
    }
    return found;
  };
  auto facts = static_cast<const DcaKernel *>(symbol("dca_kernel"));
  if (facts->abi != DCA_EMULATION_ABI) {
    end({"DCA-836", "the translation of " + readable(name) + " is of another version of dca.", path,
         "start the program with `dca emulate` of the same version."});
  }
  kernel.start = reinterpret_cast<decltype(&dca_start)>(symbol("dca_start"));
  kernel.advance = reinterpret_cast<decltype(&dca_advance)>(symbol("dca_advance"));
  kernel.executed = reinterpret_cast<decltype(&dca_executed)>(symbol("dca_executed"));
  kernel.waits = reinterpret_cast<decltype(&dca_waits)>(symbol("dca_waits"));
  kernel.finish = reinterpret_cast<decltype(&dca_finish)>(symbol("dca_finish"));
  kernel.facts = facts;
  return kernel;
}

Module &Modules::add(const std::string &path, uint64_t address) {
  modules_.push_back(std::make_unique<Module>(Module{path, address}));
  return *modules_.back();
}

Module &Modules::add_image(const std::string &path, bool owned) {
  Module &module = add(path, 0);
  module.owned = owned;
  return module;
}

void Modules::remove(Module *module) {
  for (auto one = stubs_.begin(); one != stubs_.end();) one = one->second->module == module ? stubs_.erase(one) : ++one;
  for (auto &[name, variable] : module->variables) {
    for (auto one = variables_.begin(); one != variables_.end();)
      one = one->second == &variable ? variables_.erase(one) : ++one;
    if (variable.storage) device().memory.release(variable.storage, variable.kind);
  }
  for (auto one = functions_.begin(); one != functions_.end();)
    one = one->first.first == module ? functions_.erase(one) : ++one;
  if (module->owned) unlink(module->path.c_str());
  for (auto one = modules_.begin(); one != modules_.end(); ++one) {
    if (one->get() == module) {
      modules_.erase(one);
      return;
    }
  }
}

Function &Modules::function(Module &module, const std::string &name) {
  auto &one = functions_[{&module, name}];
  if (!one) {
    one = std::make_unique<Function>();
    one->module = &module;
    one->name = name;
    one->most_dynamic_shared = 0;
  }
  return *one;
}

void Modules::bind_variable(const void *host, Module &module, const std::string &name, size_t bytes, Kind kind) {
  variables_[host] = &module.variable(name, bytes, kind);
}

Function *Modules::of_stub(const void *stub) const {
  auto found = stubs_.find(stub);
  return found == stubs_.end() ? nullptr : found->second;
}

Variable *Modules::of_host(const void *host) const {
  auto found = variables_.find(host);
  return found == variables_.end() ? nullptr : found->second;
}

}  // namespace dca
