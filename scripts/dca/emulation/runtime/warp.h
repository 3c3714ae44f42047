// A warp: 32 lanes with registers and a program counter each. The lanes at the lowest counter run their block together.
//
// Registers are rows of 32 values by width; a predicate register is a mask of lanes. An address is the host's, except in
// shared memory: there it is an offset, and SHARED_WINDOW + offset as a generic address.
#ifndef DCA_EMULATION_WARP_H
#define DCA_EMULATION_WARP_H

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <string>
#include <unordered_map>
#include <vector>

#include "abi.h"
#include "numbers.h"

#define DCA_NOT_INLINE __attribute__((noipa))
#define LANES(mask) for (u32 left = (mask), l; left && (l = static_cast<u32>(__builtin_ctz(left)), true); left &= left - 1)

namespace dca {

constexpr u32 ALL = 0xffffffffu;
constexpr u64 SHARED_WINDOW = 1ull << 56;
// What a block returns in place of the next one.
constexpr u32 DIVERGED = 0xffffffffu, LEFT = 0xfffffffeu;
constexpr int BARRIERS = 16;

struct Warp;
struct Cta;
struct Grid;
struct Fault {};

struct Block {
  u32 (*run)(Warp &, u32 mask);
  u32 instructions, line, function;  // line: of the first; function: 0 is the kernel
};
struct Variable {
  const char *name;
  u64 bytes, align;
  const unsigned char *initial;
};
// Eight bytes of a variable's initial value that are the address of another one.
struct Pointer {
  u32 variable;
  u64 offset;
  u32 target;
  u64 addend;
};
struct Place {
  u32 line;
  const char *source;
};
struct Code {
  const DcaKernel *kernel;
  const Block *blocks;
  u32 rows16, rows32, rows64, predicates, functions, local_bytes;
  u32 shared_align;
  u32 most_threads, most_shared, exact_threads[3];
  bool apart;  // whether lanes may run apart: not where the kernel asks which run together
  const Variable *variables;
  u32 variable_count;
  const Pointer *pointers;
  u32 pointer_count;
  const Place *places;
  u32 place_count;
};

// A constant, or a value that is the same in all lanes.
struct K {
  u64 bits;
};

// An asynchronous copy that its thread has not waited for.
struct Copy {
  u32 lane, group, to, bytes, from_bytes;
  u64 from;
  bool done;
};

struct Warp {
  Cta *cta;
  u32 index;
  u16 *h;
  u32 *r;
  u64 *d;
  u32 *p;
  u32 active;                  // the lanes that ran the last block to its end
  u32 pc[32], live, waiting;   // waiting: for lanes that a collective names
  u32 awaited;                 // the lanes that they wait for
  u32 wait_line;
  bool whole;                  // the collective needs the whole warp
  u32 parked;                  // at a barrier
  u32 barrier, barrier_count, barrier_line, barrier_block;
  u32 reduction, reduction_value, *reduction_row, *reduction_predicate;
  u32 tid[3][32];
  u32 *returns;
  char *local;
  u32 group[32];
  std::vector<Copy> copies;
  std::vector<u32> clocks;  // what this warp knows of the releases of each (races.h)
  u32 time, met;             // of accesses and meetings of its lanes; all lanes have met at `met`, or one has synchronized
  u32 together;              // when all lanes have met last
  std::vector<u32> met_each;  // lane by lane, where only some of them have
  u32 picks;
  u64 executed, clock_reads;  // executed: in this slice
};

// Who accessed a byte last, for races.h: the block's number plus 1, or 0 for nobody; the warp's number in its block by 32,
// and the lane.
struct Mark {
  u64 block, sequence;
  u32 thread, clock, line, time;
  u32 warp() const { return thread / 32; }
};
struct Cell {
  Mark write, read[2], beside;  // reads of two warps; beside the first one, of another lane of its warp
};

// What is written of each byte of shared memory.
enum State : u8 { UNWRITTEN = 0, WRITTEN = 1, PENDING = 2 };

struct Cta {
  Grid *grid;
  u32 id[3];
  std::vector<char> memory;  // of registers
  std::vector<char> shared;
  std::vector<u8> states;
  std::vector<Warp> warps;
  u32 arrived[BARRIERS];
  u64 number;
  std::vector<Cell> cells;
  std::unordered_map<u64, Cell> volatile_cells;
  std::vector<u32> atomic_clocks, arrived_clocks[BARRIERS];
  u64 ran;
};

struct Grid {
  const Code *code;
  DcaLaunch launch;
  DcaServices services;
  std::vector<char> parameters;
  std::vector<u64> variables;
  std::vector<Cta *> resident, spare;
  std::unordered_map<u64, std::vector<Cell>> pages;
  std::vector<u64> last_atomic;
  u64 next_block, blocks, executed, random, turn, sequence;
  u32 grid_threads, warps;
  u64 shared_bytes;
  bool failed;
};

inline std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));
inline std::string text(const char *format, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

inline const char *source_of(const Code &code, u32 line) {
  const char *source = nullptr;
  for (u32 i = 0; i < code.place_count && code.places[i].line <= line; i++) source = code.places[i].source;
  return source;
}

inline DcaFinding finding_at(const Warp &w, u32 lane, u32 line, const char *kind, const std::string &what) {
  const Code &code = *w.cta->grid->code;
  return {kind, code.kernel->name, what.c_str(), {w.cta->id[0], w.cta->id[1], w.cta->id[2]}, w.index, lane, line, source_of(code, line)};
}
[[noreturn]] DCA_NOT_INLINE inline void fault(const Warp &w, u32 lane, u32 line, const char *kind, const std::string &what) {
  Grid &grid = *w.cta->grid;
  const DcaFinding finding = finding_at(w, lane, line, kind, what);
  if (grid.services.finding)
    grid.services.finding(grid.services.self, &finding);
  else
    fprintf(stderr, "%s: %s in %s, block %u %u %u, warp %u, lane %u, PTX line %u\n", kind, what.c_str(), finding.kernel,
            finding.block[0], finding.block[1], finding.block[2], w.index, lane, line);
  throw Fault{};
}

// Registers and operands, as the translated code names them.
inline u16 *h(Warp &w, u32 row) { return w.h + 32 * row; }
inline u32 *r(Warp &w, u32 row) { return w.r + 32 * row; }
inline u64 *d(Warp &w, u32 row) { return w.d + 32 * row; }
template <class A, class R> inline A from(const R *row, u32 l) { return from_register<A>(row[l]); }
template <class A> inline A from(K k, u32) { return from_register<A>(k.bits); }

template <class Op> constexpr Rounding rounding_of(...) { return rn; }
template <class Op> constexpr auto rounding_of(int) -> decltype(Op::rounding) { return Op::rounding; }

template <class Op, class D, class R, class... A, class... S>
inline void each_lane(R (*)(A...), u32 m, D *to, S... s) {
  if (m == ALL) {
#pragma GCC ivdep
    for (u32 l = 0; l < 32; l++) to[l] = to_register<D>(Op::of(from<A>(s, l)...));
  } else {
    LANES(m) to[l] = to_register<D>(Op::of(from<A>(s, l)...));
  }
}
// One instruction of registers alone.
template <class Op, class D, class... S> DCA_NOT_INLINE void each(u32 m, D *to, S... s) {
  constexpr Rounding how = rounding_of<Op>(0);
  if constexpr (how != rn) {
    fesetround(host_rounding(how));
    asm volatile("" ::: "memory");
    each_lane<Op>(&Op::of, m, to, s...);
    asm volatile("" ::: "memory");
    fesetround(FE_TONEAREST);
  } else {
    each_lane<Op>(&Op::of, m, to, s...);
  }
}
// mov of the same width, and what pack and unpack vectors.
template <class T> struct Same { static T of(T a) { return a; } };
template <class W, class N> struct Pack2 {
  static W of(N a, N b) { return W(a) | W(b) << (8 * sizeof(N)); }
};
template <class W, class N> struct Pack4 {
  static W of(N a, N b, N c, N e) {
    constexpr int bits = 8 * sizeof(N);
    return W(a) | W(b) << bits | W(c) << (2 * bits) | W(e) << (3 * bits);
  }
};
template <class W, class N, int at> struct Part {
  static N of(W a) { return N(a >> (8 * sizeof(N) * at)); }
};

inline void put(u32 &predicate, u32 m, u32 value) { predicate = (predicate & ~m) | (value & m); }

template <class Op, class... S> DCA_NOT_INLINE u32 compared(S... s) {
  using T = typename Op::Type;
  u32 value = 0;
  for (u32 l = 0; l < 32; l++) value |= static_cast<u32>(Op::of(from<T>(s, l)...)) << l;
  return value;
}
template <class T, class D, class A, class B> DCA_NOT_INLINE void select(u32 m, D *to, A a, B b, u32 chosen) {
  if (m == ALL) {
#pragma GCC ivdep
    for (u32 l = 0; l < 32; l++) to[l] = to_register<D>(chosen >> l & 1 ? from<T>(a, l) : from<T>(b, l));
  } else {
    LANES(m) to[l] = to_register<D>(chosen >> l & 1 ? from<T>(a, l) : from<T>(b, l));
  }
}
// set: a comparison as a number, 1.0 or all ones.
template <class Op, class T, class D, class... S> DCA_NOT_INLINE void set_number(u32 m, D *to, T yes, S... s) {
  u32 value = compared<Op>(s...);
  LANES(m) to[l] = value >> l & 1 ? to_register<D>(yes) : D(0);
}

// Control.
inline void go(Warp &w, u32 m, u32 to) {
  LANES(m) w.pc[l] = to;
}
inline u32 branch(Warp &w, u32 m, u32 taken, u32 to, u32 next) {
  taken &= m;
  if (taken == m) return to;
  if (!taken) return next;
  go(w, taken, to);
  go(w, m & ~taken, next);
  return DIVERGED;
}
inline void leave(Warp &w, u32 m, u32 line) {
  if (w.waiting && w.whole && (w.awaited & m))
    fault(w, static_cast<u32>(__builtin_ctz(w.awaited & m)), w.wait_line, "collective",
          text("lanes 0x%08x end at PTX line %u while other lanes of their warp wait for them in a collective", w.awaited & m, line));
  w.live &= ~m;
  // Those that wait look again who is missing.
  w.waiting = 0;
}
inline u32 leaving(Warp &w, u32 m, u32 taken, u32 line, u32 next) {
  taken &= m;
  if (!taken) return next;
  leave(w, taken, line);
  if (taken == m) return LEFT;
  go(w, m & ~taken, next);
  return DIVERGED;
}
DCA_NOT_INLINE inline u32 switched(Warp &w, u32 m, u32 line, const u32 *index, const u32 *targets, u32 count) {
  LANES(m) {
    if (index[l] >= count) fault(w, l, line, "branch", text("brx.idx has %u targets and takes number %u", count, index[l]));
    w.pc[l] = targets[index[l]];
  }
  return DIVERGED;
}
inline void called(Warp &w, u32 m, u32 function, u32 back) {
  LANES(m) w.returns[32 * function + l] = back;
}
inline u32 returned(Warp &w, u32 m, u32 function) {
  const u32 *back = w.returns + 32 * function;
  LANES(m) w.pc[l] = back[l];
  return DIVERGED;
}
[[noreturn]] inline u32 trapped(Warp &w, u32 m, u32 line) {
  fault(w, static_cast<u32>(__builtin_ctz(m)), line, "trap", "the kernel executed trap");
}

// Instructions so far; no two reads give the same.
inline u64 clock(Warp &w) { return w.cta->grid->executed + w.executed + ++w.clock_reads; }

// Operands that are not in registers.
struct LocalRow {
  u64 row[32];
  LocalRow(const Warp &w, u64 offset) {
    const u64 start = reinterpret_cast<u64>(w.local) + offset;
    for (u32 l = 0; l < 32; l++) row[l] = start + l * static_cast<u64>(w.cta->grid->code->local_bytes);
  }
};
template <class R> struct Filled {
  R row[32];
  explicit Filled(K value) {
    for (R &one : row) one = static_cast<R>(value.bits);
  }
};
struct LaneRows {
  u32 ids[32], masks[5][32];
  LaneRows() {
    for (u32 l = 0; l < 32; l++) {
      ids[l] = l;
      masks[0][l] = 1u << l;
      masks[2][l] = (1u << l) - 1;
      masks[1][l] = masks[2][l] | 1u << l;
      masks[3][l] = ~masks[2][l];
      masks[4][l] = ~masks[1][l];
    }
  }
};
static const LaneRows lane_rows;
static const u32 *const lane_ids = lane_rows.ids;
static const u32 (&lane_masks)[5][32] = lane_rows.masks;

inline u64 drawn(Grid &grid) {
  u64 x = grid.random += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

}  // namespace dca
#endif
