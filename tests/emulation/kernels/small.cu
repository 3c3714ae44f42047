// Small kernels, each of which does something else. All have the same parameters: COUNT words to read, COUNT words of
// results, and a number. They give the same bits through nvcc and the emulation as through g++ and on_host.h.
#ifndef __CUDACC__
#include "on_host.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

typedef unsigned u;
#define KERNEL(name) extern "C" __global__ void name(const u *given, u *results, int number)
#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)
// A float of moderate size from any word.
static __device__ __forceinline__ float moderate(u word) { return __uint_as_float((word & 0x807fffffu) | (0x3f000000u + (word >> 3 & 0x03800000u))); }

KERNEL(scale_and_add) { results[INDEX] = __float_as_uint(fmaf(moderate(given[INDEX]), 1.7f, moderate(given[INDEX ^ 1]))); }

KERNEL(hash) {
  u x = given[INDEX] * 0xcc9e2d51u;
  x = __funnelshift_l(x, x, 15) * 0x1b873593u;
  x ^= x >> 16; x *= 0x85ebca6bu; x ^= x >> 13; x *= 0xc2b2ae35u;
  results[INDEX] = x ^ x >> 16;
}

KERNEL(reduce_in_shared) {
  __shared__ float part[128];
  part[threadIdx.x] = moderate(given[INDEX]);
  __syncthreads();
  for (u step = 64; step; step >>= 1) {
    if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
    __syncthreads();
  }
  results[INDEX] = __float_as_uint(part[0] - part[threadIdx.x]);
}

KERNEL(reduce_in_warp) {
  float sum = moderate(given[INDEX]);
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  results[INDEX] = __float_as_uint(sum);
}

KERNEL(scan_in_warp) {
  u sum = given[INDEX], lane = threadIdx.x % 32;
  for (u step = 1; step < 32; step *= 2) {
    u other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  results[INDEX] = sum ^ __shfl_sync(~0u, sum, number) ^ __shfl_down_sync(~0u, sum, 3);
}

KERNEL(histogram) {
  __shared__ u bins[64];
  if (threadIdx.x < 64) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[given[INDEX] % 64], 1u);
  __syncthreads();
  if (threadIdx.x < 64) atomicAdd(&results[threadIdx.x], bins[threadIdx.x]);
}

KERNEL(transpose) {
  __shared__ u tile[16][17];
  u x = threadIdx.x % 16, y = threadIdx.x / 16;
  for (u row = y; row < 16; row += 8) tile[row][x] = given[blockIdx.x * 256 + row * 16 + x];
  __syncthreads();
  for (u row = y; row < 16; row += 8) results[blockIdx.x * 256 + row * 16 + x] = tile[x][row];
}

KERNEL(multiply_matrices) {
  __shared__ float a[8][16], b[16][16];
  u x = threadIdx.x % 16, y = threadIdx.x / 16;
  float sum = 0;
  for (u k = 0; k < 64; k += 16) {
    a[y][x] = moderate(given[y * 64 + k + x]);
    for (u row = y; row < 16; row += 8) b[row][x] = moderate(given[512 + (k + row) * 16 + x]);
    __syncthreads();
    for (u i = 0; i < 16; i++) sum = fmaf(a[y][i], b[i][x], sum);
    __syncthreads();
  }
  if (!blockIdx.x) results[threadIdx.x] = __float_as_uint(sum);
}

KERNEL(collatz) {
  u x = given[INDEX] % 10000 + 1, steps = 0;
  while (x != 1) {
    if (x % 2) x = 3 * x + 1; else x /= 2;
    steps++;
  }
  results[INDEX] = steps;
}

KERNEL(sort_in_local_memory) {
  u sorted[12];
  for (int i = 0; i < 12; i++) sorted[i] = given[(INDEX + i * number) % 1024];
  for (int i = 1; i < 12; i++) {
    u value = sorted[i];
    int place = i;
    while (place > 0 && sorted[place - 1] > value) { sorted[place] = sorted[place - 1]; place--; }
    sorted[place] = value;
  }
  results[INDEX] = sorted[number % 12] ^ sorted[(threadIdx.x) % 12] * 31;
}

KERNEL(sort_bitonic) {
  DYNAMIC_SHARED(u, keys);
  keys[threadIdx.x] = given[INDEX];
  __syncthreads();
  for (u size = 2; size <= 128; size *= 2)
    for (u step = size / 2; step; step /= 2) {
      u other = threadIdx.x ^ step;
      if (other > threadIdx.x) {
        u low = keys[threadIdx.x], high = keys[other];
        if ((low > high) == !(threadIdx.x & size)) { keys[threadIdx.x] = high; keys[other] = low; }
      }
      __syncthreads();
    }
  results[INDEX] = keys[threadIdx.x];
}

KERNEL(branches) {
  u x = given[INDEX];
  if (x % 11 == 0) return;
  switch (x % 7) {
    case 0: results[INDEX] = x / 3; break;
    case 1: results[INDEX] = x * x;
    case 2: results[INDEX] += x % 1000; break;
    case 3: for (u i = 0; i < x % 17; i++) { if (i * i > 90) break; if (i % 3) continue; results[INDEX] += i; } break;
    case 5: results[INDEX] = ~x; return;
    default: results[INDEX] = 42;
  }
  results[INDEX] ^= 0x1000;
}

KERNEL(long_integers) {
  long long a = (long long)(given[INDEX]) << 21 | given[INDEX ^ 5], b = (int)given[INDEX ^ 3] | 1;
  unsigned long long c = (unsigned long long)a * 0x9e3779b97f4a7c15ull;
  long long d = a / b + a % b;
  results[INDEX] = (u)(c >> 33) ^ (u)d ^ (u)(d >> 32) ^ (u)(a >> (number & 63)) ^ __umulhi(given[INDEX], 0xabcdef01u);
}

KERNEL(bytes) {
  const signed char *text = reinterpret_cast<const signed char *>(given);
  const unsigned short *pairs = reinterpret_cast<const unsigned short *>(given);
  int sum = 0;
  for (int i = 0; i < 9; i++) sum += text[(INDEX * 3 + i) % 4096] * (i - 4) + pairs[(INDEX + i) % 2048] % 77;
  reinterpret_cast<unsigned char *>(results)[INDEX * 4 + 1] = (unsigned char)max(0, min(255, sum));
  reinterpret_cast<short *>(results)[INDEX * 2 + 1] = (short)sum;
}

KERNEL(doubles) {
  double x = (int)given[INDEX] / 65536.0, y = 0;
  for (int i = 0; i < 9; i++) y = y * x + (i - 4.25);
  y = sqrt(fabs(y)) / (1 + x * x);
  unsigned long long bits;
  memcpy(&bits, &y, 8);
  results[INDEX] = (u)bits ^ (u)(bits >> 32) ^ __float_as_uint((float)y) ^ (u)(int)(y * 3);
}

KERNEL(round_floats) {
  float x = moderate(given[INDEX]) * (1 << (given[INDEX] & 15));
  float sum = rintf(x) + 3 * floorf(x) - 5 * ceilf(x) + 7 * truncf(x);
  results[INDEX] = __float_as_uint(sum) ^ (u)(int)x ^ (u)(int)(x * 0.37f) * 3;
}

KERNEL(compare_floats) {
  float a = __uint_as_float(given[INDEX]), b = __uint_as_float(given[INDEX ^ 9]);
  u flags = (a < b) | (a <= b) << 1 | (a == b) << 2 | (a != b) << 3 | !(a >= b) << 4 | !(a > b) << 5;
  float c = fminf(fabsf(a), fabsf(b)), d = fmaxf(a, 1.0f);
  results[INDEX] = flags ^ (c == c ? __float_as_uint(c) : 1) ^ (d == d ? __float_as_uint(-d) : 2);
}

KERNEL(scan_in_shared) {
  DYNAMIC_SHARED(u, sums);
  u from = 0;
  sums[threadIdx.x] = given[INDEX];
  __syncthreads();
  for (u step = 1; step < 128; step *= 2) {
    u to = 128 - from;
    sums[to + threadIdx.x] = sums[from + threadIdx.x] + (threadIdx.x >= step ? sums[from + threadIdx.x - step] : 0);
    from = to;
    __syncthreads();
  }
  results[INDEX] = sums[from + threadIdx.x];
}

__constant__ u table[16] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3};
KERNEL(look_up) {
  u x = given[INDEX], sum = 0;
  for (int i = 0; i < 8; i++, x >>= 4) sum = sum * 10 + table[x & 15];
  results[INDEX] = sum;
}

KERNEL(convert_numbers) {
  u x = given[INDEX];
  float f = (float)x, g = (float)(int)x, h = (float)(((unsigned long long)x << 23) + x);
  double d = (double)f * 3 - (double)(long long)g;
  results[INDEX] = __float_as_uint(f) ^ __float_as_uint(g) * 3 ^ __float_as_uint(h) ^ (u)(long long)d ^ (u)(unsigned short)(f / 70000.0f);
}

KERNEL(mandelbrot) {
  float cx = (INDEX % 32) / 16.0f - 1.5f, cy = (INDEX / 32) / 16.0f - 1.0f, x = 0, y = 0;
  int count = 0;
  while (x * x + y * y < 4 && count < 100) { float t = x * x - y * y + cx; y = 2 * x * y + cy; x = t; count++; }
  results[INDEX] = count ^ __float_as_uint(x);
}

KERNEL(search) {
  u low = 0, high = 1024, key = given[INDEX] % 1000 * 1000;
  while (low < high) { u middle = (low + high) / 2; if (middle * middle < key) low = middle + 1; else high = middle; }
  results[INDEX] = low;
}

KERNEL(votes) {
  u x = given[INDEX], votes = __ballot_sync(~0u, x & 1);
  u sum = __popc(votes) + 64 * __clz(votes) + 4096 * __ffs(votes) + __brev(x);
  if (__any_sync(~0u, x % 64 == 0)) sum ^= 0x55;
  if (__all_sync(~0u, x % 64 != 1)) sum ^= 0xaa00;
  results[INDEX] = sum;
}

KERNEL(atomics) {
  u x = given[INDEX];
  atomicMax(&results[0], x);
  atomicMin(reinterpret_cast<int *>(&results[1]), (int)x);
  atomicOr(&results[2], 1u << x % 32);
  atomicAdd(reinterpret_cast<unsigned long long *>(&results[4]), (unsigned long long)x << 16);
  u *place = &results[8 + x % 8], seen = *place, old;
  do { old = seen; seen = atomicCAS(place, old, old + (x | 1)); } while (seen != old);
}

static __device__ __noinline__ u mixed(u a, u b, u rounds) {
  for (u i = 0; i < rounds; i++) { a += b * 7; b ^= a >> 5; }
  return a ^ b;
}
KERNEL(calls) { results[INDEX] = mixed(given[INDEX], number, given[INDEX] % 9) + mixed(INDEX, given[INDEX], 3); }

__device__ u counter = 7;
KERNEL(global_variable) {
  atomicAdd(&counter, given[INDEX] % 5);
  if (number < 0) results[INDEX] = counter;
  results[INDEX] = given[INDEX] + 1;
}

KERNEL(stencil) {
  __shared__ float row[130];
  row[threadIdx.x + 1] = moderate(given[INDEX]);
  if (threadIdx.x == 0) { row[0] = 0; row[129] = 1; }
  __syncthreads();
  float around = 0.25f * row[threadIdx.x] + 0.5f * row[threadIdx.x + 1] + 0.25f * row[threadIdx.x + 2];
  results[INDEX] = __float_as_uint(around / (1.0f + sqrtf(around * around)));
}

KERNEL(shape) {
  u thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  u block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  u size = blockDim.x * blockDim.y * blockDim.z;
  results[block * size + thread] = thread * 1000 + block + threadIdx.z * 7 + blockIdx.y * 11 + given[thread] % 3;
}

KERNEL(pack_bytes) {
  uint4 four = reinterpret_cast<const uint4 *>(given)[INDEX / 4];
  u word = INDEX % 4 == 0 ? four.x : INDEX % 4 == 1 ? four.y : INDEX % 4 == 2 ? four.z : four.w;
  results[INDEX] = __byte_perm(word, four.x, 0x4152) ^ __byte_perm(four.y, word, 0x7263);
}

KERNEL(early_exit) {
  __shared__ u seen[128];
  seen[threadIdx.x] = given[INDEX];
  __syncthreads();
  if (threadIdx.x >= 96) return;
  u sum = 0;
  for (u i = 0; i <= threadIdx.x; i += 5) sum += seen[i + 31];
  results[INDEX] = sum;
}

#ifndef __CUDACC__
namespace host {
inline const u *given;
inline u *results;
inline int number;
}
#define ON_HOST(name) extern "C" void host_##name(const u *given, u *results, int number, dim3 grid, dim3 block) { \
  host::given = given; host::results = results; host::number = number; \
  host::run(grid, block, [] { name(host::given, host::results, host::number); }); }
ON_HOST(scale_and_add) ON_HOST(hash) ON_HOST(reduce_in_shared) ON_HOST(reduce_in_warp) ON_HOST(scan_in_warp)
ON_HOST(histogram) ON_HOST(transpose) ON_HOST(multiply_matrices) ON_HOST(collatz) ON_HOST(sort_in_local_memory)
ON_HOST(sort_bitonic) ON_HOST(branches) ON_HOST(long_integers) ON_HOST(bytes) ON_HOST(doubles) ON_HOST(round_floats)
ON_HOST(compare_floats) ON_HOST(scan_in_shared) ON_HOST(look_up) ON_HOST(convert_numbers) ON_HOST(mandelbrot)
ON_HOST(search) ON_HOST(votes) ON_HOST(atomics) ON_HOST(calls) ON_HOST(global_variable) ON_HOST(stencil) ON_HOST(shape)
ON_HOST(pack_bytes) ON_HOST(early_exit)
#endif
