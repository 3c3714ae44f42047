// Memory: where an address leads, loads and stores, atomic operations, asynchronous copies.
#ifndef DCA_EMULATION_MEMORY_H
#define DCA_EMULATION_MEMORY_H

#include "races.h"

namespace dca {

enum Space { GENERIC, GLOBAL, SHARED, LOCAL, PARAM };

inline bool accessible(const Grid &grid, u64 address, u64 bytes, bool write) {
  const DcaServices &services = grid.services;
  if (address < 4096 || address + bytes < address || (address >> 47)) return false;
  if (!services.accessible || !(services.checks & DCA_CHECK_ADDRESSES)) return true;
  if (services.accessible(services.self, address, bytes, write)) return true;
  // A device need not count the storage that it gave for variables.
  for (u32 i = 0; i < grid.code->variable_count; i++)
    if (address - grid.variables[i] < grid.code->variables[i].bytes &&
        address + bytes <= grid.variables[i] + grid.code->variables[i].bytes)
      return true;
  return false;
}
[[noreturn]] DCA_NOT_INLINE inline void outside(const Warp &w, u32 lane, u32 line, u64 address, u32 bytes, bool write,
                                                const char *space) {
  fault(w, lane, line, "address", text("%s of %u bytes at 0x%llx is outside of %s memory", write ? "a write" : "a read", bytes,
                                       static_cast<unsigned long long>(address), space));
}
DCA_NOT_INLINE inline void unwritten(const Warp &w, u32 lane, u32 line, u64 offset) {
  const DcaServices &services = w.cta->grid->services;
  const std::string what = text("a read of shared memory at %llu, which nothing has written", static_cast<unsigned long long>(offset));
  if (!services.unwritten) fault(w, lane, line, "uninitialized", what);
  const DcaFinding finding = finding_at(w, lane, line, "uninitialized", what);
  services.unwritten(services.self, &finding);
}
// A matrix may be loaded from memory that was not written, with rows that are masked later.
DCA_NOT_INLINE inline void check_states(Warp &w, u32 lane, u32 line, u64 offset, u32 bytes, Access access) {
  u8 *states = w.cta->states.data() + offset;
  for (u32 i = 0; i < bytes; i++) {
    if (states[i] == PENDING)
      fault(w, lane, line, "asynchronous",
            text("%s of shared memory at %llu, which an asynchronous copy writes that was not waited for",
                 access == WRITE ? "a write" : "a read", static_cast<unsigned long long>(offset + i)));
    if ((access == READ || access == SYNCHRONIZE || access == VOLATILE_READ) && states[i] == UNWRITTEN) unwritten(w, lane, line, offset + i);
    if (access == WRITE) states[i] = WRITTEN;
  }
}
inline char *shared_at(Warp &w, u32 lane, u32 line, u64 offset, u32 bytes, Access access) {
  Cta &cta = *w.cta;
  if (offset + bytes > cta.shared.size() || offset + bytes < offset) outside(w, lane, line, offset, bytes, access == WRITE, "shared");
  if (!cta.states.empty()) check_states(w, lane, line, offset, bytes, access);
  return cta.shared.data() + offset;
}
// The host's address of what each lane accesses. All bytes of a warp that lie in one allocation are checked at once.
DCA_NOT_INLINE inline void locate(Warp &w, u32 m, u32 line, Space space, const u64 *address, u32 bytes, Access access, char **at) {
  const bool write = access == WRITE;
  Cta &cta = *w.cta;
  const Grid &grid = *cta.grid;
  const u64 local = reinterpret_cast<u64>(w.local), local_bytes = grid.code->local_bytes;
  const u64 parameters = reinterpret_cast<u64>(grid.parameters.data());
  u64 lowest = ~0ull, highest = 0;
  u32 global = 0;
  LANES(m) {
    u64 a = address[l];
    if (a & (bytes - 1)) {
      fault(w, l, line, "alignment", text("%s of %u bytes at 0x%llx, which is no multiple of them", write ? "a write" : "a read", bytes,
                                          static_cast<unsigned long long>(a)));
    }
    if (space == SHARED || (space == GENERIC && a >> 56 == SHARED_WINDOW >> 56)) {
      at[l] = shared_at(w, l, line, space == SHARED ? a : a - SHARED_WINDOW, bytes, access);
      continue;
    }
    at[l] = reinterpret_cast<char *>(a);
    if (space != GLOBAL) {
      if (a - (local + l * local_bytes) < local_bytes && a + bytes <= local + (l + 1) * local_bytes) continue;
      bool parameter = a - parameters < grid.parameters.size() && a + bytes <= parameters + grid.parameters.size();
      if (parameter && !write && space != LOCAL) continue;
      if (space == LOCAL || space == PARAM) outside(w, l, line, a, bytes, write, space == LOCAL ? "local" : "parameter");
    }
    lowest = std::min(lowest, a), highest = std::max(highest, a + bytes);
    global |= 1u << l;
  }
  if (!global || accessible(grid, lowest, highest - lowest, write)) return;
  LANES(global) if (!accessible(grid, address[l], bytes, write)) outside(w, l, line, address[l], bytes, write, "global");
}

template <class R, int count> struct Rows {
  R *row[count];
};
template <class R, class... More> Rows(R *, More *...) -> Rows<R, 1 + sizeof...(More)>;
template <class S, int count> struct Sources {
  S from[count];
};
template <class S, class... More> Sources(S, More...) -> Sources<S, 1 + sizeof...(More)>;

template <class A> inline void addresses(u64 *to, A base, s64 offset) {
  for (u32 l = 0; l < 32; l++) to[l] = from<std::conditional_t<std::is_same_v<A, const u32 *> || std::is_same_v<A, u32 *>, u32, u64>>(base, l) + offset;
}
template <Space space, class T, Access access, class R, int count, class A>
DCA_NOT_INLINE void load(Warp &w, u32 m, u32 line, Rows<R, count> to, A base, s64 offset) {
  if (!m) return;
  u64 address[32];
  char *at[32];
  addresses(address, base, offset);
  locate(w, m, line, space, address, sizeof(T) * count, access, at);
  if (looks_for_races(w)) touch(w, m, line, at, sizeof(T) * count, access, nullptr);
  LANES(m) {
    T value[count];
    memcpy(value, at[l], sizeof value);
    for (int i = 0; i < count; i++) to.row[i][l] = to_register<R>(value[i]);
  }
}
template <Space space, class T, Access access, class S, int count, class A>
DCA_NOT_INLINE void store(Warp &w, u32 m, u32 line, A base, s64 offset, Sources<S, count> sources) {
  if (!m) return;
  u64 address[32];
  char *at[32];
  addresses(address, base, offset);
  locate(w, m, line, space, address, sizeof(T) * count, WRITE, at);
  T values[32][count];
  LANES(m) for (int i = 0; i < count; i++) values[l][i] = from<T>(sources.from[i], l);
  if (looks_for_races(w)) touch(w, m, line, at, sizeof values[0], access, reinterpret_cast<const char *>(values));
  LANES(m) memcpy(at[l], values[l], sizeof values[l]);
}
// A parameter of the kernel at a known offset, the same in all lanes.
template <class T, class R, int count> DCA_NOT_INLINE void load_parameter(Warp &w, u32 m, Rows<R, count> to, u32 offset) {
  const char *from = w.cta->grid->parameters.data() + offset;
  for (int i = 0; i < count; i++) {
    T value;
    memcpy(&value, from + i * sizeof value, sizeof value);
    R bits = to_register<R>(value);
    LANES(m) to.row[i][l] = bits;
  }
}
// The arguments of a call, and what it returns.
inline void copy_local(Warp &w, u32 m, u32 to, u32 from, u32 bytes) {
  const u64 each_bytes = w.cta->grid->code->local_bytes;
  LANES(m) memcpy(w.local + l * each_bytes + to, w.local + l * each_bytes + from, bytes);
}
template <class A> DCA_NOT_INLINE u32 is_shared(A address) {
  u32 value = 0;
  for (u32 l = 0; l < 32; l++) value |= static_cast<u32>(from<u64>(address, l) >> 56 == SHARED_WINDOW >> 56) << l;
  return value;
}
DCA_NOT_INLINE inline u32 is_local(Warp &w, const u64 *address) {
  const u64 local = reinterpret_cast<u64>(w.local), bytes = w.cta->grid->code->local_bytes;
  u32 value = 0;
  for (u32 l = 0; l < 32; l++) value |= static_cast<u32>(address[l] - local < 32 * bytes) << l;
  return value;
}

// Atomic operations: `of` gives the new value. Lanes go one after another.
template <class T> struct AtomAdd { static T of(T old, T a, T) { return Add<T>::of(old, a); } };
template <> struct AtomAdd<f32> { static f32 of(f32 old, f32 a, f32) { return canonical(old + a); } };
// Its subnormals are flushed where the operand lies in global memory.
struct AtomAddFlushed { static f32 of(f32 old, f32 a, f32) { return canonical(flushed(flushed(old) + flushed(a))); } };
template <> struct AtomAdd<f64> { static f64 of(f64 old, f64 a, f64) { return old + a; } };
template <> struct AtomAdd<f16> { static f16 of(f16 old, f16 a, f16) { return Add16<f16, false, false>::of(old, a); } };
template <> struct AtomAdd<bf16> { static bf16 of(bf16 old, bf16 a, bf16) { return Add16<bf16, false, false>::of(old, a); } };
template <> struct AtomAdd<f16x2> {
  static f16x2 of(f16x2 old, f16x2 a, f16x2) { return Packed<f16x2, Add16<f16, false, false>>::of(old, a); }
};
template <> struct AtomAdd<bf16x2> {
  static bf16x2 of(bf16x2 old, bf16x2 a, bf16x2) { return Packed<bf16x2, Add16<bf16, false, false>>::of(old, a); }
};
template <class T> struct AtomMin { static T of(T old, T a, T) { return a < old ? a : old; } };
template <class T> struct AtomMax { static T of(T old, T a, T) { return a > old ? a : old; } };
template <class T> struct AtomAnd { static T of(T old, T a, T) { return old & a; } };
template <class T> struct AtomOr { static T of(T old, T a, T) { return old | a; } };
template <class T> struct AtomXor { static T of(T old, T a, T) { return old ^ a; } };
template <class T> struct AtomExch { static T of(T, T a, T) { return a; } };
template <class T> struct AtomCas { static T of(T old, T a, T b) { return old == a ? b : old; } };
template <class T> struct AtomInc { static T of(T old, T a, T) { return old >= a ? 0 : old + 1; } };
template <class T> struct AtomDec { static T of(T old, T a, T) { return old == 0 || old > a ? a : old - 1; } };

template <Space space, class T, class Op, class R, class A, class S, class Z>
DCA_NOT_INLINE void atomic(Warp &w, u32 m, u32 line, R *to, A base, s64 offset, S source, Z second) {
  if (!m) return;
  u64 address[32];
  char *at[32];
  addresses(address, base, offset);
  locate(w, m, line, space, address, sizeof(T), READ, at);
  locate(w, m, line, space, address, sizeof(T), WRITE, at);
  if (looks_for_races(w)) synchronize(w);
  LANES(m) {
    // Another thread of the host may run another grid.
    auto *place = reinterpret_cast<Bits<T> *>(at[l]);
    Bits<T> old = __atomic_load_n(place, __ATOMIC_SEQ_CST), fresh;
    do
      fresh = cast<Bits<T>>(Op::of(cast<T>(old), from<T>(source, l), from<T>(second, l)));
    while (!__atomic_compare_exchange_n(place, &old, fresh, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    if (to) to[l] = to_register<R>(old);
  }
}

// Asynchronous copies. Each is carried out when its thread waits for it: what is read earlier is poison, not luck. With
// warps in random order, some are carried out at once, as a GPU may.
inline void carry_out(Warp &w, const Copy &copy) {
  Cta &cta = *w.cta;
  if (!copy.done) {
    memcpy(cta.shared.data() + copy.to, reinterpret_cast<const void *>(copy.from), copy.from_bytes);
    memset(cta.shared.data() + copy.to + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
  }
  if (!cta.states.empty()) memset(cta.states.data() + copy.to, WRITTEN, copy.bytes);
}
template <u32 bytes, class D, class A, class S>
DCA_NOT_INLINE void copy_async(Warp &w, u32 m, u32 line, D to, s64 to_offset, A base, s64 offset, S size, u32 ignored) {
  if (!m) return;
  u64 destination[32], address[32];
  char *at[32];
  addresses(destination, to, to_offset);
  addresses(address, base, offset);
  u32 reading = 0;
  LANES(m) {
    u32 wanted = from<u32>(size, l);
    if (wanted > bytes) fault(w, l, line, "copy", text("cp.async of %u bytes reads %u bytes", bytes, wanted));
    if (wanted && !(ignored >> l & 1)) reading |= 1u << l;
  }
  u32 whole = 0;
  LANES(reading) if (from<u32>(size, l) == bytes) whole |= 1u << l;
  if (whole) locate(w, whole, line, GLOBAL, address, bytes, READ, at);
  LANES(reading & ~whole) if (!accessible(*w.cta->grid, address[l], from<u32>(size, l), false))
    outside(w, l, line, address[l], from<u32>(size, l), false, "global");
  if (looks_for_races(w)) {
    touch(w, whole, line, at, bytes, READ, nullptr);
    LANES(m) at[l] = w.cta->shared.data() + destination[l];
    LANES(m) shared_at(w, l, line, destination[l], bytes, WRITE);
    touch(w, m, line, at, bytes, WRITE, nullptr);
  }
  bool late = !w.cta->grid->services.seed || (drawn(*w.cta->grid) & 1);
  LANES(m) {
    if (destination[l] & (bytes - 1))
      fault(w, l, line, "alignment", text("cp.async of %u bytes to shared memory at %llu, which is no multiple of them", bytes,
                                          static_cast<unsigned long long>(destination[l])));
    shared_at(w, l, line, destination[l], bytes, WRITE);
    Copy copy{l, w.group[l], static_cast<u32>(destination[l]), bytes, reading >> l & 1 ? from<u32>(size, l) : 0, address[l], false};
    if (!late) carry_out(w, copy);
    copy.done = !late;
    if (!w.cta->states.empty()) memset(w.cta->states.data() + copy.to, PENDING, bytes);
    w.copies.push_back(copy);
  }
}
inline void commit_group(Warp &w, u32 m) {
  LANES(m) w.group[l]++;
}
// Waits until at most `pending` of the committed groups are left.
DCA_NOT_INLINE inline void wait_group(Warp &w, u32 m, u32 pending) {
  size_t kept = 0;
  for (const Copy &copy : w.copies) {
    if ((m >> copy.lane & 1) && copy.group + pending < w.group[copy.lane])
      carry_out(w, copy);
    else
      w.copies[kept++] = copy;
  }
  w.copies.resize(kept);
}
inline void wait_all(Warp &w, u32 m) {
  commit_group(w, m);
  wait_group(w, m, 0);
}

}  // namespace dca
#endif
