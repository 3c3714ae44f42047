// Functions of CUDA's driver interface by name.
#ifndef DCA_EMULATION_DRIVER_H
#define DCA_EMULATION_DRIVER_H

namespace dca {

// One that is not emulated is a function that ends the process with its name.
void *driver_function(const char *name);

}  // namespace dca

#endif
