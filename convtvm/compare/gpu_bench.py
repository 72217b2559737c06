"""Layer by layer on a GPU: a library's algorithms beside cuDNN's, by one stopwatch."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import tvm

from convtvm.compare import cudnn
from convtvm.compare.bench import WRONG, BenchRow, Measured
from convtvm.compare.peers import Run
from convtvm.dispatch import KernelLibrary, selection
from convtvm.dispatch.manifest import Kernel
from convtvm.errors import ConvtvmError, NoCandidate
from convtvm.measure.gpu_timing import stopwatch
from convtvm.measure.jobs import failure, wrong_answer
from convtvm.measure.timing import Timing
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload

_WARM = 3  # times as few figures with a warm L2 cache, each of which is a mean
_PEER = "torch"

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # data, weight, bias


class _Answer:
    """As of cudnn.Answer, computed by a core of the host: without PyTorch."""

    def __init__(
        self, w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray
    ) -> None:
        self.right = conv2d_reference(w, data, weight, bias)

    def error(self, out: np.ndarray) -> float:
        return relative_error(out, self.right)


def bench(
    library: KernelLibrary,
    peers: bool,
    repeat: int = 25,
    max_error: float | None = None,
    device: str = "cuda",
) -> Iterator[BenchRow]:
    """Measure every workload of `library`, beside PyTorch's on `device` if there are `peers`.

    Each contestant has its data on the device, in its own memory format, and weights packed
    beforehand. Seconds are of calls with a cold L2 cache; `warm` of calls in a row. What errs by
    more than `max_error`, and without one all that is inexact by choice, takes no part.
    """
    for w in library.workloads:
        arrays = random_inputs(w, 0, library.layout)
        plain = arrays
        if library.layout == "NHWC":
            plain = np.ascontiguousarray(arrays[0].transpose(0, 3, 1, 2)), *arrays[1:]
        answer = cudnn.Answer(w, *plain, device) if peers else _Answer(w, *plain)
        ours = _ours(library, w, arrays, answer, max_error)
        theirs: dict[str, tuple[Run, float]] = {}
        absent: dict[str, str] = {}
        try:
            if isinstance(answer, cudnn.Answer):
                theirs = _theirs(w, plain, answer, max_error, device)
        except Exception as error:  # other people's code, which may raise anything
            absent[_PEER] = failure("peer", error).message
        chosen = _chosen(library, w, ours, max_error)
        yield _row(library, w, chosen, ours, theirs, absent, repeat)


def _row(
    library: KernelLibrary,
    w: ConvWorkload,
    chosen: str,
    ours: Mapping[str, tuple[Run, float]],
    theirs: Mapping[str, tuple[Run, float]],
    absent: Mapping[str, str],
    repeat: int,
) -> BenchRow:
    workspace = {c.algorithm: c.workspace_bytes for c in library.candidates(w)}
    measured = _measure({**ours, **theirs}, workspace, repeat)
    biased = {name: m for name, m in measured.items() if not name.endswith(cudnn.NO_BIAS)}
    return BenchRow(
        workload=w,
        chosen=chosen,
        algorithms={name: m for name, m in biased.items() if name in ours},
        peers={name: m for name, m in biased.items() if name in theirs},
        absent=absent,
        without_bias={
            name.removesuffix(cudnn.NO_BIAS): m
            for name, m in measured.items()
            if name not in biased
        },
    )


def _chosen(
    library: KernelLibrary, w: ConvWorkload, among: Collection[str], max_error: float | None
) -> str:
    """What `plan` takes within the limit; the first of the others where no error was measured yet,
    nothing without any."""
    try:
        name = selection.choose(
            w, library.kernels(w), selection.Wish(max_error=max_error)
        ).kernel.algorithm
    except NoCandidate:
        name = ""
    ranked = [name, *(c.algorithm for c in library.candidates(w))]
    return next((algorithm for algorithm in ranked if algorithm in among), "")


def _ours(
    library: KernelLibrary,
    w: ConvWorkload,
    arrays: Arrays,
    answer: _Answer | cudnn.Answer,
    max_error: float | None,
) -> dict[str, tuple[Run, float]]:
    """A call of each algorithm on tensors of the device, and its error."""
    gpu, found = tvm.cuda(0), dict[str, tuple[Run, float]]()
    data, weight, bias = arrays
    there = tvm.runtime.tensor(data, gpu)
    for kernel in library.kernels(w):
        if kernel.is_opt_in and max_error is None:
            continue
        out = tvm.runtime.empty(w.out_shape(library.layout), w.dtype, gpu)
        run = partial(library.plan_by(kernel, w, weight, bias), there, out=out)
        result = run().numpy()
        error = answer.error(result.transpose(0, 3, 1, 2) if library.layout == "NHWC" else result)
        if not _is_refused(kernel, error, max_error):
            found[kernel.algorithm] = run, error
    return found


def _is_refused(kernel: Kernel, error: float, max_error: float | None) -> bool:
    return max_error is not None and kernel.is_opt_in and error > max_error


def _theirs(
    w: ConvWorkload,
    arrays: Arrays,
    answer: cudnn.Answer,
    max_error: float | None,
    device: str,
) -> dict[str, tuple[Run, float]]:
    """PyTorch's contestants and their errors; those in TF32 where that is exact enough.

    Raises ConvtvmError if one computes something else.
    """
    found = {}
    runs = cudnn.contestants(w, *arrays, tf32=max_error is not None, device=device)
    for name, run in runs.items():
        error = answer.error(run(), not name.endswith(cudnn.NO_BIAS))
        if not error < WRONG:
            raise ConvtvmError(wrong_answer(error, WRONG).message)
        if "tf32" not in name or error <= (max_error or 0.0):
            found[name] = run, error
    return found


def _measure(
    runs: Mapping[str, tuple[Run, float]], workspace: Mapping[str, int], repeat: int
) -> dict[str, Measured]:
    watch = stopwatch()
    calls = {name: run for name, (run, _) in runs.items()}
    cold = watch.time(calls, repeat)
    warm = watch.time(calls, max(3, repeat // _WARM), cold=False)
    return {
        name: replace(
            Measured.of(Timing.of(*cold[name]), error, workspace.get(name)),
            disturbed=cold[name][1] or warm[name][1],
            warm=statistics.median(warm[name][0]),
        )
        for name, (_, error) in runs.items()
    }
