// Finds accesses of two warps to one place, one of them a write, that nothing orders: no barrier, no atomic operation; and
// those of two lanes of a warp with no instruction between them in which both take part, such as bar.warp.sync.
//
// Volatile accesses are looked at among the lanes of a warp alone.
//
// Each warp counts its releases; a barrier gives every participant the counts of the others. Atomic, volatile, relaxed,
// acquire and release accesses order what comes before with what comes after, and are no races themselves. A write of the
// value that is there already is none either. Two readers of a place are remembered, so that a write after many reads may
// go unnoticed; nothing is reported that is ordered by one of these.
#ifndef DCA_EMULATION_RACES_H
#define DCA_EMULATION_RACES_H

#include "warp.h"

namespace dca {

enum Access { READ, WRITE, READ_MATRIX, SYNCHRONIZE, VOLATILE_READ, VOLATILE_WRITE };

inline bool looks_for_races(const Warp &w) { return w.cta->grid->services.checks & DCA_CHECK_RACES; }
inline void join(std::vector<u32> &clocks, const std::vector<u32> &others) {
  clocks.resize(std::max(clocks.size(), others.size()));
  for (size_t i = 0; i < others.size(); i++) clocks[i] = std::max(clocks[i], others[i]);
}
inline void synchronize(Warp &w) {
  Cta &cta = *w.cta;
  join(w.clocks, cta.atomic_clocks);
  join(cta.atomic_clocks, w.clocks);
  w.clocks[w.index]++;
  cta.grid->last_atomic[cta.number] = ++cta.grid->sequence;
  w.met = ++w.time;
}
// Lanes of a warp meet in a collective or at a barrier: what each knew of the others all of them know then.
DCA_NOT_INLINE inline void meet(Warp &w, u32 lanes) {
  const u32 now = ++w.time;
  if (!(w.live & ~lanes)) {
    w.met = w.together = now;
    return;
  }
  w.met_each.resize(32 * 32);
  u32 known[32] = {};
  LANES(lanes) for (u32 k = 0; k < 32; k++) known[k] = std::max(known[k], w.met_each[32 * l + k]);
  LANES(lanes) known[l] = now;
  LANES(lanes) std::copy(known, known + 32, w.met_each.begin() + 32 * l);
}
inline bool have_met(const Warp &w, u32 lane, const Mark &mark, u32 all) {
  const u32 other = mark.thread % 32;
  // A store of several lanes, or a load, is one access.
  if (other == lane || mark.time == w.time || mark.time < all) return true;
  return !w.met_each.empty() && mark.time < w.met_each[32 * lane + other];
}
inline bool ordered(const Warp &w, u32 lane, const Mark &mark) {
  const Cta &cta = *w.cta;
  if (!mark.block) return true;
  if (mark.block - 1 == cta.number)
    return mark.warp() == w.index ? have_met(w, lane, mark, w.met) : w.clocks[mark.warp()] >= mark.clock;
  const std::vector<u64> &last = cta.grid->last_atomic;
  return last[mark.block - 1] > mark.sequence && last[cta.number] > mark.sequence;
}
[[noreturn]] DCA_NOT_INLINE inline void race(const Warp &w, u32 lane, u32 line, const Mark &mark, const char *what) {
  fault(w, lane, line, "race", text("%s PTX line %u of warp %u, lane %u in block %llu, and nothing orders the two", what, mark.line, mark.warp(),
                                    mark.thread % 32, static_cast<unsigned long long>(mark.block - 1)));
}
// `value` is what a write writes; null where that is not known yet.
inline void touch_cells(Warp &w, u32 lane, u32 line, Cell *cells, u32 bytes, Access access, const char *there, const char *value) {
  const bool write = access == WRITE;
  const Mark mine{w.cta->number + 1, w.cta->grid->sequence, 32 * w.index + lane, w.clocks[w.index], line, w.time};
  for (u32 i = 0; i < bytes; i++) {
    Cell &cell = cells[i];
    if (!ordered(w, lane, cell.write) && !(write && value && there[i] == value[i]))
      race(w, lane, line, cell.write, write ? "a write of what is written at" : "a read of what is written at");
    if (write) {
      for (const Mark *mark : {&cell.read[0], &cell.read[1], &cell.beside})
        if (!ordered(w, lane, *mark) && !(value && there[i] == value[i])) race(w, lane, line, *mark, "a write of what is read at");
      cell.write = mine;
    } else {
      if (cell.read[0].block != mine.block || cell.read[0].warp() != mine.warp()) {
        cell.read[1] = cell.read[0];
        cell.beside = Mark{};
      } else if (cell.read[0].thread != mine.thread) {
        cell.beside = cell.read[0];
      }
      cell.read[0] = mine;
    }
  }
}
// Lanes of one store must not write different values to one place.
inline void compare_lanes(const Warp &w, u32 lane, u32 line, const Cell *cells, u32 bytes, char *const *at, const char *values) {
  for (u32 i = 0; i < bytes; i++) {
    const Mark &mark = cells[i].write;
    if (mark.block != w.cta->number + 1 || mark.warp() != w.index || mark.time != w.time) continue;
    const u32 other = mark.thread % 32;
    if (values[lane * bytes + i] != values[other * bytes + static_cast<u32>(at[lane] + i - at[other])])
      race(w, lane, line, mark, "a write of another value than the same instruction writes at");
  }
}
// Volatile accesses to shared memory by lanes that run together now: nothing says that they do, unless they have met.
inline void touch_volatile(Warp &w, u32 m, u32 lane, u32 line, u64 offset, u32 bytes, bool write, const char *there, const char *value) {
  const Mark mine{w.cta->number + 1, 0, 32 * w.index + lane, 0, line, w.time};
  for (u32 i = 0; i < bytes; i++) {
    Cell &cell = w.cta->volatile_cells[offset + i];
    auto check = [&](const Mark &mark, const char *what) {
      if (!mark.block || mark.warp() != w.index || !(m >> mark.thread % 32 & 1) || have_met(w, lane, mark, w.together)) return;
      if (!(write && value && there[i] == value[i])) race(w, lane, line, mark, what);
    };
    check(cell.write, write ? "a volatile write of what is written at" : "a volatile read of what is written at");
    if (write) {
      check(cell.read[0], "a volatile write of what is read at");
      check(cell.beside, "a volatile write of what is read at");
      cell.write = mine;
    } else {
      if (cell.read[0].thread != mine.thread) cell.beside = cell.read[0];
      cell.read[0] = mine;
    }
  }
}
constexpr u64 PAGE = 4096;
DCA_NOT_INLINE inline void touch(Warp &w, u32 m, u32 line, char *const *at, u32 bytes, Access access, const char *values) {
  Cta &cta = *w.cta;
  if (access == SYNCHRONIZE) {
    synchronize(w);
    w.together = w.met;
    return;
  }
  w.time++;
  if (access == VOLATILE_READ || access == VOLATILE_WRITE) {
    LANES(m) {
      const u64 offset = reinterpret_cast<u64>(at[l]) - reinterpret_cast<u64>(cta.shared.data());
      if (offset < cta.shared.size())
        touch_volatile(w, m, l, line, offset, bytes, access == VOLATILE_WRITE, at[l], values ? values + l * bytes : nullptr);
    }
    return synchronize(w);
  }
  LANES(m) {
    const char *value = values ? values + l * bytes : nullptr;
    u64 address = reinterpret_cast<u64>(at[l]), offset = address - reinterpret_cast<u64>(cta.shared.data());
    Cell *cells = nullptr;
    if (offset < cta.shared.size())
      cells = cta.cells.data() + offset;
    else if (address - reinterpret_cast<u64>(w.local) >= 32ull * cta.grid->code->local_bytes) {
      std::vector<Cell> &page = cta.grid->pages[address / PAGE];
      page.resize(PAGE);
      cells = page.data() + address % PAGE;
    }
    if (!cells) continue;
    if (values && access == WRITE) compare_lanes(w, l, line, cells, bytes, at, values);
    touch_cells(w, l, line, cells, bytes, access, at[l], value);
  }
}

}  // namespace dca
#endif
