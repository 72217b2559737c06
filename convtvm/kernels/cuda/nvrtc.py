"""NVRTC and nvFatbin, NVIDIA's run-time compiler as plain shared libraries, by ctypes.

They come with `pip install convtvm[cuda]`, with the CUDA toolkit and with PyTorch; they need no
driver. Kernels need no installed headers; the few that TVM's prelude includes are given here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from convtvm.errors import BuildError
from convtvm.machine import nvidia

_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")
_FATBIN_LIBRARIES = ("libnvfatbin.so.13", "libnvfatbin.so.12")

# TVM's prelude asks for two of libcu++, a package of 60 MB, which the toolkit's cuda_fp16.h and
# cuda_bf16.h need too; these have what our kernels use of them.
_HEADERS = {
    "cuda_fp16.h": """
struct __align__(2) __half {
  unsigned short bits;
  __half() = default;
  __device__ __half(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
};
struct __align__(4) __half2 { __half x, y; };
typedef __half half;
typedef __half2 half2;
static __device__ inline half2 make_half2(half x, half y) { return half2{x, y}; }
static __device__ inline float __half2float(half x) { return x; }
static __device__ inline half __float2half(float x) { return half(x); }
static __device__ inline half __float2half_rn(float x) { return half(x); }
static __device__ inline bool __hgt(half x, half y) { return float(x) > float(y); }
static __device__ inline bool __hlt(half x, half y) { return float(x) < float(y); }
""",
    "cuda_bf16.h": """
struct __align__(2) __nv_bfloat16 {
  unsigned short bits;
  __nv_bfloat16() = default;
  __device__ __nv_bfloat16(float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ operator float() const { return __uint_as_float((unsigned int)bits << 16); }
};
struct __align__(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __device__ __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
static __device__ inline float __bfloat162float(nv_bfloat16 x) { return x; }
static __device__ inline nv_bfloat16 __float2bfloat16(float x) { return nv_bfloat16(x); }
static __device__ inline nv_bfloat16 __float2bfloat16_rn(float x) { return nv_bfloat16(x); }
static __device__ inline bool __hgt(nv_bfloat16 x, nv_bfloat16 y) { return float(x) > float(y); }
static __device__ inline bool __hlt(nv_bfloat16 x, nv_bfloat16 y) { return float(x) < float(y); }
""",
    "cuda/std/cstdint": """
namespace cuda { namespace std {
typedef signed char int8_t; typedef unsigned char uint8_t;
typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t;
typedef long int64_t; typedef unsigned long uint64_t;
}}
""",
    "cuda/std/type_traits": """
namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> inline constexpr bool is_same_v = is_same<A, B>::value;
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool B, class T, class F> struct conditional { typedef T type; };
template <class T, class F> struct conditional<false, T, F> { typedef F type; };
template <class T> struct is_floating_point {
  static constexpr bool value = is_same_v<T, float> || is_same_v<T, double>;
};
template <class T> struct is_integral { static constexpr bool value = T(1) / T(2) == T(0); };
template <class T> struct is_signed { static constexpr bool value = T(-1) < T(0); };
template <class T> struct is_unsigned { static constexpr bool value = !is_signed<T>::value; };
}}
""",
}


def is_available() -> bool:
    return nvidia.load(*_LIBRARIES) is not None


class Nvrtc:
    """Compiles by NVRTC; joins several architectures by nvFatbin."""

    name = "NVRTC"

    @property
    def identity(self) -> str:
        library, major, minor = nvidia.load(*_LIBRARIES), ctypes.c_int(), ctypes.c_int()
        if library is not None:
            library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"NVRTC {major.value}.{minor.value}"

    def __call__(self, source: str, arches: Sequence[str]) -> tuple[bytes, str]:
        compiled = [compile_program(source, _options(arch)) for arch in arches]
        log = "\n".join(text for _, text in compiled)
        if len(arches) == 1:
            return compiled[0][0], log
        return _join(
            [(arch, image) for arch, (image, _) in zip(arches, compiled, strict=True)]
        ), log


def _options(arch: str) -> list[str]:
    return [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", "-default-device"]


def compile_program(
    source: str, options: Sequence[str], result: str = "CUBIN"
) -> tuple[bytes, str]:
    """(CUBIN or PTX of the source, log). Raises BuildError with the first complaint."""
    library = nvidia.load(*_LIBRARIES)
    assert library is not None
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(
        ctypes.byref(program),
        source.encode(),
        b"kernels.cu",
        len(_HEADERS),
        _strings(list(_HEADERS.values())),
        _strings(list(_HEADERS)),
    )
    try:
        failed = library.nvrtcCompileProgram(program, len(options), _strings(options))
        log = _fetch(library, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        if failed:
            lines = [line for line in log.splitlines() if "error" in line] or [log or "no message"]
            raise BuildError(f"NVRTC failed: {lines[0].strip()}")
        return _fetch(library, result, program), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _join(images: Sequence[tuple[str, bytes]]) -> bytes:
    """One fat binary of the cubins of several architectures."""
    library = nvidia.load(*_FATBIN_LIBRARIES)
    if library is None:
        names = ", ".join(arch for arch, _ in images)
        raise BuildError(
            f"one file for {names} needs nvcc or nvFatbin; `pip install convtvm[cuda]`, or name "
            "one architecture"
        )
    handle, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = ["-64", "-host=linux"]
    problem = library.nvFatbinCreate(ctypes.byref(handle), _strings(options), len(options))
    for arch, image in images:
        number = arch.removeprefix("sm_").encode()
        problem = problem or library.nvFatbinAddCubin(
            handle, image, ctypes.c_size_t(len(image)), number, arch.encode()
        )
    problem = problem or library.nvFatbinSize(handle, ctypes.byref(size))
    joined = ctypes.create_string_buffer(size.value)
    problem = problem or library.nvFatbinGet(handle, joined)
    library.nvFatbinDestroy(ctypes.byref(handle))
    if problem:
        raise BuildError(f"nvFatbin failed with status {problem}")
    return joined.raw


def _fetch(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def _strings(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))
