// Functions that are not emulated.
#ifndef DCA_EMULATION_UNKNOWN_H
#define DCA_EMULATION_UNKNOWN_H

namespace dca {

// Ends the process: the program has called a function that is not emulated.
[[noreturn]] void end_of_unknown(const char *name);
// A function that does that, for a name that is known only now.
void *unknown_function(const char *name);

}  // namespace dca

#endif
