// Containers of g++ 12 and later call this function of libstdc++ when a size overflows. It came with GCC 11, the only
// symbol of our modules that is newer than GCC 8. What it throws is libstdc++'s own, of GCC 4.9.
#include <new>

extern "C" {
// The mangled name of std::__throw_bad_array_new_length, which libstdc++ declares with a visibility that this must not
// have.
__attribute__((visibility("hidden"), noreturn)) void _ZSt28__throw_bad_array_new_lengthv() {
  throw std::bad_array_new_length();
}
}
