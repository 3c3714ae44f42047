// Finds accesses of two warps to one place, one of them a write, that nothing orders: no barrier, no atomic operation.
//
// Each warp counts its releases; a barrier gives every participant the counts of the others. Atomic, volatile, relaxed,
// acquire and release accesses order what comes before with what comes after, and are no races themselves. A write of the
// value that is there already is none either. Two readers of a place are remembered, so that a write after many reads may
// go unnoticed; nothing is reported that is ordered by one of these.
#ifndef DCA_EMULATION_RACES_H
#define DCA_EMULATION_RACES_H

#include "warp.h"

namespace dca {

enum Access { READ, WRITE, READ_MATRIX, SYNCHRONIZE };

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
}
inline bool ordered(const Warp &w, const Mark &mark) {
  const Cta &cta = *w.cta;
  if (!mark.block) return true;
  if (mark.block - 1 == cta.number) return mark.warp == w.index || w.clocks[mark.warp] >= mark.clock;
  const std::vector<u64> &last = cta.grid->last_atomic;
  return last[mark.block - 1] > mark.sequence && last[cta.number] > mark.sequence;
}
[[noreturn]] DCA_NOT_INLINE inline void race(const Warp &w, u32 lane, u32 line, const Mark &mark, const char *what) {
  fault(w, lane, line, "race", text("%s PTX line %u of warp %u in block %llu, and nothing orders the two", what, mark.line, mark.warp,
                                    static_cast<unsigned long long>(mark.block - 1)));
}
// `value` is what a write writes; null where that is not known yet.
inline void touch_cells(Warp &w, u32 lane, u32 line, Cell *cells, u32 bytes, Access access, const char *there, const char *value) {
  const bool write = access == WRITE;
  const Mark mine{w.cta->number + 1, w.cta->grid->sequence, w.index, w.clocks[w.index], line};
  for (u32 i = 0; i < bytes; i++) {
    Cell &cell = cells[i];
    if (!ordered(w, cell.write) && !(write && value && there[i] == value[i]))
      race(w, lane, line, cell.write, write ? "a write of what is written at" : "a read of what is written at");
    if (write) {
      for (const Mark &mark : cell.read)
        if (!ordered(w, mark) && !(value && there[i] == value[i])) race(w, lane, line, mark, "a write of what is read at");
      cell.write = mine;
    } else if (cell.read[0].block != mine.block || cell.read[0].warp != mine.warp) {
      cell.read[1] = cell.read[0];
      cell.read[0] = mine;
    } else {
      cell.read[0] = mine;
    }
  }
}
constexpr u64 PAGE = 4096;
DCA_NOT_INLINE inline void touch(Warp &w, u32 m, u32 line, char *const *at, u32 bytes, Access access, const char *values) {
  Cta &cta = *w.cta;
  if (access == SYNCHRONIZE) return synchronize(w);
  LANES(m) {
    const char *value = values ? values + l * bytes : nullptr;
    u64 address = reinterpret_cast<u64>(at[l]), offset = address - reinterpret_cast<u64>(cta.shared.data());
    if (offset < cta.shared.size())
      touch_cells(w, l, line, cta.cells.data() + offset, bytes, access, at[l], value);
    else if (address - reinterpret_cast<u64>(w.local) >= 32ull * cta.grid->code->local_bytes) {
      std::vector<Cell> &page = cta.grid->pages[address / PAGE];
      page.resize(PAGE);
      touch_cells(w, l, line, page.data() + address % PAGE, bytes, access, at[l], value);
    }
  }
}

}  // namespace dca
#endif
