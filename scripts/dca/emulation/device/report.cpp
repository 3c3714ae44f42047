#include "report.h"

#include <cxxabi.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "../runtime/abi.h"

namespace dca {
namespace {

std::atomic<cudaError_t> lasting{cudaSuccess};
thread_local cudaError_t last = cudaSuccess;

std::string indented(const std::string &text) {
  std::string out;
  for (char letter : text) {
    out += letter;
    if (letter == '\n') out += "        ";
  }
  return out;
}

void write_all(int file, const std::string &text) {
  for (size_t done = 0; done < text.size();) {
    ssize_t count = write(file, text.data() + done, text.size() - done);
    if (count <= 0) return;
    done += static_cast<size_t>(count);
  }
}

}  // namespace

std::string quoted(const std::string &text) {
  std::string out = "\"";
  for (unsigned char letter : text) {
    char code[8];
    if (letter == '"' || letter == '\\') {
      out += '\\';
      out += static_cast<char>(letter);
    } else if (letter < 0x20) {
      std::snprintf(code, sizeof code, "\\u%04x", letter);
      out += code;
    } else {
      out += static_cast<char>(letter);
    }
  }
  return out + '"';
}

void append(const char *variable, const std::string &object) {
  const char *path = std::getenv(variable);
  if (!path || !*path) return;
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) return;
  write_all(file, object + "\n");
  close(file);
}

void say(const Message &message) {
  std::string text = std::string(message.code) + ": " + message.what + "\n";
  if (!message.why.empty()) text += "  Why:  " + indented(message.why) + "\n";
  if (!message.next.empty()) text += "  Next: " + indented(message.next) + "\n";
  std::fflush(nullptr);
  write_all(STDERR_FILENO, text);
}

void end(const Message &message) {
  say(message);
  append("DCA_EMULATION_FINDINGS", "{\"kind\": \"end\", \"code\": " + quoted(message.code) + ", \"text\": " +
                                       quoted(message.what) + ", \"why\": " + quoted(message.why) + "}");
  _exit(message.code[4] - '0');
}

std::string readable(const std::string &mangled) {
  int status = 0;
  char *text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 && text ? text : mangled;
  std::free(text);
  return name;
}

std::string hexadecimal(unsigned long long number) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", number);
  return text;
}

std::string place(const DcaFinding &finding) {
  char text[160];
  std::snprintf(text, sizeof text, "block (%u, %u, %u), warp %u, lane %u, PTX line %u", finding.block[0],
                finding.block[1], finding.block[2], finding.warp, finding.lane, finding.ptx_line);
  return finding.source ? std::string(text) + ", " + finding.source : text;
}

void record(const DcaFinding &finding) {
  std::string source = finding.source ? finding.source : "";
  say({"DCA-837", readable(finding.kernel) + ": " + finding.text,
       std::string(finding.kind) + " at " + place(finding),
       "the launch fails as on a GPU; every later CUDA call of this process returns its error."});
  char numbers[200];
  std::snprintf(numbers, sizeof numbers, "\"block\": [%u, %u, %u], \"warp\": %u, \"lane\": %u, \"ptx_line\": %u",
                finding.block[0], finding.block[1], finding.block[2], finding.warp, finding.lane, finding.ptx_line);
  append("DCA_EMULATION_FINDINGS", "{\"kind\": " + quoted(finding.kind) + ", \"kernel\": " + quoted(finding.kernel) +
                                       ", \"text\": " + quoted(finding.text) + ", " + numbers + ", \"source\": " +
                                       quoted(source) + "}");
}

void record_known(const std::string &kernel, const std::string &fault) {
  static std::set<std::string> printed;
  if (printed.insert(fault).second)
    say({"DCA-837", readable(kernel) + " has a known fault: " + fault, "", "the launch goes on."});
  append("DCA_EMULATION_FINDINGS", "{\"kind\": \"known\", \"kernel\": " + quoted(kernel) + ", \"text\": " +
                                       quoted(fault) + "}");
}

cudaError_t result(cudaError_t error) {
  if (cudaError_t failed = lasting.load()) return failed;
  if (error != cudaSuccess && error != cudaErrorNotReady) last = error;
  return error;
}

cudaError_t result_of_host(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

cudaError_t last_error(bool reset) {
  if (cudaError_t failed = lasting.load()) return failed;
  cudaError_t error = last;
  if (reset) last = cudaSuccess;
  return error;
}

void fail_for_good(cudaError_t error) { lasting.store(error); }

cudaError_t failed_for_good() { return lasting.load(); }

void forget_errors() {
  lasting.store(cudaSuccess);
  last = cudaSuccess;
}

}  // namespace dca
