"""GPU code inside a shared library, in the form that TVM's loader expects.

A library with kernels carries a table of the modules it imports. TVM writes it only with CUDA
source, or on a machine with a driver; here each module holds machine code, which the driver loads
as it is. Integers have 64 bits, little-endian; a text is its length and its bytes:

    bytes that follow | child ranges of the modules, children | (kind, content) of each module

where the first module is the library itself (kind `_lib`, no content) and the others are its
children; a CUDA module's content is (format, table of its kernels' parameters, code).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm.target import Target

from convtvm.errors import BuildError

_UNSIGNED = struct.Struct("<Q")
SUFFIX = ".gpu"  # of the file beside an object file that holds its kernels


@dataclass(frozen=True)
class DeviceCode:
    """Kernels of one function: the source and the table of their parameters as TVM stores it."""

    source: str
    table: bytes

    @classmethod
    def of(cls, module: tvm.runtime.Module) -> DeviceCode:
        """The kernels that a compiled host module imports. Raises BuildError if there are none."""
        sources = [m.inspect_source("cuda") for m in module.imports if m.kind == "cuda"]
        if len(sources) != 1:
            raise BuildError(f"{len(sources)} modules of GPU code in one function, expected 1")
        blob = tvm.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
        (content,) = _contents(blob)
        front, back = _text(b"cuda"), _text(sources[0].encode())
        if not (content.startswith(front) and content.endswith(back)):
            raise BuildError("this TVM stores CUDA modules in an unknown form, expected 0.27's")
        return cls(sources[0], content[len(front) : -len(back)])

    def packed(self, image: bytes, format_name: str) -> bytes:
        """The module's content with machine code in place of the source."""
        return _text(format_name.encode()) + self.table + _text(image)


def write_beside(path: str | Path, content: bytes) -> None:
    """Keep the content of a CUDA module beside the object file of its host code."""
    Path(f"{path}{SUFFIX}").write_bytes(content)


def read_beside(paths: Sequence[str | Path]) -> list[bytes]:
    """The contents of CUDA modules beside these object files, without those that have none."""
    found = [Path(f"{path}{SUFFIX}") for path in paths]
    return [path.read_bytes() for path in found if path.exists()]


def write_object(contents: Sequence[bytes], path: str | Path, host: Target) -> None:
    """The object file that makes a library of host code import these CUDA modules."""
    count = len(contents)
    ranges = [0] + [count] * (count + 1)  # only the library itself has children
    body = _numbers(ranges) + _numbers(range(1, count + 1)) + _text(b"_lib")
    body += b"".join(_text(b"cuda") + _text(content) for content in contents)
    make = tvm.get_global_func("codegen.codegen_blob")
    is_system_library = False
    make(_u64(len(body)) + body, is_system_library, str(host), "").write_to_file(str(path))


def _contents(blob: bytes) -> Iterator[bytes]:
    """The content of every module of a table but the library itself."""
    at = 8
    for _ in range(2):  # skip the tree
        at += 8 * (1 + _UNSIGNED.unpack_from(blob, at)[0])
    while at < len(blob):
        kind, at = _read_text(blob, at)
        if kind != b"_lib":
            content, at = _read_text(blob, at)
            yield content


def _read_text(blob: bytes, at: int) -> tuple[bytes, int]:
    """The text at a position, and the position after it."""
    end = at + 8 + _UNSIGNED.unpack_from(blob, at)[0]
    return blob[at + 8 : end], end


def _u64(number: int) -> bytes:
    return _UNSIGNED.pack(number)


def _text(text: bytes) -> bytes:
    return _u64(len(text)) + text


def _numbers(numbers: Sequence[int]) -> bytes:
    return _u64(len(numbers)) + b"".join(map(_u64, numbers))
