// What lanes of a warp or warps of a thread block do together: barriers, shuffles, votes, matrices.
#ifndef DCA_EMULATION_COLLECTIVE_H
#define DCA_EMULATION_COLLECTIVE_H

#include "memory.h"

namespace dca {

// Which lanes may run a collective now: those of which every lane that they name has come, or has ended. The others wait.
// `aligned` instructions need all 32 lanes.
template <class S>
DCA_NOT_INLINE u32 together(Warp &w, u32 m, u32 block, u32 line, S named, bool aligned) {
  u32 ready = 0, awaited = 0;
  LANES(m) {
    u32 mask = from<u32>(named, l);
    if (!(mask >> l & 1))
      fault(w, l, line, "collective", text("the lane is not in the mask 0x%08x that it gives", mask));
    u32 missing = aligned ? mask & ~m : mask & w.live & ~m;
    if (aligned && (missing & ~w.live))
      fault(w, l, line, "collective", text("lanes 0x%08x have ended, and the instruction needs the whole warp", missing & ~w.live));
    if (missing)
      awaited |= missing;
    else
      ready |= 1u << l;
  }
  LANES(ready) {
    u32 mask = from<u32>(named, l), others = mask & ready;
    for (u32 k = l + 1; k < 32; k++)
      if ((others >> k & 1) && from<u32>(named, k) != mask)
        fault(w, l, line, "collective", text("lane %u gives the mask 0x%08x, and lane %u 0x%08x", l, mask, k, from<u32>(named, k)));
  }
  u32 early = m & ~ready;
  if (early) {
    go(w, early, block);
    w.waiting |= early;
    w.awaited = awaited, w.whole = aligned;
    w.wait_line = line;
  }
  w.active = ready;
  return ready;
}
// Within a block that began with a collective of all lanes nobody can be missing.
template <class S> DCA_NOT_INLINE void all_here(Warp &w, u32 m, u32 line, S named, bool aligned) {
  LANES(m) {
    u32 mask = from<u32>(named, l), missing = aligned ? mask & ~m : mask & w.live & ~m;
    if (missing || !(mask >> l & 1))
      fault(w, l, line, "collective", text("the mask 0x%08x names lanes that are not here, or not the lane itself", mask));
  }
}

enum Shuffle { UP, DOWN, BFLY, IDX };
// A mask may name lanes that have ended, which nobody waits for; but nobody may take their value.
template <Shuffle how, class A, class B, class C, class S>
DCA_NOT_INLINE void shuffle(Warp &w, u32 m, u32 line, u32 *to, u32 *predicate, A source, B distance, C control, S named) {
  u32 value[32], inside = 0;
  LANES(m) {
    u32 by = from<u32>(distance, l) & 31, c = from<u32>(control, l), segment = c >> 8 & 31, clamp = c & 31;
    int most = static_cast<int>((l & segment) | (clamp & ~segment)), least = static_cast<int>(l & segment);
    int j = how == UP ? static_cast<int>(l) - static_cast<int>(by) : how == DOWN ? static_cast<int>(l + by)
            : how == BFLY ? static_cast<int>(l ^ by) : static_cast<int>(static_cast<u32>(least) | (by & ~segment));
    bool in = how == UP ? j >= most : j <= most;
    if (!in) j = static_cast<int>(l);
    inside |= static_cast<u32>(in) << l;
    u32 there = m & from<u32>(named, l);
    if (!(there >> j & 1))
      fault(w, l, line, "collective", text("the lane takes the value of lane %d, which %s", j, w.live >> j & 1 ? "is not in its mask" : "has ended"));
    value[l] = from<u32>(source, static_cast<u32>(j));
  }
  LANES(m) to[l] = value[l];
  if (predicate) put(*predicate, m, inside);
}
// The lanes of m that give the same mask form a group; a vote is taken in each.
template <class S, class F> inline void by_group(u32 m, S named, F with) {
  for (u32 rest = m; rest;) {
    u32 first = static_cast<u32>(__builtin_ctz(rest)), mask = from<u32>(named, first), group = 0;
    LANES(rest & mask) if (from<u32>(named, l) == mask) group |= 1u << l;
    with(group);
    rest &= ~group & ~(1u << first);
  }
}
template <class S> DCA_NOT_INLINE void met(Warp &w, u32 m, S named) {
  if (looks_for_races(w)) by_group(m, named, [&](u32 group) { meet(w, group); });
}
enum Vote { VOTE_ALL, VOTE_ANY, VOTE_UNI, VOTE_BALLOT };
template <class S> DCA_NOT_INLINE void vote_predicate(u32 m, u32 *to, Vote how, u32 value, S named) {
  u32 result = 0;
  by_group(m, named, [&](u32 group) {
    u32 yes = value & group;
    bool is = how == VOTE_ALL ? yes == group : how == VOTE_ANY ? yes != 0 : yes == group || !yes;
    if (is) result |= group;
  });
  put(*to, m, result);
}
template <class S> DCA_NOT_INLINE void vote_ballot(u32 m, u32 *to, u32 value, S named) {
  by_group(m, named, [&](u32 group) { LANES(group) to[l] = value & group; });
}
template <class T, class A, class S> DCA_NOT_INLINE void match_any(u32 m, u32 *to, A value, S named) {
  u32 result[32];
  by_group(m, named, [&](u32 group) {
    LANES(group) {
      u32 same = 0;
      for (u32 k = 0; k < 32; k++) same |= (group >> k & 1 && from<T>(value, k) == from<T>(value, l)) ? 1u << k : 0;
      result[l] = same;
    }
  });
  LANES(m) to[l] = result[l];
}
template <class T, class A, class S> DCA_NOT_INLINE void match_all(u32 m, u32 *to, u32 *predicate, A value, S named) {
  u32 result[32], yes = 0;
  by_group(m, named, [&](u32 group) {
    u32 first = static_cast<u32>(__builtin_ctz(group));
    bool same = true;
    LANES(group) same = same && from<T>(value, l) == from<T>(value, first);
    LANES(group) result[l] = same ? group : 0;
    if (same) yes |= group;
  });
  LANES(m) to[l] = result[l];
  if (predicate) put(*predicate, m, yes);
}
template <class Op, class T, class A, class S> DCA_NOT_INLINE void reduce(u32 m, u32 *to, A value, S named) {
  u32 result[32];
  by_group(m, named, [&](u32 group) {
    u32 first = static_cast<u32>(__builtin_ctz(group));
    T sum = from<T>(value, first);
    LANES(group & ~(1u << first)) sum = Op::of(sum, from<T>(value, l));
    LANES(group) result[l] = static_cast<u32>(sum);
  });
  LANES(m) to[l] = result[l];
}

// Fragments, with g = lane / 4 and t = lane % 4: register i of A holds row g + 8 (i % 2), columns 2t and 2t + 1, + 8 (i / 2);
// of B rows 2t and 2t + 1, + 8 i, of column g; of C row g, then g + 8, columns 2t and 2t + 1.
template <int count, bool transposed, class A>
DCA_NOT_INLINE void load_matrices(Warp &w, u32 line, Rows<u32, count> to, A base, s64 offset) {
  u64 address[32];
  char *at[32];
  addresses(address, base, offset);
  locate(w, count == 4 ? ALL : (1u << (8 * count)) - 1, line, SHARED, address, 16, READ_MATRIX, at);
  if (looks_for_races(w)) touch(w, count == 4 ? ALL : (1u << (8 * count)) - 1, line, at, 16, READ_MATRIX, nullptr);
  u32 value[count][32];
  for (int i = 0; i < count; i++)
    for (u32 l = 0; l < 32; l++) {
      if (!transposed) {
        memcpy(&value[i][l], at[8 * i + l / 4] + 4 * (l % 4), 4);
      } else {
        u16 low, high;
        memcpy(&low, at[8 * i + 2 * (l % 4)] + 2 * (l / 4), 2);
        memcpy(&high, at[8 * i + 2 * (l % 4) + 1] + 2 * (l / 4), 2);
        value[i][l] = static_cast<u32>(high) << 16 | low;
      }
    }
  for (int i = 0; i < count; i++) memcpy(to.row[i], value[i], sizeof value[i]);
}
template <int count, bool transposed, class A>
DCA_NOT_INLINE void store_matrices(Warp &w, u32 line, A base, s64 offset, Rows<u32, count> source) {
  u64 address[32];
  char *at[32];
  addresses(address, base, offset);
  locate(w, count == 4 ? ALL : (1u << (8 * count)) - 1, line, SHARED, address, 16, WRITE, at);
  if (looks_for_races(w)) touch(w, count == 4 ? ALL : (1u << (8 * count)) - 1, line, at, 16, WRITE, nullptr);
  for (int i = 0; i < count; i++)
    for (u32 l = 0; l < 32; l++) {
      if (!transposed) {
        memcpy(at[8 * i + l / 4] + 4 * (l % 4), &source.row[i][l], 4);
      } else {
        u16 low = static_cast<u16>(source.row[i][l]), high = static_cast<u16>(source.row[i][l] >> 16);
        memcpy(at[8 * i + 2 * (l % 4)] + 2 * (l / 4), &low, 2);
        memcpy(at[8 * i + 2 * (l % 4) + 1] + 2 * (l / 4), &high, 2);
      }
    }
}
// Products of 16-bit values are exact in f32; PTX leaves the order of the sums open: it is that of k here, one rounding each.
template <class H, int depth> DCA_NOT_INLINE void multiply_matrices(Rows<u32, 4> d, Rows<u32, depth / 4> a, Rows<u32, depth / 8> b, Rows<u32, 4> c) {
  f32 A[16][depth], B[depth][8], D[16][8];
  auto low = [](u32 pair) { return wide_bits(H{static_cast<u16>(pair)}); };
  auto high = [](u32 pair) { return wide_bits(H{static_cast<u16>(pair >> 16)}); };
  for (u32 l = 0; l < 32; l++) {
    u32 g = l / 4, t = l % 4;
    for (u32 i = 0; i < depth / 4; i++) {
      u32 row = g + (i & 1) * 8, k = 2 * t + (i >> 1) * 8;
      A[row][k] = low(a.row[i][l]), A[row][k + 1] = high(a.row[i][l]);
    }
    for (u32 i = 0; i < depth / 8; i++) B[2 * t + 8 * i][g] = low(b.row[i][l]), B[2 * t + 8 * i + 1][g] = high(b.row[i][l]);
    for (u32 i = 0; i < 4; i++) D[g + (i >> 1) * 8][2 * t + (i & 1)] = cast<f32>(c.row[i][l]);
  }
  for (int row = 0; row < 16; row++) {
    f32 sum[8];
    for (int n = 0; n < 8; n++) sum[n] = D[row][n];
    for (int k = 0; k < depth; k++)
      for (int n = 0; n < 8; n++) sum[n] = __builtin_fmaf(A[row][k], B[k][n], sum[n]);
    for (int n = 0; n < 8; n++) D[row][n] = canonical(sum[n]);
  }
  for (u32 l = 0; l < 32; l++)
    for (u32 i = 0; i < 4; i++) d.row[i][l] = cast<u32>(D[l / 4 + (i >> 1) * 8][2 * (l % 4) + (i & 1)]);
}

// Barriers of a thread block. A lane is parked at one until the block's others have come, or `count` threads.
enum Reduction : u32 { NO_REDUCTION, RED_POPC, RED_AND, RED_OR };
struct At {
  u32 line, block, next;
};
template <class I, class N>
DCA_NOT_INLINE u32 barrier(Warp &w, u32 m, At at, I id, N count, bool aligned) {
  u32 first = static_cast<u32>(__builtin_ctz(m)), number = from<u32>(id, first), threads = from<u32>(count, first);
  LANES(m) if (from<u32>(id, l) != number || from<u32>(count, l) != threads)
    fault(w, l, at.line, "barrier", "lanes of a warp give a barrier different numbers or counts");
  if (number >= BARRIERS) fault(w, first, at.line, "barrier", text("there is no barrier %u", number));
  if (threads % 32) fault(w, first, at.line, "barrier", text("a barrier waits for %u threads, which is no multiple of 32", threads));
  if (w.parked && (w.barrier != number || (aligned && w.barrier_block != at.block) || w.barrier_count != threads))
    fault(w, first, at.line, "barrier", text("lanes 0x%08x of the warp wait at the barrier of PTX line %u", w.parked, w.barrier_line));
  w.barrier = number, w.barrier_count = threads, w.barrier_line = at.line, w.barrier_block = at.block;
  w.reduction = NO_REDUCTION;
  go(w, m, at.next);
  w.parked |= m;
  return DIVERGED;
}
template <class I, class N>
DCA_NOT_INLINE u32 barrier_reduction(Warp &w, u32 m, At at, I id, N count, Reduction how, u32 value, u32 *row, u32 *predicate) {
  u32 before = w.parked ? w.reduction_value : 0;
  barrier(w, m, at, id, count, true);
  w.reduction = how, w.reduction_value = before | (value & m), w.reduction_row = row, w.reduction_predicate = predicate;
  return DIVERGED;
}
template <class I, class N> DCA_NOT_INLINE void arrive(Warp &w, u32 m, u32 line, I id, N count) {
  u32 first = static_cast<u32>(__builtin_ctz(m)), number = from<u32>(id, first), threads = from<u32>(count, first);
  if (number >= BARRIERS || threads % 32 || !threads)
    fault(w, first, line, "barrier", text("bar.arrive at barrier %u for %u threads", number, threads));
  if (m != w.live) fault(w, first, line, "barrier", "bar.arrive by a part of a warp");
  w.cta->arrived[number] += 32;
  if (looks_for_races(w)) {
    meet(w, m);
    join(w.cta->arrived_clocks[number], w.clocks);
    w.clocks[w.index]++;
  }
}

}  // namespace dca
#endif
