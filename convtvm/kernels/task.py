"""A task: one workload by one algorithm for one target and layout, with its schedule template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.tirx.buffer import is_buffer_var

from convtvm.compute.epilogue import with_epilogue
from convtvm.errors import WorkloadError
from convtvm.kernels import codegen
from convtvm.kernels.algorithms import ALGORITHMS, Algorithm, applicable, select
from convtvm.kernels.cuda.algorithms import CUDA_ALGORITHMS
from convtvm.machine.targets import CompileTarget, CudaTarget
from convtvm.problem import arguments
from convtvm.problem.dtypes import HALVES, ROUNDING
from convtvm.problem.workload import ConvWorkload, channel_block
from schedules.cpu.registers import CpuModel
from schedules.cuda.model import GpuModel
from schedules.knobs import Rules, Space

Scratch = tuple[tuple[str | int, ...], ...]
_spaces: WeakValueDictionary[tuple[Rules, int], Space] = WeakValueDictionary()
TABLES = {"cpu": ALGORITHMS, "cuda": CUDA_ALGORITHMS}  # by the kind of target


@dataclass(frozen=True)
class Task:
    """What the tuner tunes. Two equal tasks have the same space and comparable times.

    Kernels are tuned without an epilogue; `epilogue`, in the words of `convtvm.compute.epilogue`,
    changes only what is compiled.
    """

    workload: ConvWorkload
    algorithm_name: str
    target: CompileTarget
    layout: str = "NCHW"
    epilogue: str = "none"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields only; the cached space holds functions."""
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def algorithm(self) -> Algorithm:
        return TABLES[self.target.kind][self.algorithm_name]

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """Identity in logs: workload, algorithm, target, threads, layout."""
        return (
            self.workload.key,
            self.algorithm_name,
            self.target.name,
            self.target.threads,
            self.layout,
        )

    @property
    def device(self) -> CpuModel | GpuModel:
        """What the template needs to know of the target."""
        target = self.target
        if isinstance(target, CudaTarget):
            return GpuModel(target.arches[0], **asdict(target.facts))
        return CpuModel(target.lanes, target.registers, target.threads)

    @property
    def tolerance(self) -> float:
        """The largest error, relative to the largest output, that is not a wrong answer."""
        # An output in 16 bits is rounded once; the sums before, in float32, are off by far less.
        rounding = 2 * ROUNDING[self.workload.dtype] if self.workload.dtype in HALVES else 0.0
        return max(self.algorithm.tolerance, rounding)

    @property
    def template_version(self) -> int:
        return int(self.algorithm.template.VERSION)

    def compute(self, decisions: Mapping[str, int] | None = None) -> tirx.PrimFunc:
        """The unscheduled function; compute knobs are 1 without decisions."""
        knobs = self.algorithm.template.COMPUTE_KNOBS if decisions else ()
        chosen = {name: decisions[name] for name in knobs} if decisions else {}
        _check_blocks(self.workload, self.layout, self.target.lanes)
        plain = self.algorithm.compute(self.workload, self.layout, self.target.lanes, **chosen)
        func = with_epilogue(plain, self.epilogue)
        # On a GPU the run time sees to the alignment, and loads are as wide as templates want them.
        return func if self.target.kind == "cuda" else codegen.accept_unaligned(func)

    @cached_property
    def space(self) -> Space:
        space: Space = self.algorithm.template.space(Schedule(self.compute()), self.device)
        # Tasks of equal rules have the same points, which take a while to list.
        return _spaces.setdefault((space.rules, space.threads), space)

    def instantiate(self, decisions: Mapping[str, int]) -> tvm.IRModule:
        """The scheduled module of these decisions, with the function `main`."""
        sch = Schedule(self.compute(decisions))
        self.algorithm.template.schedule(sch, self.device, decisions)
        return sch.mod

    def pack(self) -> tirx.PrimFunc:
        """The scheduled function that packs a weight, (weight, packed)."""
        packing = self.algorithm.pack(self.workload, self.target.lanes, self.layout)
        func = codegen.accept_unaligned(packing)
        schedule_pack = getattr(self.algorithm.template, "schedule_pack", None)
        if schedule_pack is None:
            return func
        sch = Schedule(func)
        schedule_pack(sch)
        return sch.mod["main"]

    def scratch(self, decisions: Mapping[str, int]) -> Scratch:
        """The buffers that a kernel takes after (data, weight, bias, out), as (dtype, *shape)."""
        if self.target.kind == "cpu":
            return ()  # allocated by the kernel itself
        buffers = arguments.workspaces(self.compute(decisions).params, is_buffer_var)
        return tuple((str(b.dtype), *(int(extent) for extent in b.shape)) for b in buffers)

    def packed_shape(self) -> tuple[int, ...]:
        return tuple(int(extent) for extent in self.pack().params[1].shape)


def tasks_of(
    workloads: Sequence[ConvWorkload],
    target: CompileTarget,
    layout: str = "NCHW",
    algorithms: Sequence[str] | None = None,
    recorded: Collection[str] = (),
) -> list[Task]:
    """All tasks of the workloads, in order, one per applicable algorithm.

    `recorded` are the algorithms that a log holds: without `algorithms`, an opt-in among them
    counts as named.

    Raises WorkloadError for a layout or dtype that the target's computes do not know.
    """
    table = TABLES[target.kind]
    half = [w for w in workloads if w.dtype in HALVES]
    if target.kind == "cpu" and half:
        raise WorkloadError(
            f"{half[0]} is {half[0].dtype}, which is for GPUs; on a CPU expected float32"
        )
    if target.kind == "cuda" and layout not in ("NCHW", "NHWC"):
        raise WorkloadError(f"layout {layout} is for CPUs; on a GPU expected NCHW or NHWC")
    chosen = [a.name for a in select(algorithms, table)]
    if not algorithms:
        chosen += [name for name, a in table.items() if a.opt_in and name in recorded]
    return [
        Task(w, a.name, target, layout) for w in workloads for a in applicable(w, chosen, table)
    ]


def _check_blocks(w: ConvWorkload, layout: str, lanes: int) -> None:
    """Kernels compute whole vectors of `lanes` channels, groups no more than they have; a blocked
    layout must not ask for more. Raises WorkloadError."""
    block = channel_block(layout)
    computed = w.oc if w.groups > 1 else -(-w.oc // lanes) * lanes
    if block and -(-w.oc // block) * block > computed:
        raise WorkloadError(
            f"layout {layout} fills the {w.oc} output channels of {w} up to whole blocks, but "
            f"its kernels compute {computed}; choose smaller blocks, or NHWC"
        )


# A candidate travels through MetaSchedule as a carrier function whose root block has one annotation
# per knob; only the builder applies the schedule.
_PREFIX = "knob."


def carrier_module() -> tvm.IRModule:
    """The function that carries decisions as annotations; what it computes does not matter."""
    func = te.create_prim_func(
        [te.compute((1,), lambda i: te.const(0.0, "float32"), name="carrier")]
    )
    return codegen.merge({"main": func})


def annotate_knobs(
    sch: Schedule, space: Space, decisions: Mapping[str, int] | None = None
) -> Schedule:
    """Sample every knob, or take its decision, as a categorical; annotate the root block with
    it."""
    root = sch.get_sblock("root")
    for name, values in space.knobs.items():
        index = None if decisions is None else values.index(decisions[name])
        choice = sch.sample_categorical(list(values), [1 / len(values)] * len(values), index)
        sch.annotate(root, _PREFIX + name, choice)
    return sch


def decisions_of(mod: tvm.IRModule) -> dict[str, int]:
    """The decisions that `annotate_knobs` left in a module."""
    annotations = mod["main"].body.block.annotations
    return {
        str(k)[len(_PREFIX) :]: int(v) for k, v in annotations.items() if str(k).startswith(_PREFIX)
    }
