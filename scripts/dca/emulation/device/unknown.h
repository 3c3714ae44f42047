// Functions that are not emulated.
#ifndef DCA_EMULATION_UNKNOWN_H
#define DCA_EMULATION_UNKNOWN_H

// The section of the generated functions, which end the process.
#define DCA_UNKNOWN "dca_unknown"

namespace dca {

// Ends the process: the program has called a function that is not emulated.
[[noreturn]] void end_of_unknown(const char *name);
// A function that does that, for a name that is known only now.
void *unknown_function(const char *name);
// Whether a function is one of those that were generated.
bool is_unknown(const void *function);

}  // namespace dca

#endif
