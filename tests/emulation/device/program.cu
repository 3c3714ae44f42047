// A program whose parts the tests choose by its first argument: each prints what it computed.
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

__constant__ float factor = 3.0f;
__device__ int counter = 5;

extern "C" __global__ void scale(const float *from, float *to, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i] * factor + counter;
}

extern "C" __global__ void meet(volatile int *own, volatile int *other, int rounds) {
  for (int round = 1; round <= rounds; round++) {
    *own = round;
    while (*other < round) {
    }
  }
}

extern "C" __global__ void beyond(float *to, int at) { to[at] = 1.0f; }

static void *stream_of(cudaStream_t *stream) {
  cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking);
  return *stream;
}

static int scaled() {
  const int count = 100;
  std::vector<float> host(count);
  for (int i = 0; i < count; i++) host[i] = static_cast<float>(i);
  float *from, *to;
  cudaMalloc(&from, count * sizeof(float));
  cudaMalloc(&to, count * sizeof(float));
  cudaMemcpy(from, host.data(), count * sizeof(float), cudaMemcpyHostToDevice);
  float two = 2.0f;
  cudaMemcpyToSymbol(factor, &two, sizeof two);
  scale<<<4, 32>>>(from, to, count);
  cudaMemcpy(host.data(), to, count * sizeof(float), cudaMemcpyDeviceToHost);
  int kept = 0;
  cudaMemcpyFromSymbol(&kept, counter, sizeof kept);
  std::printf("%g %g %d\n", host[0], host[99], kept);
  return cudaDeviceSynchronize();
}

static int met(int rounds) {
  int *flags;
  cudaMalloc(&flags, 2 * sizeof(int));
  cudaMemset(flags, 0, 2 * sizeof(int));
  cudaStream_t first, second;
  stream_of(&first);
  stream_of(&second);
  meet<<<1, 1, 0, first>>>(flags, flags + 1, rounds);
  if (rounds) meet<<<1, 1, 0, second>>>(flags + 1, flags, rounds == 7 ? 3 : rounds);
  int error = cudaDeviceSynchronize();
  int host[2];
  cudaMemcpy(host, flags, sizeof host, cudaMemcpyDeviceToHost);
  std::printf("%d %d\n", host[0], host[1]);
  return error;
}

static int outside() {
  float *to;
  cudaMalloc(&to, 10 * sizeof(float));
  beyond<<<1, 1>>>(to, 10);
  int first = cudaDeviceSynchronize();
  std::printf("%d %d %d %d\n", first, cudaGetLastError(), cudaGetLastError(), cudaMalloc(&to, 4));
  return 0;
}

// Warps draw numbers: who gets which depends on their order.
extern "C" __global__ void draw(int *next, int *drawn) {
  if (threadIdx.x % 32 == 0) drawn[threadIdx.x / 32] = atomicAdd(next, 1);
}

static int drawn() {
  int *memory, host[5];
  cudaMalloc(&memory, sizeof host);
  cudaMemset(memory, 0, sizeof host);
  draw<<<1, 128>>>(memory, memory + 1);
  draw<<<1, 128>>>(memory, memory + 1);
  int error = cudaMemcpy(host, memory, sizeof host, cudaMemcpyDeviceToHost);
  std::printf("%d %d\n", host[0], host[1] + host[2] + host[3] + host[4]);
  return error;
}

// The last thread reads what nothing has written, and uses it or not.
extern "C" __global__ void shifted(int *to, int uses) {
  __shared__ int numbers[40];
  volatile int *all = numbers;
  all[threadIdx.x] = threadIdx.x;
  __syncthreads();
  int next = all[threadIdx.x + 1];
  to[threadIdx.x] += threadIdx.x < 31 || uses ? next : 0;
}

static int unwritten(int uses) {
  int *memory, host[32] = {};
  cudaMalloc(&memory, sizeof host);
  cudaMemset(memory, 0, sizeof host);
  shifted<<<1, 32>>>(memory, uses);
  int error = cudaMemcpy(host, memory, sizeof host, cudaMemcpyDeviceToHost);
  std::printf("%d %d %d\n", host[0], host[30], error);
  return 0;
}

// Copies and fills outside of an allocation; each returns an error, and the next ones work.
static int misused() {
  int *there, *freed, host[32] = {};
  cudaMalloc(&there, 64);
  cudaMalloc(&freed, 64);
  cudaFree(freed);
  int errors[] = {cudaMemcpy(there, host, 68, cudaMemcpyHostToDevice), cudaMemset(there + 15, 0, 8),
                  cudaMemcpy(host, freed, 4, cudaMemcpyDeviceToHost),  cudaMemcpy2D(there, 32, host, 32, 32, 3, cudaMemcpyHostToDevice),
                  cudaMemcpy(host, host + 8, 4, cudaMemcpyDeviceToDevice), cudaMemcpy(there, host, 64, cudaMemcpyHostToDevice),
                  cudaMemcpy2D(there, 32, host, 32, 32, 2, cudaMemcpyHostToDevice), cudaMemset(there, 0, 64)};
  for (int error : errors) std::printf("%d ", error);
  std::printf("\n");
  return 0;
}

extern "C" __global__ void count_up(int *to) { to[threadIdx.x] += 1; }

// What a kernel must not write: freed memory, small or large, whose place a new allocation would take; a constant.
static int forbidden(int which) {
  int *there, *next;
  const size_t bytes = which == 2 ? 4 << 20 : 128;
  cudaMalloc(&there, bytes);
  if (which == 1 || which == 2) {
    cudaFree(there);
    cudaMalloc(&next, bytes);
  }
  float three = 3;
  cudaMemcpyToSymbol(factor, &three, sizeof three);
  if (which == 3) cudaGetSymbolAddress(reinterpret_cast<void **>(&there), factor);
  count_up<<<1, 1>>>(there);
  std::printf("%d\n", cudaDeviceSynchronize());
  return 0;
}

extern "C" __global__ void tell(int number) {
  assert(number != 13);
  if (threadIdx.x == 1) std::printf("[%5d|%-4u|%08x|%lld|%.3f|%g|%c|%s|%%|%hhd]\n", -number, 7u, 0xbeefu, 1ll << 40, 2.5, 1e-9, 'x', "word", 300);
}

static int told(int number) {
  tell<<<1, 2>>>(number);
  std::printf("%d\n", cudaDeviceSynchronize());
  return 0;
}

static int rejected() {
  beyond<<<1, 2000>>>(nullptr, 0);
  int first = cudaPeekAtLastError(), second = cudaGetLastError(), third = cudaGetLastError();
  std::printf("%d %d %d %d\n", first, second, third, cudaSetDevice(1));
  return 0;
}

static int memory() {
  void *one, *other;
  size_t before, after, total;
  cudaMemGetInfo(&before, &total);
  cudaMalloc(&one, 1 << 20);
  cudaMemGetInfo(&after, &total);
  int freed = cudaFree(one), again = cudaFree(one), foreign = cudaFree(&one);
  cudaMallocHost(&other, 16);
  cudaPointerAttributes pinned, plain;
  cudaPointerGetAttributes(&pinned, other);
  cudaPointerGetAttributes(&plain, &other);
  std::printf("%zu %d %d %d %d %d\n", before - after, freed, again, foreign, pinned.type, plain.type);
  return 0;
}

static int events() {
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  cudaEvent_t from, to;
  cudaEventCreate(&from);
  cudaEventCreate(&to);
  cudaEventRecord(from, stream);
  cudaEventRecord(to, stream);
  int synchronized = cudaEventSynchronize(to);
  float milliseconds = -1;
  int elapsed = cudaEventElapsedTime(&milliseconds, from, to);
  std::printf("%d %d %d\n", synchronized, elapsed, milliseconds >= 0);
  return 0;
}

static int facts() {
  cudaDeviceProp device;
  cudaGetDeviceProperties(&device, 0);
  int count, shared;
  cudaGetDeviceCount(&count);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  std::printf("%d %d.%d %s %d\n", count, device.major, device.minor, device.name, shared);
  return 0;
}

int main(int count, char **words) {
  const char *what = count > 1 ? words[1] : "";
  int number = count > 2 ? std::atoi(words[2]) : 0;
  if (!std::strcmp(what, "scaled")) return scaled();
  if (!std::strcmp(what, "met")) return met(number);
  if (!std::strcmp(what, "outside")) return outside();
  if (!std::strcmp(what, "rejected")) return rejected();
  if (!std::strcmp(what, "drawn")) return drawn();
  if (!std::strcmp(what, "unwritten")) return unwritten(number);
  if (!std::strcmp(what, "misused")) return misused();
  if (!std::strcmp(what, "forbidden")) return forbidden(number);
  if (!std::strcmp(what, "told")) return told(number);
  if (!std::strcmp(what, "memory")) return memory();
  if (!std::strcmp(what, "events")) return events();
  if (!std::strcmp(what, "facts")) return facts();
  if (!std::strcmp(what, "unknown")) return cudaDeviceGraphMemTrim(0);
  return 99;
}
