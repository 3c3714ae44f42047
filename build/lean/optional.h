// Names that torch took out of c10 when it left C++14 behind (2.7), for sources older than that.
#pragma once
#ifdef __cplusplus
#include <optional>
namespace c10 {
using std::make_optional;
using std::nullopt;
using std::nullopt_t;
using std::optional;
}  // namespace c10
#endif
