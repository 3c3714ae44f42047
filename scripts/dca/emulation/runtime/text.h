// What kernels print, and assertions that fail: printf and assert of CUDA C++.
#ifndef DCA_EMULATION_TEXT_H
#define DCA_EMULATION_TEXT_H

#include "memory.h"

namespace dca {

// Longer texts are cut off: they are at addresses that a kernel computed.
constexpr size_t MOST_TEXT = 1 << 16;

// A value at a generic address of one lane.
template <class T> inline T read_at(Warp &w, u32 lane, u32 line, u64 address) {
  u64 all[32];
  char *at[32];
  all[lane] = address;
  locate(w, 1u << lane, line, GENERIC, all, sizeof(T), READ, at);
  T value;
  memcpy(&value, at[lane], sizeof value);
  return value;
}
inline std::string text_at(Warp &w, u32 lane, u32 line, u64 address) {
  std::string all;
  for (char letter; all.size() < MOST_TEXT && (letter = read_at<char>(w, lane, line, address++));) all += letter;
  return all;
}
// A parameter of a call, in the lane's local memory.
template <class T> inline T argument(const Warp &w, u32 lane, u32 offset) {
  T value;
  memcpy(&value, w.local + lane * static_cast<u64>(w.cta->grid->code->local_bytes) + offset, sizeof value);
  return value;
}

// printf of one lane. Arguments lie one after another, each at a multiple of its size; floats are doubles.
struct Printed {
  Warp &w;
  u32 lane, line;
  u64 next;
  std::string out;
  s32 count = 0;

  template <class T> T take() {
    next = (next + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    T value = read_at<T>(w, lane, line, next);
    next += sizeof(T);
    count++;
    return value;
  }
  template <class T> void add(const std::string &how, T value) {
    std::vector<char> buffer(static_cast<size_t>(snprintf(nullptr, 0, how.c_str(), value)) + 1);
    snprintf(buffer.data(), buffer.size(), how.c_str(), value);
    out += buffer.data();
  }
  // A conversion from its %; where the next letter is. One that CUDA does not know is printed as it is written.
  size_t convert(const std::string &format, size_t start) {
    size_t sizes = format.find_first_not_of("-+ #0123456789.", start + 1);
    size_t at = sizes == std::string::npos ? sizes : format.find_first_not_of("hljztL", sizes);
    if (at == std::string::npos) {
      out += format.substr(start);
      return format.size();
    }
    const std::string flags = format.substr(start, sizes - start), size = format.substr(sizes, at - sizes);
    const bool wide = size.find_first_of("ljzt") != std::string::npos;
    const char how = format[at];
    if (how == '%')
      out += '%';
    else if (strchr("dic", how))
      wide ? add(flags + "ll" + how, static_cast<long long>(take<s64>())) : add(flags + size + how, take<s32>());
    else if (strchr("ouxX", how))
      wide ? add(flags + "ll" + how, static_cast<unsigned long long>(take<u64>())) : add(flags + size + how, take<u32>());
    else if (strchr("aAeEfFgG", how))
      add(flags + how, take<f64>());
    else if (how == 'p')
      add(flags + how, reinterpret_cast<void *>(take<u64>()));
    else if (how == 's') {
      const u64 address = take<u64>();
      add(flags + how, (address ? text_at(w, lane, line, address) : "(null)").c_str());
    } else
      out += format.substr(start, at + 1 - start);
    return at + 1;
  }
};

// vprintf: the format, the arguments, and how many of them there were.
DCA_NOT_INLINE inline void print_text(Warp &w, u32 m, u32 line, u32 format_at, u32 arguments_at, u32 result_at) {
  const DcaServices &services = w.cta->grid->services;
  LANES(m) {
    const std::string format = text_at(w, l, line, argument<u64>(w, l, format_at));
    Printed printed{w, l, line, argument<u64>(w, l, arguments_at), ""};
    for (size_t at = 0; at < format.size();)
      if (format[at] == '%')
        at = printed.convert(format, at);
      else
        printed.out += format[at++];
    if (services.print)
      services.print(services.self, printed.out.data(), printed.out.size());
    else
      fwrite(printed.out.data(), 1, printed.out.size(), stdout);
    memcpy(w.local + l * static_cast<u64>(w.cta->grid->code->local_bytes) + result_at, &printed.count, sizeof printed.count);
  }
}

// __assertfail: what was asserted, the file, its line, the function, and the bytes of a letter.
DCA_NOT_INLINE inline void assertion_failed(Warp &w, u32 m, u32 line, u32 what, u32 file, u32 number, u32 function, u32) {
  if (!m) return;
  const u32 lane = static_cast<u32>(__builtin_ctz(m));
  auto read = [&](u32 at) { return text_at(w, lane, line, argument<u64>(w, lane, at)); };
  fault(w, lane, line, "assertion", text("%.400s:%u: %.400s: the assertion `%.400s` fails", read(file).c_str(), argument<u32>(w, lane, number),
                                         read(function).c_str(), read(what).c_str()));
}

}  // namespace dca
#endif
