// A CUDA driver for one imaginary GPU whose kernels run on the CPU, one block after another, every
// thread a fiber: libcuda.so.1, with accesses.cc. The run time is in runtime.cc.
//
// EMULATOR_ORDER = forward, reverse or random (a fixed seed): the order in which the threads of a
// block, and the blocks of a grid, take turns. A right kernel gives the same answer in each of them.
#include "accesses.h"

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  unsigned count() const { return x * y * z; }
  dim3 at(unsigned i) const { return {i % x, i / x % y, i / (x * y)}; }
};

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
constexpr int kMaxThreads = 1024, kStack = 256 << 10, kShared = 227 << 10;
alignas(1024) char dynamic_shared[kShared];
int thread;
std::string problem;

enum class Wait { kNothing, kBlock, kWarp };
struct Copy {
  void* to;
  const void* from;
  int bytes, given;
};
struct Fiber {
  ucontext_t context;
  bool done;
  Wait wait;
  std::vector<Copy> pending;              // not committed
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
};
struct alignas(8) Slot {
  unsigned char bytes[64];
};

static Fiber fibers[kMaxThreads];
static Slot slots[kMaxThreads];
static ucontext_t launcher;
static void (*kernel)(void**);
static void** arguments;
static int broken;  // the status of everything after a launch that failed, as on a real device

static void suspend(Wait reason) {
  fibers[thread].wait = reason;
  swapcontext(&fibers[thread].context, &launcher);
}
void wait_block() { suspend(Wait::kBlock); }
void wait_warp() { suspend(Wait::kWarp); }
void fail(const char* reason) {
  problem = reason;
  fibers[thread].done = true;
  swapcontext(&fibers[thread].context, &launcher);
}

const Slot* publish(const void* value, int bytes) {
  memcpy(slots[thread].bytes, value, bytes);
  wait_warp();
  return slots + thread / 32 * 32;
}

// A copy lands when its thread waits for it, and not before; until then its target is NaN. Of its
// bytes as many are read as are given, the others are zero.
void cp_async(void* to, const void* from, int bytes, int given) {
  const void* site = __builtin_return_address(0);
  access(site, Kind::kCopy, to, bytes), access(site, Kind::kCopy, from, given);
  if (given != 0 && given != bytes) fail("cp.async: a part of a vector is given");
  if ((size_t)to % bytes || (size_t)from % bytes) fail("cp.async: an address is not aligned");
  memset(to, 0xff, bytes);
  fibers[thread].pending.push_back({to, from, bytes, given});
}
void cp_async_commit() {
  fibers[thread].groups.push_back(std::move(fibers[thread].pending));
  fibers[thread].pending.clear();
}
void cp_async_wait(int left) {
  auto& groups = fibers[thread].groups;
  while ((int)groups.size() > left) {
    for (const Copy& c : groups.front()) {
      memcpy(c.to, c.from, c.given);
      memset((char*)c.to + c.given, 0, c.bytes - c.given);
    }
    groups.erase(groups.begin());
  }
}

// Four 8x8 matrices of 16 bits; lane 8i+r gives the address of row r of matrix i, lane l receives
// elements 2(l%4), 2(l%4)+1 of row l/4 (PTX ISA, "ldmatrix").
void load_matrices(unsigned* out[4], size_t row, bool transposed) {
  access(__builtin_return_address(0), Kind::kMatrices, (void*)row, 16);
  if (row % 16) fail("ldmatrix: a row is not aligned to 16 bytes");
  const Slot* rows = publish(&row, sizeof row);
  int lane = thread % 32;
  for (int i = 0; i < 4; i++) {
    unsigned short pair[2];
    for (int e = 0; e < 2; e++) {
      int r = lane / 4, c = 2 * (lane % 4) + e;
      if (transposed) std::swap(r, c);
      const unsigned short* from;
      memcpy(&from, rows[8 * i + r].bytes, sizeof from);
      pair[e] = from[c];
    }
    memcpy(out[i], pair, 4);
  }
  wait_warp();
}

static void run_fiber() {
  kernel(arguments);
  bool left = !fibers[thread].pending.empty();
  for (const auto& group : fibers[thread].groups) left |= !group.empty();
  if (left) problem = "a thread ended before its asynchronous copies";
  fibers[thread].done = true;
  swapcontext(&fibers[thread].context, &launcher);
}

static void start_block(int count) {
  static char* stacks = (char*)mmap(nullptr, (size_t)kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  memset(dynamic_shared, 0xff, sizeof dynamic_shared);
  for (int i = 0; i < count; i++) {
    Fiber& f = fibers[i];
    f.done = false, f.wait = Wait::kNothing;
    f.pending.clear(), f.groups.clear();
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + (size_t)kStack * i;
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
}

// The first thread of a warp that can go on, -1 if there is none. Warps take turns only where they
// have to wait, so that they drift apart as far as barriers let them: in step they would need none.
static int next_warp(int count, std::mt19937* random) {
  std::vector<int> ready;
  for (int first = 0; first < count; first += 32) {
    int alive = 0, waiting = 0, runnable = 0;
    for (int i = first; i < std::min(count, first + 32); i++) {
      alive += !fibers[i].done;
      waiting += !fibers[i].done && fibers[i].wait == Wait::kWarp;
      runnable += !fibers[i].done && fibers[i].wait == Wait::kNothing;
    }
    if (runnable || (waiting && waiting == alive)) ready.push_back(first);
  }
  if (ready.empty()) return -1;
  return ready[random ? (*random)() % ready.size() : 0];
}

// Lets the complete block go on.
static bool release_block(int count) {
  int waiting = std::count_if(fibers, fibers + count, [](const Fiber& f) {
    return !f.done && f.wait == Wait::kBlock;
  });
  if (waiting != count) {
    problem = "__syncthreads(): " + std::to_string(waiting) + " of " + std::to_string(count) +
              " threads came";
    return false;
  }
  for (int i = 0; i < count; i++) fibers[i].wait = Wait::kNothing;
  return true;
}

static void run_block(std::vector<int>& order, std::mt19937* random) {
  int count = blockDim.count(), left = count;
  start_block(count);
  while (left) {
    int first = next_warp(count, random);
    if (first < 0) {
      if (!release_block(count)) return;
      continue;
    }
    int last = std::min(count, first + 32), runnable = 0;
    for (int i = first; i < last; i++) runnable += !fibers[i].done && fibers[i].wait == Wait::kNothing;
    for (int i = first; i < last && !runnable; i++) fibers[i].wait = Wait::kNothing;
    if (random) std::shuffle(order.begin(), order.end(), *random);
    for (int i : order) {
      if (i < first || i >= last || fibers[i].done || fibers[i].wait != Wait::kNothing) continue;
      thread = i, threadIdx = blockDim.at(i);
      swapcontext(&launcher, &fibers[i].context);
      if (!problem.empty()) return;
      left -= fibers[i].done;
    }
  }
}

static std::vector<int> numbers(int count, const std::string& order, std::mt19937& random) {
  std::vector<int> result(count);
  std::iota(result.begin(), result.end(), 0);
  if (order == "reverse") std::reverse(result.begin(), result.end());
  if (order == "random") std::shuffle(result.begin(), result.end(), random);
  return result;
}

struct Image {
  void* library;
  char *shared_begin, *shared_end;  // static shared memory of its kernels
};
struct Function {
  Image* image;
  void (*launch)(void**);
  std::string name;
};
static Image* running;  // whose kernel runs

bool is_shared(const void* address) {
  const char* at = (const char*)address;
  bool dynamic = at >= dynamic_shared && at < dynamic_shared + kShared;
  return dynamic || (at >= running->shared_begin && at < running->shared_end);
}

// The status of the launch, as the driver would give it.
static int launch(const Function& f, void** args, dim3 grid, dim3 block, size_t shared) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  const int kInvalidValue = 1, kLaunchFailed = 719;
  if (broken) return broken;
  problem.clear();
  if (block.count() < 1 || block.count() > kMaxThreads || shared > kShared) {
    problem = "a block of " + std::to_string(block.count()) + " threads, " +
              std::to_string(shared) + " bytes of shared memory";
    return kInvalidValue;
  }
  const char* variable = getenv("EMULATOR_ORDER");
  std::string order = variable ? variable : "random";
  std::mt19937 random(1);
  kernel = f.launch, arguments = args, gridDim = grid, blockDim = block, running = f.image;
  begin_kernel();
  std::vector<int> threads = numbers(block.count(), order, random);
  for (int i : numbers(grid.count(), order, random)) {
    blockIdx = grid.at(i);
    if (f.image->shared_end > f.image->shared_begin)
      memset(f.image->shared_begin, 0xff, f.image->shared_end - f.image->shared_begin);
    run_block(threads, order == "random" ? &random : nullptr);
    if (!problem.empty()) return broken = kLaunchFailed;
    end_block();
  }
  end_kernel(f.name.c_str());
  return 0;
}

// Bytes of the image, which is an ELF file for this machine; 0 for anything else.
static size_t image_size(const void* data) {
  const Elf64_Ehdr* header = (const Elf64_Ehdr*)data;
  const Elf64_Half gpu = 190;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_machine == gpu) return 0;
  return header->e_shoff + (size_t)header->e_shentsize * header->e_shnum;
}
}  // namespace emulator

// ---- libcuda ---------------------------------------------------------------------------------------
using namespace emulator;

struct LaunchConfig {
  dim3 grid, block;
  unsigned shared;
  void* stream;
  void* attributes;
  unsigned count;
};

extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGetName(char* name, int size, int) {
  return snprintf(name, size, "emulated GPU"), 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  std::map<int, int> known = {{16, 132}, {38, 1 << 20}, {75, 9}, {76, 0}};
  return *value = known[attribute], 0;
}
int cuGetErrorName(int, const char** text) { return *text = problem.c_str(), 0; }
int cuGetErrorString(int, const char** text) { return *text = problem.c_str(), 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuTensorMapEncodeTiled() { return 801; }

int cuModuleLoadData(void** module, const void* data) {
  size_t size = image_size(data);
  if (!size) return problem = "the image is not for the emulator", 200;
  int file = memfd_create("image", 0);
  if (write(file, data, size) != (ssize_t)size) return problem = "no memory", 2;
  void* library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW);
  if (!library) return problem = dlerror(), 200;
  auto* image = new Image{library, nullptr, nullptr};
  if (auto* bounds = (char** (*)())dlsym(library, "shared_bounds"))
    image->shared_begin = bounds()[0], image->shared_end = bounds()[1];
  *module = image;
  return 0;
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  auto* image = (Image*)module;
  void* symbol = dlsym(image->library, (std::string("launch_") + name).c_str());
  if (!symbol) return problem = std::string("no kernel ") + name, 500;
  *function = new Function{image, (void (*)(void**))symbol, name};
  return 0;
}
int cuLaunchKernelEx(const LaunchConfig* c, void* function, void** args, void**) {
  return launch(*(Function*)function, args, c->grid, c->block, c->shared);
}
const char* emulator_problem() { return problem.c_str(); }
int emulator_status() { return broken; }
int cuCtxSynchronize() { return broken; }

int cuCtxGetCurrent(void** context) { return *context = &problem, 0; }

// EMULATOR_MEMORY: bytes of a device that has little.
static size_t memory() {
  const char* bytes = getenv("EMULATOR_MEMORY");
  return bytes ? strtoull(bytes, nullptr, 10) : 64 << 20;
}
int cuMemGetInfo_v2(size_t* left, size_t* total) { return *left = *total = memory(), 0; }
int cuMemAlloc_v2(void** pointer, size_t size) {
  const int kOutOfMemory = 2;
  if (size > memory() || posix_memalign(pointer, 256, size)) return kOutOfMemory;
  return emulator_allocated(*pointer, size), 0;
}

// The device's clock. EMULATOR_CLOCK: one that only work moves, whatever else keeps the CPU busy:
// memsets, which then do nothing, of so many bytes a second, and what tests call work.
using Nanoseconds = std::chrono::nanoseconds;
static Nanoseconds worked{0};
static Nanoseconds now() {
  if (getenv("EMULATOR_CLOCK")) return worked;
  return std::chrono::duration_cast<Nanoseconds>(std::chrono::steady_clock::now().time_since_epoch());
}
void emulator_work(double seconds) { worked += Nanoseconds((long)(1e9 * seconds)); }
double emulator_now() { return 1e-9 * now().count(); }

int cuMemsetD8Async(void* to, unsigned char value, size_t size, void*) {
  if (const char* speed = getenv("EMULATOR_CLOCK"))
    return emulator_work(size / strtod(speed, nullptr)), 0;
  return memset(to, value, size), 0;
}

// All work is done when a call returns; but an event is not ready before somebody has waited for the
// stream, as on a device that has much to do. EMULATOR_IDLE: on one that has nothing to do.
struct Event {
  Nanoseconds moment;
  long waits;
};
static long waits;
int cuStreamSynchronize(void*) { return waits++, 0; }
int cuEventCreate(void** event, unsigned) { return *event = new Event, 0; }
int cuEventRecord(void* event, void*) {
  *(Event*)event = {now(), waits};
  return 0;
}
int cuEventQuery(void* event) {
  return ((Event*)event)->waits < waits || getenv("EMULATOR_IDLE") ? 0 : 600;
}
int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  if (cuEventQuery(start) || cuEventQuery(end)) return problem = "an event is not ready", 600;
  std::chrono::duration<float, std::milli> passed = ((Event*)end)->moment - ((Event*)start)->moment;
  return *milliseconds = passed.count(), 0;
}
}
