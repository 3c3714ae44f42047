// Asks the translator. It is one program per process, which lives as long: it reads a request as a line with what is asked
// for and the lines and bytes that belong to it, and answers with "found" or "failed", a number of bytes, and that many
// bytes.
#include <spawn.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "modules.h"
#include "report.h"

extern char **environ;

namespace dca {
namespace {

struct Translator {
  pid_t owner = 0, process = 0;
  int line = -1;  // a socket: writing to a program that has ended must not end this one by a signal
};

Translator translator;

[[noreturn]] void gone(const std::string &why) {
  end({"DCA-836", "the translator of kernels cannot be asked: " + why + ".", "",
       "start the program with `dca emulate -- PROGRAM`."});
}

// The variables that the translator gets: it runs in dca's own environment, and not behind the device.
std::vector<std::string> variables() {
  std::vector<std::string> kept = {"DCA_EMULATION_OFF=1"};
  for (char **one = environ; *one; one++) {
    std::string text = *one;
    bool changed = text.rfind("LD_", 0) == 0 || text.rfind("PYTHON", 0) == 0 || text.rfind("DCA_EMULATION_OFF=", 0) == 0;
    if (!changed) kept.push_back(text);
  }
  return kept;
}

void start() {
  const char *program = std::getenv("DCA_EMULATION_TRANSLATOR");
  if (!program || !*program) gone("DCA_EMULATION_TRANSLATOR is not set");
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) gone(std::strerror(errno));
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, ends[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&files, ends[1], STDOUT_FILENO);
  std::string words[] = {program, "-I", "-m", "dca.emulation.worker"};
  char *argv[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  std::vector<std::string> texts = variables();
  std::vector<char *> env;
  for (std::string &text : texts) env.push_back(text.data());
  env.push_back(nullptr);
  int error = posix_spawn(&translator.process, program, &files, nullptr, argv, env.data());
  posix_spawn_file_actions_destroy(&files);
  close(ends[1]);
  if (error) gone(std::string(program) + ": " + std::strerror(error));
  translator.line = ends[0];
  translator.owner = getpid();
}

std::string read_bytes(size_t count) {
  std::string text(count, '\0');
  for (size_t done = 0; done < count;) {
    ssize_t got = read(translator.line, text.data() + done, count - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) gone("it has ended");
    done += static_cast<size_t>(got);
  }
  return text;
}

std::string read_line() {
  std::string line;
  for (std::string one; (one = read_bytes(1)) != "\n";) line += one;
  return line;
}

void write_bytes(const void *start, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t count = send(translator.line, static_cast<const char *>(start) + done, bytes - done, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) gone("it has ended");
    done += static_cast<size_t>(count);
  }
}

}  // namespace

// A forked process has the socket of its parent's.
bool asked() { return translator.owner == getpid(); }

std::string ask(const std::string &request, const std::vector<Part> &parts) {
  if (!asked()) start();
  write_bytes(request.data(), request.size());
  for (const Part &one : parts) write_bytes(one.start, one.bytes);
  std::string state = read_line();
  size_t bytes = std::strtoull(read_line().c_str(), nullptr, 10);
  std::string text = read_bytes(bytes);
  if (state == "found") return text;
  // A message of dca: "DCA-nnn: what", then lines of why and next, as they are.
  std::string code = text.rfind("DCA-", 0) == 0 ? text.substr(0, 7) : "DCA-836";
  std::string what = text.rfind("DCA-", 0) == 0 ? text.substr(std::min<size_t>(9, text.size())) : text;
  static std::string kept;
  kept = code;
  end({kept.c_str(), what, "", ""});
}

namespace {

std::string lines(const Module &module, const std::string &entry) {
  return module.path + "\n" + std::to_string(module.address) + "\n" + entry + "\n";
}

}  // namespace

std::string translated(const Module &module, const std::string &entry) { return ask("kernel\n" + lines(module, entry)); }

bool has_kernel(const Module &module, const std::string &entry) {
  return ask("contains\n" + lines(module, entry)) == "yes";
}

}  // namespace dca
