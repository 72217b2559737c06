// The CUDA run time of the imaginary GPU of driver.cc: libcudart.so.13.
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "accesses.h"

extern "C" {
const char* emulator_problem();
int emulator_status();
int cudaGetDevice(int* device) { return *device = 0, 0; }
int cudaSetDevice(int) { return 0; }
int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  std::map<int, int> known = {{1, 1024},   {2, 1024},     {3, 1024},      {4, 64},
                              {8, 49152},  {10, 32},      {12, 65536},    {13, 1980000},
                              {16, 132},   {38, 1 << 20}, {75, 9},        {76, 0},
                              {97, 232448}};
  return *value = known[attribute], 0;
}
int cudaGetDeviceProperties(void* properties, int) {
  memset(properties, 0, 300);
  *(size_t*)((char*)properties + 288) = 8ull << 30;  // totalGlobalMem
  return 0;
}
int cudaMemGetInfo(size_t* left, size_t* total) { return *left = *total = 8ull << 30, 0; }

// Memory is NaN at first, and what lies behind its end cannot be touched.
static std::map<void*, std::pair<void*, size_t>> allocations;
int cudaMalloc(void** pointer, size_t size) {
  if (emulator_status()) return emulator_status();
  const size_t page = 4096, used = (size + 63) / 64 * 64;
  size_t whole = (used + page - 1) / page * page + page;
  char* base = (char*)mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return 2;
  mprotect(base + whole - page, page, PROT_NONE);
  *pointer = base + whole - page - used;
  memset(*pointer, 0xff, used);
  allocations[*pointer] = {base, whole};
  emulator_allocated(*pointer, used);
  return 0;
}
int cudaFree(void* pointer) {
  auto found = allocations.find(pointer);
  if (found == allocations.end()) return 0;
  munmap(found->second.first, found->second.second);
  emulator_freed(pointer);
  allocations.erase(found);
  return 0;
}
int cudaMallocHost(void** pointer, size_t size) { return posix_memalign(pointer, 256, size); }
int cudaFreeHost(void* pointer) { return free(pointer), 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int, void*) {
  return emulator_status() ? emulator_status() : (memcpy(to, from, size), 0);
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, void*) {
  return memcpy(to, from, size), 0;
}
const char* cudaGetErrorName(int) { return "EMULATOR"; }
const char* cudaGetErrorString(int) { return emulator_problem(); }
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }

using Moment = std::chrono::steady_clock::time_point;
int cudaEventCreate(void** event) { return *event = new Moment, 0; }
int cudaEventDestroy(void* event) { return delete (Moment*)event, 0; }
int cudaEventRecord(void* event, void*) { return *(Moment*)event = std::chrono::steady_clock::now(), 0; }
int cudaEventSynchronize(void*) { return 0; }
int cudaEventElapsedTime(float* milliseconds, void* start, void* end) {
  std::chrono::duration<float, std::milli> passed = *(Moment*)end - *(Moment*)start;
  return *milliseconds = passed.count(), 0;
}

int cudaStreamCreate(void** stream) { return *stream = nullptr, 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return *stream = nullptr, 0; }
int cudaStreamDestroy(void*) { return 0; }
int cudaStreamSynchronize(void*) { return emulator_status(); }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaStreamBeginCapture(void*, int) { return 801; }
int cudaStreamEndCapture(void*, void**) { return 801; }
int cudaGraphDestroy(void*) { return 0; }
int cudaGraphExecDestroy(void*) { return 0; }
int cudaGraphInstantiate() { return 801; }
int cudaGraphLaunch() { return 801; }
}
