// Messages of the emulated device, and the error state of CUDA's run time.
#ifndef DCA_EMULATION_REPORT_H
#define DCA_EMULATION_REPORT_H

#include <driver_types.h>

#include <string>

struct DcaFinding;

namespace dca {

// A message in the form of all of dca's: a code, what happened, why, and what to do next.
struct Message {
  const char *code;
  std::string what, why, next;
};

// Prints the message, appends it to the findings, and ends the process with the exit status of its code: nothing that a
// kernel should have computed is read afterwards.
[[noreturn]] void end(const Message &);
// Prints the message; the caller returns an error to the program.
void say(const Message &);
// Prints what a kernel did wrong, and appends it to the file that DCA_EMULATION_FINDINGS names, as a line of JSON.
void record(const DcaFinding &);
// A text as a string of JSON.
std::string quoted(const std::string &text);
// Appends an object of JSON, as a line, to the file that a variable of the environment names, if it is set.
void append(const char *variable, const std::string &object);
// Where in a kernel it is: block, warp, lane, PTX line, and the source line where the PTX has one.
std::string place(const DcaFinding &);
// Appends a known fault of a kernel to that file; prints it once in a process.
void record_known(const std::string &kernel, const std::string &fault);
// An address for people.
std::string hexadecimal(unsigned long long);
// A kernel's name for people.
std::string readable(const std::string &mangled);

// Errors as CUDA keeps them: a failed kernel makes every later call of the process fail, also those that only ask;
// another error stays until cudaGetLastError.
cudaError_t result(cudaError_t);
// The same for calls that ask nothing of the device, which a failed launch does not make fail: destructors use them.
cudaError_t result_of_host(cudaError_t);
cudaError_t last_error(bool reset);
void fail_for_good(cudaError_t);
cudaError_t failed_for_good();
void forget_errors();

}  // namespace dca

#endif
