"""Lowering and compiling for a GPU: checks that TVM leaves out, then machine code without a driver.

The counterpart of `codegen` for the target kind `cuda`, and like it the same for tuning and export.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlockRealize
from tvm.s_tir import pipeline as s_tir_pipeline
from tvm.s_tir.analysis import verify_gpu_code
from tvm.tirx import For, ForKind
from tvm.tirx.buffer import is_buffer_var
from tvm.tirx.build import split_host_device_mods, tir_to_runtime
from tvm.tirx.stmt import AllocBuffer

from convtvm.errors import BuildError
from convtvm.kernels import codegen
from convtvm.kernels.codegen import Built
from convtvm.kernels.cuda import passes, swizzle
from convtvm.kernels.cuda.cubin import compile_source
from convtvm.kernels.cuda.device_code import DeviceCode
from convtvm.kernels.cuda.instructions import TENSOR_CORES, uses_tensor_cores, with_instructions
from convtvm.machine import gpu
from convtvm.machine.gpu import Architecture
from convtvm.machine.targets import CudaTarget
from convtvm.problem import arguments

_CONFIG = {"tirx.use_async_copy": True}  # cp.async where a template asks for it


def check_threads(mod: tvm.IRModule, limits: Architecture) -> None:
    """Refuse kernels whose thread axes disagree; TVM lets the first extent win, silently.

    Raises BuildError with the axis and its extents, or with too large a number of threads.
    """
    for name, func in mod.functions_items():
        for kernel in _kernels(func):
            extents: dict[str, set[int]] = {}

            def on_for(loop: For, found: dict[str, set[int]] = extents) -> None:
                if loop.kind == ForKind.THREAD_BINDING:
                    axis = str(loop.thread_binding.thread_tag)
                    found.setdefault(axis, set()).add(int(loop.extent))

            tvm_ffi.structural_walk(kernel, (For, on_for), order="pre")
            for axis, sizes in extents.items():
                if len(sizes) > 1 and not axis.startswith("vthread"):
                    listed = ", ".join(map(str, sorted(sizes)))
                    raise BuildError(f"{name.name_hint}: {axis} has extents {listed}, expected one")
            threads = math.prod(max(s) for a, s in extents.items() if a.startswith("threadIdx"))
            if threads > limits.max_threads:
                raise BuildError(
                    f"{name.name_hint}: {threads} threads a block, at most {limits.max_threads}"
                )


def _kernels(func: tirx.PrimFunc) -> list[object]:
    """The parts of a function that become kernels of their own: its outermost statements."""
    body = func.body
    while isinstance(body, SBlockRealize):
        body = body.block.body
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def lower(mod: tvm.IRModule, target: CudaTarget) -> tuple[tvm.IRModule, tvm.IRModule]:
    """(host functions, kernels) of the scheduled functions in `mod`.

    Raises BuildError for kernels beyond the limits of the target, and for memory that a function
    would allocate on the device by itself.
    """
    check_threads(mod, target.facts)
    if gpu.age(target.arches[0]) < TENSOR_CORES and any(
        map(uses_tensor_cores, mod.functions.values())
    ):
        raise BuildError(
            f"tensor cores need sm_{TENSOR_CORES} or newer, the target has {target.arches[0]}"
        )
    functions = {v: swizzle.with_names(with_instructions(f)) for v, f in mod.functions_items()}
    bounded = tvm.IRModule(functions)
    _, finalize_host, finalize_device = s_tir_pipeline.default_s_tir_pipeline()
    with tvm.transform.PassContext(config=_CONFIG):
        lowered = passes.lower(tirx.transform.BindTarget(target.tvm)(bounded))
        host, parts = split_host_device_mods(lowered)
        kernels = tvm.IRModule({})
        for part in parts.values():
            kernels.update(part)
        _check_resources(kernels, target.facts)
        _check_allocations(host)
        return finalize_host()(host), finalize_device()(kernels)


def generate(
    func: tirx.PrimFunc, symbol: str, target: CudaTarget
) -> tuple[tvm.runtime.Module, DeviceCode]:
    """(host code, CUDA source of the kernels) of a scheduled convolution. Raises BuildError."""
    return generate_all({symbol: func}, target)


def generate_all(
    functions: Mapping[str, tirx.PrimFunc], target: CudaTarget
) -> tuple[tvm.runtime.Module, DeviceCode]:
    """As `generate`, of several by their symbols, in one source."""
    host, kernels = lower(codegen.merge(functions), target)
    with _source_only():
        module = tir_to_runtime(host, {target.tvm: kernels}, target.host)
    return module, DeviceCode.of(module)


def build(func: tirx.PrimFunc, symbol: str, target: CudaTarget) -> Built:
    """Machine code of a scheduled convolution, exported as `symbol`.

    Raises BuildError, and EnvironmentProblem without a compiler.
    """
    module, code = generate(func, symbol, target)
    image = compile_source(code.source, target.arches)
    workspaces = arguments.workspaces(func.params, is_buffer_var)
    return Built(
        module,
        workspace=sum(codegen.constant_bytes(p) or 0 for p in workspaces),
        device=code.packed(image.data, image.format),
        spills=max((f.spills for f in image.figures.values()), default=0),
    )


@contextmanager
def _source_only() -> Iterator[None]:
    """Keep TVM from compiling kernels at once, by its own options, where it finds a driver."""
    variable = "TVM_COMPILE_FORCE_FALLBACK"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _check_resources(kernels: tvm.IRModule, limits: Architecture) -> None:
    constraints = {
        "max_threads_per_block": limits.max_threads,
        "max_shared_memory_per_block": limits.shared_bytes,
    }
    for name, kernel in kernels.functions_items():
        if not verify_gpu_code(kernel, constraints):
            raise BuildError(
                f"{name.name_hint} needs more than {limits.max_threads} threads or "
                f"{limits.shared_bytes} bytes of shared memory a block"
            )


def _check_allocations(host: tvm.IRModule) -> None:
    """Whatever goes through global memory has to be a parameter: the run time allocates it once."""

    def on_alloc(stmt: AllocBuffer) -> None:
        raise BuildError(
            f"{stmt.buffer.name} would be allocated on the device in every call; "
            "make it a parameter of the compute"
        )

    tvm_ffi.structural_walk(host, (AllocBuffer, on_alloc), order="pre")
