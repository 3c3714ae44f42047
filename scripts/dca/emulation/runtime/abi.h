// The C ABI between a translated kernel and whoever runs it.
//
// A kernel is a shared object that exports `dca_kernel` and the functions at the end. Grids are advanced in turns, so
// that kernels that wait for one another make progress.
#ifndef DCA_EMULATION_ABI_H
#define DCA_EMULATION_ABI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DCA_EMULATION_ABI 4u

// Bits of `DcaServices.checks`.
enum { DCA_CHECK_ADDRESSES = 1, DCA_CHECK_SHARED = 2, DCA_CHECK_RACES = 4 };
// What `dca_advance` returns.
enum { DCA_DONE = 0, DCA_MORE = 1, DCA_FAILED = 2 };

// `parameters` has the bytes of all parameters at their offsets; it is copied at the start.
struct DcaLaunch {
  uint32_t grid[3], block[3];
  uint64_t dynamic_shared;
  const void *parameters;
  uint64_t parameter_bytes;
};

// Something wrong that a kernel did. `kind` is a word (see findings.h), `source` is "file:line" or null.
struct DcaFinding {
  const char *kind, *kernel, *text;
  uint32_t block[3], warp, lane, ptx_line;
  const char *source;
};

// Given by the device. A null function is not called: every address is accessible, a variable has storage of its own in
// the shared object, and a finding goes to standard error.
struct DcaServices {
  uint32_t abi;
  void *self;
  int (*accessible)(void *self, uint64_t address, uint64_t bytes, int write);  // 1 if inside one live allocation
  // The storage of a .global or .const variable of the module; `initial` has `bytes` bytes, or is null for zeros.
  uint64_t (*variable)(void *self, const char *name, uint64_t bytes, uint64_t align, const void *initial);
  void (*finding)(void *self, const struct DcaFinding *);
  uint64_t seed;    // 0: warps run in order; otherwise their order is drawn from it
  uint32_t checks;  // bits: addresses, shared memory, races
  uint32_t fill;    // what each byte of shared memory begins with
  // A read of shared memory that nothing has written; a null function makes it a finding.
  void (*unwritten)(void *self, const struct DcaFinding *);
  void (*print)(void *self, const char *text, uint64_t bytes);  // null: to standard output
};

struct DcaKernel {
  uint32_t abi;
  const char *name;
  uint32_t parameters;
  const uint32_t *offsets, *sizes;
  uint32_t parameter_bytes, static_shared, max_threads;
  const char *target;
};

extern const struct DcaKernel dca_kernel;
void *dca_start(const struct DcaLaunch *, const struct DcaServices *);  // a grid; null if the launch is not valid
int dca_advance(void *grid, uint64_t budget);                           // runs about `budget` warp instructions at most
uint64_t dca_executed(const void *grid);                                // warp instructions so far
int dca_waits(const void *grid, struct DcaFinding *);                   // where a lane is that has not ended; 0 if none has begun
void dca_finish(void *grid);

#ifdef __cplusplus
}
#endif
#endif
