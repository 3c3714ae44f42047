// Every program that a process behind the device starts is behind it too, also when it is given another environment.
#include <dlfcn.h>
#include <spawn.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

extern char **environ;

namespace {

// `dca emulate` sets them; a program that is started with DCA_EMULATION_OFF, as the translator is, does not get them.
constexpr const char *HANDED_ON[] = {"LD_PRELOAD=", "LD_LIBRARY_PATH=", "DCA_CACHE_DIR=", "PYTORCH_NO_CUDA_MEMORY_CACHING="};
constexpr char OFF[] = "DCA_EMULATION_OFF=", OURS[] = "DCA_EMULATION_";

bool starts_with(const char *text, const char *start) { return std::strncmp(text, start, std::strlen(start)) == 0; }

// The variables of the device, as this process got them; a later change by the program does not matter.
const std::vector<std::string> &device_variables() {
  static const std::vector<std::string> all = [] {
    std::vector<std::string> found;
    for (char **one = environ; one && *one; one++) {
      bool handed_on = starts_with(*one, OURS);
      for (const char *name : HANDED_ON) handed_on = handed_on || starts_with(*one, name);
      if (handed_on) found.emplace_back(*one);
    }
    return found;
  }();
  return all;
}

__attribute__((constructor)) void remember() { device_variables(); }

bool has(char *const *env, const std::string &assignment) {
  size_t name = assignment.find('=') + 1;
  for (char *const *one = env; one && *one; one++)
    if (std::strncmp(*one, assignment.c_str(), name) == 0) return true;
  return false;
}

// An environment with the device's variables. Lists that programs also set for
// themselves get the device's entries first.
class Environment {
 public:
  explicit Environment(char *const *given) {
    for (char *const *one = given; one && *one; one++) {
      if (starts_with(*one, OFF)) off_ = true;
      texts_.emplace_back(*one);
    }
    for (const std::string &own : device_variables()) {
      if (off_) break;
      if (!has(given, own)) {
        texts_.push_back(own);
        continue;
      }
      size_t value = own.find('=') + 1;
      for (std::string &text : texts_) {
        bool list = starts_with(own.c_str(), "LD_");
        bool same = text.compare(0, value, own, 0, value) == 0;
        if (same && list && text.find(own.substr(value)) == std::string::npos)
          text = own + (text.size() > value ? ":" + text.substr(value) : "");
      }
    }
    for (std::string &text : texts_) pointers_.push_back(text.data());
    pointers_.push_back(nullptr);
  }

  char *const *get() { return pointers_.data(); }

 private:
  bool off_ = false;
  std::vector<std::string> texts_;
  std::vector<char *> pointers_;
};

template <class Function>
Function next(const char *name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int execve(const char *path, char *const argv[], char *const env[]) {
  static auto real = next<decltype(&execve)>("execve");
  return real(path, argv, Environment(env).get());
}
int execvpe(const char *file, char *const argv[], char *const env[]) {
  static auto real = next<decltype(&execvpe)>("execvpe");
  return real(file, argv, Environment(env).get());
}
int execv(const char *path, char *const argv[]) { return execve(path, argv, environ); }
int execvp(const char *file, char *const argv[]) { return execvpe(file, argv, environ); }
int fexecve(int file, char *const argv[], char *const env[]) {
  static auto real = next<decltype(&fexecve)>("fexecve");
  return real(file, argv, Environment(env).get());
}
int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *files, const posix_spawnattr_t *how,
                char *const argv[], char *const env[]) {
  static auto real = next<decltype(&posix_spawn)>("posix_spawn");
  return real(pid, path, files, how, argv, Environment(env).get());
}
int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *files, const posix_spawnattr_t *how,
                 char *const argv[], char *const env[]) {
  static auto real = next<decltype(&posix_spawnp)>("posix_spawnp");
  return real(pid, file, files, how, argv, Environment(env).get());
}

}  // extern "C"
