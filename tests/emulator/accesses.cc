// Counts what the warps of a kernel ask of memory: a part of libcuda.so.1.
//
// With EMULATOR_ACCESSES the image is compiled to tell of every load and store (g++'s hooks for a
// race detector); copies and matrix loads tell of themselves. The n-th access of a thread at a site
// is that of its warp, whose lanes so come together again. A kernel's end appends to the file that
// EMULATOR_ACCESSES names a line for each site:
//
//     kernel  space  kind  bytes of a lane  requests  cost  least  worst
//
// Shared memory has 32 banks of 4 bytes. A request takes 32 lanes of up to 4 bytes at once, 16 of 8
// or 8 of 16 (a matrix: its 8 rows of 16 bytes), and as many turns as the busiest bank has words.
// `cost` are the turns of all requests, `least` those without conflicts, `worst` the most for lanes
// that are served at once. Of global memory the cost are sectors of 32 bytes: those touched, those
// that would do, and the most of a request.
#include "accesses.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace emulator {
extern int thread;
bool is_shared(const void* address);  // memory of the running block

namespace {
constexpr int kLanes = 32, kBanks = 32, kWord = 4, kSector = 32, kWidest = 16;

struct Part {
  uintptr_t address;
  int bytes;  // 0: the lane takes no part
};
using Request = std::array<Part, kLanes>;
using Place = std::tuple<const void*, Kind, bool>;  // site, kind, whether memory is shared
struct Cost {
  long total, least, worst;
};
struct Totals {
  int bytes = 0;
  long requests = 0;
  Cost cost{};
};

std::map<std::tuple<Place, int, long>, Request> requests;  // of a block, by place, warp and number
std::map<std::pair<Place, int>, long> numbers;             // accesses of a thread at a place
std::map<Place, Totals> totals;                            // of a kernel
std::map<uintptr_t, size_t> allocated;
bool counting;

bool is_global(uintptr_t address) {
  auto after = allocated.upper_bound(address);
  if (after == allocated.begin()) return false;
  --after;
  return address < after->first + after->second;
}

// The units of `size` bytes that some lanes touch.
std::set<uintptr_t> touched(const Request& request, int first, int last, int size) {
  std::set<uintptr_t> units;
  for (int lane = first; lane < last; lane++) {
    const Part& part = request[lane];
    for (uintptr_t unit = part.address / size; unit * size < part.address + part.bytes; unit++)
      units.insert(unit);
  }
  return units;
}

Cost shared_cost(const Request& request, int bytes) {
  int at_once = kLanes * kWord / std::max(bytes, kWord);
  Cost cost{};
  for (int first = 0; first < kLanes; first += at_once) {
    long banks[kBanks] = {}, turns = 0;
    for (uintptr_t word : touched(request, first, first + at_once, kWord))
      turns = std::max(turns, ++banks[word % kBanks]);
    cost.total += turns, cost.least += turns > 0, cost.worst = std::max(cost.worst, turns);
  }
  return cost;
}

Cost global_cost(const Request& request) {
  long sectors = touched(request, 0, kLanes, kSector).size();
  long bytes = touched(request, 0, kLanes, 1).size();
  return {sectors, (bytes + kSector - 1) / kSector, sectors};
}
}  // namespace

void access(const void* site, Kind kind, const void* address, int bytes) {
  if (!counting || bytes <= 0) return;
  uintptr_t begin = (uintptr_t)address;
  bool shared = is_shared(address);
  if (!shared && !is_global(begin)) return;
  for (int done = 0; done < bytes; done += kWidest) {  // wider than an instruction: several
    Place place{site, kind, shared};
    long number = numbers[{place, thread}]++;
    Request& request = requests[{place, thread / kLanes, number}];
    request[thread % kLanes] = {begin + done, std::min(bytes - done, kWidest)};
  }
}

void begin_kernel() {
  counting = getenv("EMULATOR_ACCESSES");
  requests.clear(), numbers.clear(), totals.clear();
}

void end_block() {
  for (const auto& [key, request] : requests) {
    const Place& place = std::get<0>(key);
    Totals& sum = totals[place];
    int bytes = 0;
    for (const Part& part : request) bytes = std::max(bytes, part.bytes);
    Cost cost = std::get<2>(place) ? shared_cost(request, bytes) : global_cost(request);
    sum.bytes = std::max(sum.bytes, bytes), sum.requests++;
    sum.cost.total += cost.total, sum.cost.least += cost.least;
    sum.cost.worst = std::max(sum.cost.worst, cost.worst);
  }
  requests.clear(), numbers.clear();
}

void end_kernel(const char* name) {
  static const char* kinds[] = {"load", "store", "copy", "matrices"};
  const char* path = getenv("EMULATOR_ACCESSES");
  FILE* file = path && !totals.empty() ? fopen(path, "a") : nullptr;
  for (const auto& [place, sum] : totals) {
    if (!file) break;
    const char* space = std::get<2>(place) ? "shared" : "global";
    fprintf(file, "%s\t%s\t%s\t%d\t%ld\t%ld\t%ld\t%ld\n", name, space,
            kinds[(int)std::get<1>(place)], sum.bytes, sum.requests, sum.cost.total,
            sum.cost.least, sum.cost.worst);
  }
  if (file) fclose(file);
}
}  // namespace emulator

void emulator_allocated(const void* begin, size_t bytes) {
  emulator::allocated[(uintptr_t)begin] = bytes;
}
void emulator_freed(const void* begin) { emulator::allocated.erase((uintptr_t)begin); }

// What g++ calls for -fsanitize=thread.
using emulator::Kind;
#define ACCESS(name, kind, bytes)                                              \
  extern "C" void __tsan_##name(void* address) {                               \
    emulator::access(__builtin_return_address(0), Kind::kind, address, bytes); \
  }
#define ACCESSES(bytes)                           \
  ACCESS(read##bytes, kLoad, bytes)               \
  ACCESS(write##bytes, kStore, bytes)             \
  ACCESS(unaligned_read##bytes, kLoad, bytes)     \
  ACCESS(unaligned_write##bytes, kStore, bytes)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
extern "C" {
void __tsan_read_range(void* address, size_t bytes) {
  emulator::access(__builtin_return_address(0), Kind::kLoad, address, bytes);
}
void __tsan_write_range(void* address, size_t bytes) {
  emulator::access(__builtin_return_address(0), Kind::kStore, address, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
