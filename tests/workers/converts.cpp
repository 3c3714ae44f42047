// Converts indices as often as it is asked, for a test that runs it on an emulated processor: arguments from stdin, and
// the memory around the outputs back to stdout, all int32 but for the sizes in front.
#include <unistd.h>

#include <cstdint>
#include <vector>

extern "C" void convert(int*, int*, int*, int*, int*, int*, int*, int*, int*, int*, int64_t, int64_t, int64_t, int64_t,
                        int64_t, int);

static bool take(void* to, size_t bytes) {
  for (auto at = static_cast<char*>(to); bytes;) {
    const ssize_t got = read(0, at, bytes);
    if (got <= 0) return false;
    at += got, bytes -= got;
  }
  return true;
}

static bool give(const void* from, size_t bytes) {
  for (auto at = static_cast<const char*>(from); bytes;) {
    const ssize_t put = write(1, at, bytes);
    if (put <= 0) return false;
    at += put, bytes -= put;
  }
  return true;
}

int main() {
  // Batch, heads, verticals, slashes, longest, causal, margin; then the lengths of ten arrays, 0 for one that is absent.
  for (int64_t sizes[17]; take(sizes, sizeof sizes);) {
    std::vector<int> arrays[10];
    int* places[10];
    for (int i = 0; i < 10; ++i) {
      arrays[i].resize(sizes[7 + i]);
      if (!take(arrays[i].data(), arrays[i].size() * sizeof(int))) return 1;
      // The first four are outputs.
      places[i] = arrays[i].empty() ? nullptr : arrays[i].data() + (i < 4 ? sizes[6] : 0);
    }
    convert(places[0], places[1], places[2], places[3], places[4], places[5], places[6], places[7], places[8], places[9],
            sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], static_cast<int>(sizes[5]));
    for (int i = 0; i < 4; ++i)
      if (!give(arrays[i].data(), arrays[i].size() * sizeof(int))) return 1;
  }
}
