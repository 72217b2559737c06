// What a translated CUDA kernel sees: the language extensions that TVM's code uses, on a CPU.
//
// Every CUDA thread of a block is a fiber of the launcher in driver.cc. A fiber runs until it waits:
// for its block (__syncthreads) or for its warp (shuffles, matrix instructions).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
// Shared memory of a block: one section, which the launcher fills with NaN before each block.
#define __shared__ static __attribute__((section("block_shared")))
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

// ---- vectors -----------------------------------------------------------------------------------
#define VECTORS(T, name)                                                           \
  struct alignas(sizeof(T) * 2) name##2 { T x, y; };                               \
  struct alignas(sizeof(T) * 4 > 16 ? 16 : sizeof(T) * 4) name##4 { T x, y, z, w; }; \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(uint, uint)
VECTORS(ushort, ushort)
VECTORS(signed char, char)
#undef VECTORS

// ---- the launcher ------------------------------------------------------------------------------
namespace emulator {
extern char dynamic_shared[];
extern int thread;  // number of the running fiber in its block
void wait_block();
void wait_warp();
void fail(const char* reason);  // ends the launch with this error
void cp_async(void* to, const void* from, int bytes, int given);
void cp_async_commit();
void cp_async_wait(int pending);
void load_matrices(uint* out[4], size_t row, bool transposed);

struct alignas(8) Slot {
  unsigned char bytes[64];
  template <class T>
  T get(int i = 0) const {
    T value;
    memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    return value;
  }
};
// Hands `value` to the other lanes of the warp; returns their slots, valid until release().
const Slot* publish(const void* value, int bytes);
inline void release() { wait_warp(); }
inline int lane() { return thread & 31; }
}  // namespace emulator

static inline void __syncthreads() { emulator::wait_block(); }
static inline void __syncwarp(unsigned = ~0u) { emulator::wait_warp(); }
static inline unsigned __activemask() { return ~0u; }

template <class T>
static inline T shuffle(T value, int source) {
  const emulator::Slot* slots = emulator::publish(&value, sizeof(T));
  T result = slots[source].get<T>();
  emulator::release();
  return result;
}
template <class T>
static inline T __shfl_sync(unsigned, T value, int source, int width = 32) {
  return shuffle(value, (emulator::lane() & ~(width - 1)) + (source & (width - 1)));
}
template <class T>
static inline T __shfl_down_sync(unsigned, T value, int delta, int width = 32) {
  int lane = emulator::lane();
  return shuffle(value, (lane & (width - 1)) + delta < width ? lane + delta : lane);
}
template <class T>
static inline T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return shuffle(value, emulator::lane() ^ mask);
}

// ---- arithmetic --------------------------------------------------------------------------------
using std::max;
using std::min;
#define __fdividef(a, b) ((a) / (b))
static inline float __uint_as_float(uint x) { float y; memcpy(&y, &x, 4); return y; }
static inline uint __float_as_uint(float x) { uint y; memcpy(&y, &x, 4); return y; }
template <class T>
static inline T __ldg(const T* pointer) { return *pointer; }
static inline size_t __cvta_generic_to_shared(const void* pointer) { return (size_t)pointer; }

typedef _Float16 half, __half;
static inline float __half2float(half x) { return (float)x; }
static inline half __float2half(float x) { return (half)x; }
static inline half __float2half_rn(float x) { return (half)x; }
struct alignas(4) half2 { half x, y; };
typedef half2 __half2;
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline bool __hgt(half x, half y) { return x > y; }
static inline bool __hlt(half x, half y) { return x < y; }

// The upper half of a float, rounded to the nearest, to even if halfway.
struct alignas(2) nv_bfloat16 {
  ushort bits;
  nv_bfloat16() = default;
  nv_bfloat16(float x) {
    uint word = __float_as_uint(x);
    bits = x == x ? (word + 0x7fff + (word >> 16 & 1)) >> 16 : 0x7fff;
  }
  operator float() const { return __uint_as_float((uint)bits << 16); }
};
struct alignas(4) nv_bfloat162 {
  nv_bfloat16 x, y;
  nv_bfloat162() = default;
  nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) : x(x), y(y) {}
};
static inline float __bfloat162float(nv_bfloat16 x) { return x; }
static inline nv_bfloat16 __float2bfloat16(float x) { return x; }
static inline nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
static inline bool __hgt(nv_bfloat16 x, nv_bfloat16 y) { return (float)x > (float)y; }
static inline bool __hlt(nv_bfloat16 x, nv_bfloat16 y) { return (float)x < (float)y; }

// ---- PTX: an instruction's dots become underscores, its operands arguments ------------------------
namespace ptx {
// An instruction that accesses memory is known by the place that it returns to.
#define INSTRUCTION static inline __attribute__((always_inline))
static inline void cp_async_commit_group() { emulator::cp_async_commit(); }
static inline void cp_async_wait_group(int pending) { emulator::cp_async_wait(pending); }
static inline void cp_async_wait_all() { emulator::cp_async_commit(), emulator::cp_async_wait(0); }
INSTRUCTION void cp_async_ca_shared_global(
    size_t to, const void* from, int bytes, int given = -1) {
  emulator::cp_async((void*)to, from, bytes, given < 0 ? bytes : given);
}
INSTRUCTION void cp_async_cg_shared_global(
    size_t to, const void* from, int bytes, int given = -1) {
  if (bytes != 16) emulator::fail("cp.async.cg copies 16 bytes only");
  cp_async_ca_shared_global(to, from, bytes, given);
}

INSTRUCTION void ldmatrix_sync_aligned_m8n8_x4_shared_b16(
    uint& a, uint& b, uint& c, uint& d, size_t row) {
  uint* out[4] = {&a, &b, &c, &d};
  emulator::load_matrices(out, row, false);
}
INSTRUCTION void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(
    uint& a, uint& b, uint& c, uint& d, size_t row) {
  uint* out[4] = {&a, &b, &c, &d};
  emulator::load_matrices(out, row, true);
}

// D = A B + C with A 16x16, B 16x8 (PTX ISA, "Matrix fragments for mma.m16n8k16").
template <class T>
static inline void multiply_add_halves(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0,
    uint b1, float c0, float c1, float c2, float c3) {
  uint fragment[6] = {a0, a1, a2, a3, b0, b1};
  const emulator::Slot* lanes = emulator::publish(fragment, sizeof fragment);
  int group = emulator::lane() / 4, member = emulator::lane() % 4;
  float sums[4] = {c0, c1, c2, c3};
  for (int i = 0; i < 4; i++) {
    int row = group + 8 * (i / 2), col = 2 * member + i % 2;
    for (int k = 0; k < 16; k++) {
      int within = k % 8;  // each register holds the two elements 2m, 2m+1 of its lane's member m
      const emulator::Slot &a = lanes[row % 8 * 4 + within / 2], &b = lanes[col * 4 + within / 2];
      T x = a.get<T>(2 * (row / 8 + 2 * (k / 8)) + k % 2);
      T y = b.get<T>(2 * (4 + k / 8) + k % 2);
      sums[i] += (float)x * (float)y;
    }
  }
  emulator::release();
  d0 = sums[0], d1 = sums[1], d2 = sums[2], d3 = sums[3];
}
static inline void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0,
    uint b1, float c0, float c1, float c2, float c3) {
  multiply_add_halves<half>(d0, d1, d2, d3, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3);
}
static inline void mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0,
    uint b1, float c0, float c1, float c2, float c3) {
  multiply_add_halves<nv_bfloat16>(d0, d1, d2, d3, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3);
}

// To the nearest TF32, away from zero if halfway.
static inline void cvt_rna_tf32_f32(uint& to, float from) {
  memcpy(&to, &from, 4);
  if (from == from) to = (to + 0x1000) & 0xffffe000u;
}

// The same with A 16x8, B 8x8 in TF32: the lower 13 bits of a float do not count.
static inline void mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0,
    uint b1, float c0, float c1, float c2, float c3) {
  uint fragment[6] = {a0, a1, a2, a3, b0, b1};
  for (uint& x : fragment) x &= 0xffffe000u;
  const emulator::Slot* lanes = emulator::publish(fragment, sizeof fragment);
  int group = emulator::lane() / 4, member = emulator::lane() % 4;
  float sums[4] = {c0, c1, c2, c3};
  for (int i = 0; i < 4; i++) {
    int row = group + 8 * (i / 2), col = 2 * member + i % 2;
    for (int k = 0; k < 8; k++) {
      float x = lanes[row % 8 * 4 + k % 4].get<float>(row / 8 + 2 * (k / 4));
      sums[i] += x * lanes[col * 4 + k % 4].get<float>(4 + k / 4);
    }
  }
  emulator::release();
  d0 = sums[0], d1 = sums[1], d2 = sums[2], d3 = sums[3];
}
}  // namespace ptx

// ---- the image ---------------------------------------------------------------------------------
extern "C" {
extern char __start_block_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_block_shared[] __attribute__((weak, visibility("hidden")));
// Where the static shared memory of this image begins and ends.
char** shared_bounds() {
  static char* bounds[2] = {__start_block_shared, __stop_block_shared};
  return bounds;
}
}
