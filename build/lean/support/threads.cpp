// The inline functions of shared_ptr read this variable of the C library, to count without atomic instructions while a
// process has a single thread. It came with glibc 2.32, the only symbol of our modules that is newer than 2.28. This
// definition is the module's own, and its value says that there may be more threads, so it always counts atomically,
// which is right in any process and beside libraries that do not.
//
// sys/single_threaded.h is not included: what it declares cannot be hidden.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
