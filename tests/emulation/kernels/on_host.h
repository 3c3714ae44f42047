// CUDA C++ as host code: each thread of a block is a coroutine, which a barrier or an exchange within a warp suspends.
// Blocks run one after another, so that a static variable is a block's shared memory.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <vector>

struct dim3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {
struct Thread { ucontext_t context; std::vector<char> stack; dim3 index; bool done; };
struct Meeting { unsigned arrived = 0, generation = 0; };
inline std::vector<Thread> threads;
inline std::vector<Meeting> warps;
inline std::vector<uint64_t> lanes;
inline Meeting block;
inline ucontext_t scheduler;
inline unsigned current;
inline void (*body)();
inline char dynamic[1 << 16] __attribute__((aligned(16)));

inline void yield() {
  swapcontext(&threads[current].context, &scheduler);
}
inline void meet(Meeting &meeting, unsigned count) {
  unsigned generation = meeting.generation;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    meeting.generation++;
  }
  while (meeting.generation == generation) yield();
}
inline unsigned lane() { return current % 32; }
inline void meet_lanes(unsigned mask) { meet(warps[current / 32], __builtin_popcount(mask)); }
// What each lane of the mask gives, in slots by lane.
template <class T> T exchanged(unsigned mask, T value, int from) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  lanes[current] = bits;
  meet_lanes(mask);
  bits = lanes[current / 32 * 32 + from];
  meet_lanes(mask);
  T result;
  memcpy(&result, &bits, sizeof result);
  return result;
}
inline void enter() {
  body();
  threads[current].done = true;
}
inline void run(dim3 grid, dim3 shape, void (*kernel)()) {
  body = kernel;
  gridDim = grid;
  blockDim = shape;
  unsigned count = shape.x * shape.y * shape.z;
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; b++) {
    threads.assign(count, {});
    warps.assign((count + 31) / 32, {});
    lanes.assign((count + 31) / 32 * 32, 0);
    block = {};
    for (unsigned t = 0; t < count; t++) {
      Thread &each = threads[t];
      each.stack.resize(1 << 16);
      each.index = {t % shape.x, t / shape.x % shape.y, t / (shape.x * shape.y)};
      getcontext(&each.context);
      each.context.uc_stack.ss_sp = each.stack.data();
      each.context.uc_stack.ss_size = each.stack.size();
      each.context.uc_link = &scheduler;
      makecontext(&each.context, enter, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (current = 0; current < count; current++) {
        if (threads[current].done) continue;
        left = true;
        threadIdx = threads[current].index;
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
        swapcontext(&scheduler, &threads[current].context);
      }
    }
  }
}
}  // namespace host

#define __global__
#define __device__
#define __host__
#define __constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline
#define __shared__ static
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(host::dynamic)

inline void __syncthreads() { host::meet(host::block, blockDim.x * blockDim.y * blockDim.z); }
inline void __syncwarp() { host::meet_lanes(0xffffffffu); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int by) { return host::exchanged(mask, value, host::lane() ^ by); }
template <class T> T __shfl_down_sync(unsigned mask, T value, int by) {
  int from = host::lane() + by;
  return host::exchanged(mask, value, from > 31 ? host::lane() : from);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, int by) {
  int from = static_cast<int>(host::lane()) - by;
  return host::exchanged(mask, value, from < 0 ? static_cast<int>(host::lane()) : from);
}
template <class T> T __shfl_sync(unsigned mask, T value, int from) { return host::exchanged(mask, value, from & 31); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned votes = 0;
  for (int i = 0; i < 32; i++) votes |= static_cast<unsigned>(host::exchanged(mask, predicate != 0, i)) << i;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T> T atomicAdd(T *place, T value) { T old = *place; *place = old + value; return old; }
template <class T> T atomicMax(T *place, T value) { T old = *place; *place = old > value ? old : value; return old; }
template <class T> T atomicMin(T *place, T value) { T old = *place; *place = old < value ? old : value; return old; }
template <class T> T atomicOr(T *place, T value) { T old = *place; *place = old | value; return old; }
template <class T> T atomicCAS(T *place, T expected, T value) { T old = *place; if (old == expected) *place = value; return old; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) { unsigned r = 0; for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i); return r; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) { return (static_cast<uint64_t>(high) << 32 | low) << (by & 31) >> 32; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= static_cast<unsigned>(both >> 8 * (s >> 4 * i & 7) & 255) << 8 * i;
  return r;
}
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
