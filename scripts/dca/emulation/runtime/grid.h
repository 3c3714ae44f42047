// A grid in the making: thread blocks, their warps, and the functions of abi.h. Included last by every translated kernel,
// which defines `dca_code`.
#ifndef DCA_EMULATION_GRID_H
#define DCA_EMULATION_GRID_H

#include <cstdlib>
#include <map>
#include <memory>
#include <new>

#include "collective.h"
#include "text.h"

namespace dca {

extern const Code code;

// A warp that waits for another one in a loop gives way after so many instructions, and a block after so many.
constexpr u64 WARP_SLICE = 4096, BLOCK_SLICE = 1u << 16, ALONE = 1u << 20;
constexpr size_t MOST_RESIDENT = 1024;
constexpr unsigned char POISON = 0xff;

inline u64 round_up(u64 value, u64 to) { return (value + to - 1) / to * to; }

// Of lanes in one function, those that one of them was called together with: others have come from other calls of it, and
// are not converged with it, which activemask tells.
inline u32 of_one_call(const Warp &w, u32 m, u32 ready) {
  const Block *blocks = w.cta->grid->code->blocks;
  const u32 leader = static_cast<u32>(__builtin_ctz(ready));
  for (u32 function = blocks[w.pc[leader]].function; function;) {
    const u32 *back = w.returns + 32 * function;
    LANES(m) if (back[l] != back[leader]) m &= ~(1u << l);
    function = blocks[back[leader]].function;
  }
  return m;
}
// Runs a warp until it waits, ends or has used up its slice.
inline void run_warp(Warp &w, u64 slice) {
  Grid &grid = *w.cta->grid;
  const Block *blocks = grid.code->blocks;
  u64 &executed = w.executed;
  while (executed < slice) {
    u32 ready = w.live & ~w.waiting & ~w.parked;
    if (!ready) break;
    // The lowest counter first brings lanes together again. Now and then the highest goes first: lanes may wait for others.
    bool lowest = ++w.picks % 256 != 0;
    u32 current = lowest ? ALL : 0;
    LANES(ready) current = lowest ? std::min(current, w.pc[l]) : std::max(current, w.pc[l]);
    u32 m = 0;
    LANES(w.live & ~w.parked) if (w.pc[l] == current) m |= 1u << l;
    if (blocks[current].function) m = of_one_call(w, m, m & ready);
    // Lanes that nothing brings together may go on apart; those that wait are asked again with each that comes.
    if (grid.services.seed && grid.code->apart && !(drawn(grid) & 3)) {
      const u32 some = m & (static_cast<u32>(drawn(grid)) | w.waiting);
      if (some & ready) m = some;
    }
    w.waiting &= ~m;
    for (;;) {
      w.active = m;
      u32 next = blocks[current].run(w, m);
      executed += blocks[current].instructions;
      m = w.active;
      if (next == LEFT || next == DIVERGED || !m) break;
      if (m != w.live || executed >= slice) {
        go(w, m, next);
        break;
      }
      current = next;
    }
  }
  grid.executed += executed;
  w.cta->ran += executed;
  executed = 0;
}

inline void share_clocks(Cta &cta, u32 number) {
  std::vector<u32> &all = cta.arrived_clocks[number];
  for (const Warp &w : cta.warps)
    if (w.parked && w.barrier == number) join(all, w.clocks);
  for (Warp &w : cta.warps)
    if (w.parked && w.barrier == number) {
      join(w.clocks, all);
      w.clocks[w.index]++;
      meet(w, w.parked);
    }
  all.clear();
}
inline void release(Cta &cta, u32 number) {
  if (cta.grid->services.checks & DCA_CHECK_RACES) share_clocks(cta, number);
  u32 sum = 0, votes = 0, lanes = 0;
  bool every = true;
  for (Warp &w : cta.warps)
    if (w.parked && w.barrier == number && w.reduction) {
      votes = static_cast<u32>(__builtin_popcount(w.reduction_value & w.parked));
      lanes = static_cast<u32>(__builtin_popcount(w.parked));
      sum += votes;
      every = every && votes == lanes;
    }
  for (Warp &w : cta.warps) {
    if (!w.parked || w.barrier != number) continue;
    if (w.reduction == RED_POPC) LANES(w.parked) w.reduction_row[l] = sum;
    if (w.reduction == RED_AND) put(*w.reduction_predicate, w.parked, every ? ALL : 0);
    if (w.reduction == RED_OR) put(*w.reduction_predicate, w.parked, sum ? ALL : 0);
    w.parked = 0;
    w.reduction = NO_REDUCTION;
  }
  cta.arrived[number] = 0;
}

// Lets those go on whose barrier is complete; whether there were any.
inline bool open_barriers(Cta &cta) {
  bool any = false;
  for (u32 number = 0; number < BARRIERS; number++) {
    u32 arrived = cta.arrived[number], count = 0, here = 0, alive = 0;
    const Warp *first = nullptr;
    for (const Warp &w : cta.warps) {
      alive += w.live != 0;
      if (!w.parked || w.barrier != number) continue;
      if (!first) first = &w, count = w.barrier_count;
      if (w.barrier_count != count)
        fault(w, static_cast<u32>(__builtin_ctz(w.parked)), w.barrier_line, "barrier",
              text("warps wait at barrier %u for %u and for %u threads", number, w.barrier_count, count));
      // A warp has come when all of its lanes have.
      if (w.parked == w.live) here++, arrived += 32;
    }
    if (!here || !(count ? arrived >= count : here == alive)) continue;
    if (count && arrived > count) {
      u32 lane = static_cast<u32>(__builtin_ctz(first->parked));
      fault(*first, lane, first->barrier_line, "barrier", text("%u threads come to barrier %u, which waits for %u", arrived, number, count));
    }
    release(cta, number);
    any = true;
  }
  return any;
}

[[noreturn]] inline void stuck(const Cta &cta) {
  for (const Warp &w : cta.warps)
    if (w.waiting)
      fault(w, static_cast<u32>(__builtin_ctz(w.waiting)), w.wait_line, "collective",
            text("lanes 0x%08x are missing: they wait elsewhere", w.awaited & w.live));
  for (const Warp &w : cta.warps)
    if (w.parked) {
      u32 lane = static_cast<u32>(__builtin_ctz(w.parked));
      fault(w, lane, w.barrier_line, "barrier", text("deadlock: barrier %u waits for threads that do not come", w.barrier));
    }
  abort();
}

// Runs a block for a slice; whether it has ended.
inline bool run_block(Cta &cta, u64 slice) {
  Grid &grid = *cta.grid;
  u64 until = cta.ran + slice;
  const bool random = grid.services.seed != 0;
  while (cta.ran < until) {
    bool alive = false, ran = false;
    const size_t count = cta.warps.size(), start = random ? drawn(grid) % count : 0;
    for (size_t i = 0; i < count; i++) {
      Warp &w = cta.warps[(start + i) % count];
      alive = alive || w.live;
      if (!(w.live & ~w.waiting & ~w.parked)) continue;
      ran = true;
      run_warp(w, random ? 1 + drawn(grid) % WARP_SLICE : WARP_SLICE);
      if (random && (drawn(grid) & 1)) break;
    }
    if (!alive) return true;
    if (!ran && !open_barriers(cta)) {
      for (const Warp &w : cta.warps)
        if (w.live) stuck(cta);
      return true;
    }
  }
  return false;
}

inline void begin_block(Cta &cta, u64 number) {
  Grid &grid = *cta.grid;
  const Code &c = *grid.code;
  const u32 *size = grid.launch.grid, *block = grid.launch.block;
  cta.id[0] = static_cast<u32>(number % size[0]);
  cta.id[1] = static_cast<u32>(number / size[0] % size[1]);
  cta.id[2] = static_cast<u32>(number / size[0] / size[1]);
  cta.ran = 0;
  cta.number = number;
  const bool races = grid.services.checks & DCA_CHECK_RACES;
  if (races) cta.cells.assign(grid.shared_bytes, Cell{});
  cta.volatile_cells.clear();
  cta.atomic_clocks.clear();
  for (std::vector<u32> &one : cta.arrived_clocks) one.clear();
  std::fill(std::begin(cta.arrived), std::end(cta.arrived), 0);
  const u64 of_rows = 32 * (8ull * c.rows64 + 4ull * c.rows32 + 2ull * c.rows16), of_predicates = 4 * round_up(c.predicates, 16);
  const u64 of_returns = 128ull * c.functions, of_local = 32 * round_up(c.local_bytes, 16);
  const u64 each_warp = round_up(of_rows + of_predicates + of_returns + of_local, 64);
  cta.memory.resize(each_warp * grid.warps + 64);
  // Registers and local memory are not zero when a kernel starts.
  memset(cta.memory.data(), POISON, cta.memory.size());
  cta.shared.assign(grid.shared_bytes, static_cast<char>(grid.services.fill));
  if (grid.services.checks & DCA_CHECK_SHARED) cta.states.assign(grid.shared_bytes, UNWRITTEN);
  cta.warps.resize(grid.warps);
  char *memory = reinterpret_cast<char *>(round_up(reinterpret_cast<u64>(cta.memory.data()), 64));
  for (u32 i = 0; i < grid.warps; i++, memory += each_warp) {
    Warp &w = cta.warps[i];
    std::vector<Copy> copies = std::move(w.copies);
    copies.clear();
    w = Warp{};
    w.copies = std::move(copies);
    w.cta = &cta, w.index = i;
    if (races) w.clocks.assign(grid.warps, 0), w.clocks[i] = 1;
    w.d = reinterpret_cast<u64 *>(memory);
    w.local = reinterpret_cast<char *>(w.d + 32 * c.rows64);
    w.r = reinterpret_cast<u32 *>(w.local + of_local);
    w.returns = w.r + 32 * c.rows32;
    w.p = w.returns + 32 * c.functions;
    w.h = reinterpret_cast<u16 *>(w.p + round_up(c.predicates, 16));
    for (u32 l = 0; l < 32; l++) {
      u32 thread = 32 * i + l;
      if (thread < grid.grid_threads) w.live |= 1u << l;
      w.tid[0][l] = thread % block[0];
      w.tid[1][l] = thread / block[0] % block[1];
      w.tid[2][l] = thread / block[0] / block[1];
    }
  }
}

// Advances blocks in turns. A block runs alone unless it does not end; then others start beside it, as many as might be
// resident on a GPU.
inline int advance(Grid &grid, u64 budget) {
  u64 until = grid.executed + budget;
  while (grid.executed < until) {
    if (grid.resident.empty() && grid.next_block == grid.blocks) return DCA_DONE;
    bool slow = true;
    for (const Cta *cta : grid.resident) slow = slow && cta->ran >= ALONE;
    if (grid.next_block < grid.blocks && slow && grid.resident.size() < MOST_RESIDENT) {
      Cta *cta;
      if (grid.spare.empty()) {
        cta = new Cta{};
        cta->grid = &grid;
      } else {
        cta = grid.spare.back();
        grid.spare.pop_back();
      }
      grid.resident.push_back(cta);
      begin_block(*cta, grid.next_block++);
      grid.turn = grid.resident.size() - 1;
    }
    size_t at = grid.turn++ % grid.resident.size();
    Cta &cta = *grid.resident[at];
    if (run_block(cta, cta.ran < ALONE ? ALONE : BLOCK_SLICE)) {
      grid.spare.push_back(&cta);
      grid.resident.erase(grid.resident.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  return grid.resident.empty() && grid.next_block == grid.blocks ? DCA_DONE : DCA_MORE;
}

// A warp that runs on, else one that waits for others; null if none has begun or all have ended.
inline const Warp *unfinished(const Grid &grid) {
  const Warp *waits = nullptr;
  for (const Cta *cta : grid.resident)
    for (const Warp &w : cta->warps) {
      if (w.live & ~w.waiting & ~w.parked) return &w;
      if (!waits && w.live) waits = &w;
    }
  return waits;
}

// Not inline: the dynamic linker would make one map of those of all kernels.
static u64 own_storage(u32 number) {
  static std::map<u32, std::unique_ptr<char[]>> all;
  const Variable &variable = code.variables[number];
  auto found = all.find(number);
  if (found == all.end()) {
    auto memory = std::make_unique<char[]>(variable.bytes + variable.align);
    found = all.emplace(number, std::move(memory)).first;
    char *start = reinterpret_cast<char *>(round_up(reinterpret_cast<u64>(found->second.get()), variable.align));
    if (variable.initial) memcpy(start, variable.initial, variable.bytes);
  }
  return round_up(reinterpret_cast<u64>(found->second.get()), variable.align);
}
// An address in an initial value is filled in where it still has its zeros.
inline void place_variables(Grid &grid) {
  for (u32 i = 0; i < code.variable_count; i++) {
    const Variable &v = code.variables[i];
    grid.variables.push_back(grid.services.variable
                                 ? grid.services.variable(grid.services.self, v.name, v.bytes, v.align, v.initial)
                                 : own_storage(i));
  }
  for (u32 i = 0; i < code.pointer_count; i++) {
    const Pointer &pointer = code.pointers[i];
    u64 value, target = grid.variables[pointer.target] + pointer.addend;
    char *place = reinterpret_cast<char *>(grid.variables[pointer.variable] + pointer.offset);
    memcpy(&value, place, sizeof value);
    if (!value) memcpy(place, &target, sizeof target);
  }
}

inline u64 dynamic_start() { return round_up(code.kernel->static_shared, code.shared_align); }

inline bool valid(const DcaLaunch &launch) {
  u64 threads = 1, blocks = 1;
  for (int i = 0; i < 3; i++) {
    if (!launch.grid[i] || !launch.block[i] || (i && launch.grid[i] > 65535) || launch.grid[i] > 0x7fffffff) return false;
    if (launch.block[i] > (i == 2 ? 64u : 1024u) || (code.exact_threads[0] && launch.block[i] != code.exact_threads[i])) return false;
    threads *= launch.block[i], blocks *= launch.grid[i];
  }
  return threads <= code.kernel->max_threads && launch.parameter_bytes == code.kernel->parameter_bytes &&
         dynamic_start() + launch.dynamic_shared <= code.most_shared;
}

}  // namespace dca

extern "C" {
void *dca_start(const DcaLaunch *launch, const DcaServices *services) {
  using namespace dca;
  if (!dca::valid(*launch) || services->abi != DCA_EMULATION_ABI) return nullptr;
  Grid *grid = new Grid{};
  grid->code = &dca::code;
  grid->launch = *launch;
  grid->services = *services;
  const char *bytes = static_cast<const char *>(launch->parameters);
  grid->parameters.assign(bytes, bytes + launch->parameter_bytes);
  grid->launch.parameters = grid->parameters.data();
  grid->blocks = static_cast<u64>(launch->grid[0]) * launch->grid[1] * launch->grid[2];
  grid->grid_threads = launch->block[0] * launch->block[1] * launch->block[2];
  grid->warps = (grid->grid_threads + 31) / 32;
  grid->shared_bytes = dynamic_start() + launch->dynamic_shared;
  grid->random = services->seed;
  if (services->checks & DCA_CHECK_RACES) grid->last_atomic.assign(grid->blocks, 0);
  place_variables(*grid);
  return grid;
}
int dca_advance(void *handle, uint64_t budget) {
  dca::Grid &grid = *static_cast<dca::Grid *>(handle);
  if (grid.failed) return DCA_FAILED;
  try {
    return dca::advance(grid, budget);
  } catch (const dca::Fault &) {
    grid.failed = true;
    return DCA_FAILED;
  }
}
uint64_t dca_executed(const void *grid) { return static_cast<const dca::Grid *>(grid)->executed; }
int dca_waits(const void *handle, DcaFinding *where) {
  using namespace dca;
  const Grid &grid = *static_cast<const Grid *>(handle);
  const Warp *w = unfinished(grid);
  if (!w) return 0;
  const u32 running = w->live & ~w->waiting & ~w->parked, *id = w->cta->id;
  const u32 lane = static_cast<u32>(__builtin_ctz(running ? running : w->live));
  const u32 line = w->parked >> lane & 1 ? w->barrier_line : grid.code->blocks[w->pc[lane]].line;
  *where = {"deadlock", grid.code->kernel->name, "", {id[0], id[1], id[2]}, w->index, lane, line, source_of(*grid.code, line)};
  return 1;
}
void dca_finish(void *handle) {
  dca::Grid *grid = static_cast<dca::Grid *>(handle);
  for (dca::Cta *cta : grid->resident) delete cta;
  for (dca::Cta *cta : grid->spare) delete cta;
  delete grid;
}
}
#endif
