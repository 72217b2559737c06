"""From an imported model to a program: kernels, layouts and what is between them.

imported → dataflow → convolutions with their epilogues → candidates → layouts → rewritten
         → legalised and fused by Relax → scheduled → program
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from convtvm.errors import BuildError, ConvtvmError
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import CompileTarget
from convtvm.models.candidates import Candidates, limits_of
from convtvm.models.convolutions import counted, find
from convtvm.models.dataflow import Dataflow
from convtvm.models.imported import Imported
from convtvm.models.layouts import assign
from convtvm.models.legalize import LEGALIZE
from convtvm.models.program import Program
from convtvm.models.rewriting import rewritten
from convtvm.models.steps import program_of
from convtvm.problem.workload import ConvWorkload


def make_program(
    imported: Imported,
    target: CompileTarget,
    history: Sequence[TuningRecord],
    *,
    workspace_limit: int | None = None,
    max_error: float | None = None,
    block: int | None = None,
) -> Program:
    """The model as a static list of steps for `target`, by the best kernels that `history` knows.

    `workspace_limit`, bytes, and `max_error`, relative to the largest output, hold for every
    kernel; without `max_error` it is what `candidates` has for the kind of outputs. `block` is the
    number of channels of a block, by default as many as a vector has lanes; with 0 everything is
    NCHW. Raises NoCandidate if a layer has no kernel within the limits, BuildError for an operator
    without kernel.
    """
    flow = Dataflow(imported.module["main"])
    layers = find(flow, dict(imported.origins))
    limits = limits_of(workspace_limit, max_error, imported.gives_images)
    candidates = Candidates(target, history, limits)
    chosen = assign(flow, layers, candidates, block)
    module = _fused(rewritten(imported.module, flow, layers, chosen), target)
    return program_of(module, imported, layers, chosen, target)


def convolutions(imported: Imported) -> list[tuple[ConvWorkload, int]]:
    """The different convolutions of a model, dense layers too, and how often it has each."""
    return counted(find(Dataflow(imported.module["main"])))


def _fused(module: tvm.IRModule, target: CompileTarget) -> tvm.IRModule:
    """Every operator that is not a kernel's as a function, chains of elementwise ones as one."""
    passes = relax.transform
    chain = tvm.transform.Sequential(
        [
            passes.LegalizeOps(LEGALIZE, skip_ops=["relax.reshape"]),
            passes.AnnotateTIROpPattern(),
            passes.FuseOps(),
            passes.FuseTIR(),
            passes.DeadCodeElimination(),
        ]
    )
    try:
        with target.tvm:
            return chain(module)
    except ConvtvmError:
        raise
    except Exception as error:  # TVM raises classes of its own and Python's
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first = lines[0] if lines else type(error).__name__
        raise BuildError(f"TVM does not compile the operators of the model: {first}") from error
