// What the warps of a kernel ask of shared and of global memory, counted while it runs.
#pragma once
#include <cstddef>

namespace emulator {
enum class Kind { kLoad, kStore, kCopy, kMatrices };

// The thread that runs accesses `bytes` at an address, by the instruction at `site`. Ignored unless
// EMULATOR_ACCESSES names a file, and for what is neither shared nor global memory.
void access(const void* site, Kind kind, const void* address, int bytes);
// A kernel begins; all threads of a block have ended; the kernel has.
void begin_kernel();
void end_block();
void end_kernel(const char* name);
}  // namespace emulator

extern "C" void emulator_allocated(const void* begin, size_t bytes);  // of global memory
extern "C" void emulator_freed(const void* begin);
