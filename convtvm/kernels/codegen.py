"""Compiling: machine code of a lowered function, workspace accounting, linking.

Tuning and export use the same pipeline, so what was measured is what is shipped.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Var
from tvm.s_tir import pipeline as s_tir_pipeline
from tvm.target import Target
from tvm.tirx import For, ForKind
from tvm.tirx.buffer import is_buffer_var
from tvm.tirx.build import tir_to_runtime
from tvm.tirx.stmt import AllocBuffer

from convtvm.errors import BuildError, blames_environment
from convtvm.kernels import launcher
from convtvm.kernels.cuda import device_code
from convtvm.kernels.lowering import lower
from convtvm.kernels.workspace import STACK_BYTES
from convtvm.machine.targets import CompileTarget


@dataclass(frozen=True)
class Built:
    """Machine code of one function: host code, and for a GPU the content of its CUDA module.

    `workspace` counts bytes of scratch memory, `spills` bytes of registers that a GPU's threads
    would have to keep in memory.
    """

    module: tvm.runtime.Module
    workspace: int
    device: bytes = b""
    spills: int = 0

    def write(self, path: str | Path) -> None:
        """Write the object file; `link_objects` finds the code for the GPU beside it."""
        write_object(self.module, path)
        if self.device:
            device_code.write_beside(path, self.device)


def build(func: tirx.PrimFunc, symbol: str, target: CompileTarget) -> Built:
    """Machine code for the CPU of `target`, for a GPU that of its host, exported as `symbol`."""
    lowered = lower(merge({symbol: func}), target.host)
    return Built(compile_lowered(lowered, target.host), workspace_bytes(lowered, target.threads))


def accept_unaligned(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with parameters that need only their dtype's alignment.

    TVM assumes 64 bytes and emits aligned moves, which fault on an ordinary numpy array.
    """
    params = {}
    for param in filter(is_buffer_var, func.params):
        t = param.ty
        size = tvm.DataType(str(t.dtype)).bits // 8
        params[param] = tirx.decl_buffer(
            t.shape, t.dtype, param.name, None, t.strides, t.elem_offset, param.scope(), size
        )

    def on_var(var: Var) -> Var:
        return params.get(var, var) if is_buffer_var(var) else var

    return tvm_ffi.structural_map(func, [(Var, on_var)], order="post")


def compile_lowered(lowered: tvm.IRModule, target: Target) -> tvm.runtime.Module:
    """Machine code for the result of `lower`, for a CPU: with parallel loops where the target has
    several cores (`num-cores`), else without any, so that it needs no threads of a run time."""
    if int(target.attrs.get("num-cores", 1)) == 1:
        lowered = _serial(lowered)
    finished = s_tir_pipeline.finalize_host_passes()(_keep_tiles_on_stack(lowered))
    return tir_to_runtime(finished, {}, target)


def workspace_bytes(lowered: tvm.IRModule, threads: int) -> int:
    """Bytes that the functions of the result of `lower` allocate while they run on `threads`
    threads.

    A parallel loop allocates once per thread; consecutive parallel loops reuse the same memory.
    """
    inside: list[int] = []

    def on_for(loop: For) -> None:
        if loop.kind == ForKind.PARALLEL:
            inside.append(_allocated(loop))

    tvm_ffi.structural_walk(lowered, (For, on_for), order="pre")
    shared = _allocated(lowered) - sum(inside)
    return shared + threads * max(inside, default=0)


def write_object(module: tvm.runtime.Module, path: str | Path) -> None:
    """Write the object file of a compiled module."""
    module.write_to_file(str(path))


def linker(triple: str) -> str:
    """The linker for machines of this triple, this one without. Raises BuildError without one."""
    machine = triple.split("-")[0] or platform.machine()
    names = ["ld"] if machine == platform.machine() else [f"{machine}-linux-gnu-ld", "ld.lld"]
    for name in names:
        if shutil.which(name):
            return name
    package = "binutils" if names == ["ld"] else f"binutils-{machine.replace('_', '-')}-linux-gnu"
    raise BuildError(f"no linker for {machine}: {' or '.join(names)} not found; install {package}")


def launcher_of(target: CompileTarget) -> bytes:
    """The object file that runs the parallel loops of `target`; compiled by the first call."""
    return launcher.object_code(target.spec["mtriple"], target.threads)


def link_objects(objects: Sequence[str | Path], path: str | Path, target: CompileTarget) -> None:
    """Link object files, and the code for a GPU beside them, to the shared library `path`; for
    several threads with the launcher of their parallel loops.

    Raises BuildError with the first complaint.
    """
    contents = device_code.read_beside(objects)
    if contents:
        objects = [*objects, f"{path}.imports.o"]
        device_code.write_object(contents, objects[-1], target.host)
    if target.threads > 1:
        objects = [*objects, f"{path}.launcher.o"]
        Path(objects[-1]).write_bytes(launcher_of(target))
    program = linker(target.spec.get("mtriple", ""))
    command = [program, "-shared", "-o", str(path), *map(str, objects)]
    english = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=english)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        first = next(filter(blames_environment, said), said[0] if said else "no message")
        raise BuildError(f"{program} failed: {first}")


def merge(functions: Mapping[str, tirx.PrimFunc]) -> tvm.IRModule:
    """One module of several functions, each exported under its name here."""
    return tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})


def _allocated(node: object) -> int:
    total = 0

    def on_alloc(stmt: AllocBuffer) -> None:
        nonlocal total
        size = constant_bytes(stmt.buffer)
        if size is not None and size > STACK_BYTES:
            total += size

    tvm_ffi.structural_walk(node, (AllocBuffer, on_alloc), order="pre")
    return total


def constant_bytes(buffer: Var) -> int | None:
    """Bytes of a buffer, None if its extents are not constant."""
    elements = 1
    for extent in buffer.shape:
        if not isinstance(extent, tirx.IntImm):
            return None
        elements *= int(extent)
    dtype = tvm.DataType(str(buffer.dtype))
    return elements * ((dtype.bits * dtype.lanes + 7) // 8)


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.Serial")
def _serial(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    def on_for(loop: For) -> For:
        if loop.kind != ForKind.PARALLEL:
            return loop
        return For(loop.loop_var, loop.min, loop.extent, ForKind.SERIAL, loop.body)

    return tvm_ffi.structural_map(func, [(For, on_for)], order="post")


@tirx.transform.prim_func_pass(opt_level=0, name="convtvm.KeepTilesOnStack")
def _keep_tiles_on_stack(func: tirx.PrimFunc, _mod: object, _ctx: object) -> tirx.PrimFunc:
    # Above its own limit of 1024 bytes TVM calls the workspace allocator, and LLVM promotes a
    # register tile only if LICM manages it; an alloca always.
    def on_alloc(stmt: AllocBuffer) -> AllocBuffer:
        size = constant_bytes(stmt.buffer)
        if size is None or size > STACK_BYTES or stmt.buffer.scope() != "global":
            return stmt
        annotations = dict(stmt.annotations or {})
        annotations["disable_lower_builtin"] = tirx.IntImm("int32", 1)
        return AllocBuffer(stmt.buffer, annotations)

    return tvm_ffi.structural_map(func, [(AllocBuffer, on_alloc)], order="post")
