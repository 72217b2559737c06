"""TVM's CUDA source as C++ for the emulator: kernels, shared memory, inline PTX."""

from __future__ import annotations

import re

# How g++ compiles the translation unit, and device.h in advance.
OPTIONS = [
    "-O1",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-w",
    "-fno-strict-aliasing",
    "-ffp-contract=fast",
    "-march=native",
    "-ftrivial-auto-var-init=pattern",  # an uninitialised register shows
    "-fsanitize=alignment,bounds",  # a misaligned vector or an index beyond its array traps
    "-fsanitize-undefined-trap-on-error",
]

# Instructions come as asm statements: "opcode operands;" : outputs : inputs : clobbers.
_ASM = re.compile(r"\b(?:__asm__|asm)(?:\s+(?:__volatile__|volatile))?\s*\(")
_KERNEL = re.compile(
    r'extern "C" __global__ void (?:__\w+\([^)]*\) )*(?P<name>\w+)\((?P<params>[^)]*)\) \{'
)
_HEADERS = re.compile(r"^\s*#include <(?:cuda|mma|cuda_fp16|cuda_bf16)\.h>.*$", re.MULTILINE)


def translate(source: str) -> str:
    """A C++ translation unit that includes device.h and exports `launch_KERNEL` of every kernel."""
    source = source.replace("#define uint unsigned int", "").replace("#define uchar", "//")
    source = _HEADERS.sub("", source.replace("#define ushort", "//"))
    source = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) |alignas\(\d+\) )?(\w+) (\w+)\[\];",
        r"\1* const \2 = (\1*)emulator::dynamic_shared;",
        source,
    )
    source = re.sub(r"__shared__ (alignas\(\d+\)) ", r"\1 __shared__ ", source)
    # A shared address has 32 bits on a GPU, here it is an ordinary pointer.
    source = re.sub(r"unsigned int (\w+) = __cvta_", r"size_t \1 = __cvta_", source)
    source = re.sub(r'"[rl]"\((dst_addr|addr)\)', r'"r"(\1)', source)
    launchers = [_launcher(m["name"], m["params"]) for m in _KERNEL.finditer(source)]
    return '#include "device.h"\n' + _translate_asm(source) + "\n" + "".join(launchers)


def _launcher(name: str, params: str) -> str:
    """A function that calls the kernel with the arguments at the places that `args` lists."""
    types = [re.sub(r"__\w+__|\b\w+$", "", p.strip()) for p in params.split(",") if p.strip()]
    values = ", ".join(f"*({t}*)args[{i}]" for i, t in enumerate(types))
    return f'extern "C" void launch_{name}(void** args) {{ {name}({values}); }}\n'


def _translate_asm(source: str) -> str:
    result, at = "", 0
    for match in _ASM.finditer(source):
        end = _closing(source, match.end())
        result += source[at : match.start()] + _call(source[match.end() : end])
        at = end + 1
    return result + source[at:]


def _call(statement: str) -> str:
    """The function of device.h that does what one asm statement says."""
    template = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', re.split(r"\n?\s*:", statement)[0]))
    template = template.replace("\\n", " ").strip()
    operands = _operands(statement)
    opcode_text, rest = re.fullmatch(r"([\w.]+)\s*(.*?);?\s*", template).groups()
    arguments = [a.strip() for a in re.sub(r"[{}\[\]]", "", rest).split(",") if a.strip()]
    values = [operands[int(a[1:])] if a.startswith("%") else a for a in arguments]
    return f"ptx::{opcode_text.replace('.', '_')}({', '.join(values)})"


def _operands(statement: str) -> list[str]:
    """The expressions that %0, %1, ... stand for."""
    found = []
    for match in re.finditer(r'"[=+]?[rfln]"\s*\(', statement):
        found.append(statement[match.end() : _closing(statement, match.end())])
    return found


def _closing(text: str, at: int) -> int:
    """Where the parenthesis that was opened just before `at` is closed, strings aside."""
    depth, quoted = 1, False
    while depth:
        if text[at] == '"':
            quoted = not quoted
        elif not quoted:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    return at - 1
