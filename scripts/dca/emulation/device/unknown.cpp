#include "unknown.h"

#include <array>
#include <string>
#include <utility>

#include "report.h"

// The linker names the ends of a section.
extern "C" const char __start_dca_unknown, __stop_dca_unknown;

namespace dca {
namespace {

constexpr std::size_t MOST = 512;
std::array<std::string, MOST> names;

template <std::size_t number>
void ending() {
  end_of_unknown(names[number].c_str());
}

template <std::size_t... numbers>
constexpr std::array<void (*)(), sizeof...(numbers)> all(std::index_sequence<numbers...>) {
  return {ending<numbers>...};
}

constexpr auto FUNCTIONS = all(std::make_index_sequence<MOST>());

}  // namespace

void end_of_unknown(const char *name) {
  end({"DCA-836", std::string("the program calls ") + name + ", which is not emulated.", "",
       "use a setting of the program that does not need it, or a GPU."});
}

bool is_unknown(const void *function) { return function >= &__start_dca_unknown && function < &__stop_dca_unknown; }

void *unknown_function(const char *name) {
  for (std::size_t i = 0; i < MOST; i++) {
    if (names[i].empty()) names[i] = name;
    if (names[i] == name) return reinterpret_cast<void *>(FUNCTIONS[i]);
  }
  end_of_unknown(name);
}

}  // namespace dca
