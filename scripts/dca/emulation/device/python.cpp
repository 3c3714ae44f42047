// Attaches the device to torch in every Python that is started behind it, whatever its options: an audit hook sees the
// import of torch, and runs the file that DCA_EMULATION_ATTACH names just before. Source: PEP 578.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "report.h"

namespace {

template <class Function>
Function of_python(const char *name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

constexpr char ATTACH[] =
    "exec(compile(open(__import__('os').environ['DCA_EMULATION_ATTACH']).read(), 'attach.py', 'exec'), "
    "{'__name__': 'dca_emulated_attach', '__file__': __import__('os').environ['DCA_EMULATION_ATTACH']})";

int on_event(const char *event, void *arguments, void *) {
  static bool attached = false;
  if (attached || std::strcmp(event, "import") != 0) return 0;
  static auto item = of_python<void *(*)(void *, long)>("PyTuple_GetItem");
  static auto text = of_python<const char *(*)(void *)>("PyUnicode_AsUTF8");
  void *first = item(arguments, 0);
  const char *name = first ? text(first) : nullptr;
  if (!name || std::strcmp(name, "torch") != 0) return 0;
  attached = true;
  static auto run = of_python<int (*)(const char *, void *)>("PyRun_SimpleStringFlags");
  if (run(ATTACH, nullptr) != 0) dca::end({"DCA-836", "the emulated device cannot be attached to torch.", "", ""});
  return 0;
}

// Before Python starts; in another program there is no such function.
__attribute__((constructor)) void watch() {
  using Hook = int (*)(const char *, void *, void *);
  auto add = of_python<int (*)(Hook, void *)>("PySys_AddAuditHook");
  if (add && std::getenv("DCA_EMULATION_ATTACH")) add(on_event, nullptr);
}

}  // namespace
