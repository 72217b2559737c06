"""A model: a whole network, loaded from one file and called like a function."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convtvm.dispatch import model_file, runtime, suitability, tensors
from convtvm.dispatch.copies import Shared
from convtvm.dispatch.execution import Execution, Fixed
from convtvm.dispatch.model_file import ModelContent
from convtvm.dispatch.model_manifest import ModelManifest
from convtvm.dispatch.signature import Signature
from convtvm.dispatch.tensors import Port
from convtvm.dispatch.threads import numbers, pool
from convtvm.errors import LibraryError, check_number
from convtvm.problem.reference import Array, aligned_empty


def load_model(path: str | Path, threads: int | None = None) -> Model:
    """Open the model library at `path`; `threads` defaults to the number it was compiled for.

    Of several targets the first that this machine can run counts. Raises LibraryError for a file
    that is not an intact model or needs CPU features that this machine lacks, before any of its
    code runs.
    """
    if threads is not None:
        threads = check_number("threads", threads, least=1, whole=True, kind=LibraryError)
    content = model_file.read(path)
    suitability.check(content.targets, path)
    model = Model(content, threads)
    model.open()
    return model


@dataclass(frozen=True)
class StepTime:
    """An operator's share of a model's time: the median seconds of a call of `function`, and the
    `least`; `about` says in words what that computes."""

    label: str
    function: str
    about: str
    seconds: float
    share: float
    least: float


class Model(Shared):
    """A compiled network; call it with tensors, from any number of threads.

    `inputs` and `outputs` are its ports by name, with shape and dtype. A call takes numpy, torch or
    other DLPack tensors, in order, by name or in one mapping of names, and gives the same kind
    back: one output as it is, several as a tuple in order. Each call that runs at the same time as
    another takes an arena of its own, kept for the next.
    """

    def __init__(self, content: ModelContent, threads: int | None = None) -> None:
        self.content = content
        fitting = (m for m in content.targets if not suitability.objection(m))
        self.manifest: ModelManifest = next(fitting, content.targets[0])
        made_for = self.manifest.threads
        self.threads = 1 if made_for == 1 else threads or made_for
        self.problems: list[str] = []
        self.inputs = _ports(self.manifest, self.manifest.inputs)
        self.outputs = _ports(self.manifest, self.manifest.outputs)
        self._signature = Signature(self.inputs, self.outputs, self.manifest.batch)
        self._idle: list[Execution] = []
        self._number = next(numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.content, self.threads)  # nothing that was loaded

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def target(self) -> str:
        """The one whose code runs here, the first if none does."""
        return self.manifest.target

    @property
    def batch(self) -> int | None:
        """Images at a time, of calls whose batch may be a multiple of it; None where the shapes of
        inputs have to be as they are."""
        return self._signature.batch

    @property
    def arena_bytes(self) -> int:
        """Memory of all values of one call, besides inputs and outputs."""
        return self.manifest.arena_bytes

    @property
    def weight_bytes(self) -> int:
        """Memory of this target's weights: those of the file, and those packed at load."""
        indices = set(self.manifest.constants.values())
        stored = sum(self.content.weights[i].nbytes for i in indices)
        return stored + self.manifest.packed_bytes

    @property
    def peak_bytes(self) -> int:
        """Memory that a call needs besides weights, inputs and outputs: arena and workspace."""
        return self.arena_bytes + self.manifest.workspace_bytes

    @property
    def facts(self) -> Mapping[str, Any]:
        """Where the model comes from, and how far its result was found from the original's."""
        return self.manifest.facts

    def export(self, path: str | Path) -> None:
        """Write the model library, whole or not at all. Raises LibraryError if that is
        impossible."""
        model_file.write(path, self.content)

    # ---- running it ------------------------------------------------------------------------------

    def open(self) -> None:
        """Load the code and pack weights. Raises LibraryError if this machine cannot run it."""
        self._fixed  # noqa: B018

    @cached_property
    def _functions(self) -> dict[str, Callable[..., Any]]:
        suitability.check(self.content.targets, "the model")
        runtime.start()
        self._image = runtime.Image(self.content.image, self.threads)
        return {name: self._image[name] for name in self.manifest.functions}

    @cached_property
    def _fixed(self) -> Fixed:
        functions = self._functions
        self._image.prepare()
        return Fixed(self.manifest, self.content.weights, functions)

    def __call__(self, *args: Any, out: Any = None, **named: Any) -> Any:
        """The outputs for these inputs; with `out`, a tensor or a tuple of them, into it.

        Raises ArrayError if an input is missing, unknown or given twice, if a shape, dtype or
        device does not fit, or if `out` overlaps what is read.
        """
        signature = self._signature
        values = signature.in_order(args, named)
        slices = signature.slices(values)
        results, sources, targets = signature.take(values, out, slices)
        self._run([s.data_ptr() for s in sources], [t.data_ptr() for t in targets], slices)
        if out is None and values:
            results = [tensors.same_kind(result, values[0]) for result in results]
        return results[0] if len(results) == 1 else tuple(results)

    def _run(self, sources: Sequence[int], targets: Sequence[int], slices: int) -> None:
        with self._execution() as execution:
            for index in range(slices):
                execution.bind(
                    _advanced(sources, self.inputs, index), _advanced(targets, self.outputs, index)
                )
                execution.run()

    @contextmanager
    def _execution(self) -> Iterator[Execution]:
        """One that nobody else uses meanwhile."""
        try:
            execution = self._idle.pop()  # atomic
        except IndexError:
            execution = Execution(self.manifest, self._fixed, self._functions)
        self._image.prepare()
        if self._number not in pool.served:
            pool.serve(self._number, self.manifest.workspace_bytes)
        try:
            yield execution
        finally:
            self._idle.append(execution)

    def profile(self, *args: Any, repeat: int = 20, **named: Any) -> list[StepTime]:
        """The time of each operator in order, of `repeat` calls after a warm-up.

        Without inputs, on random numbers.
        """
        with self._bound(args, named) as execution:
            for _ in range(3):
                execution.run()
            rounds = [execution.timed() for _ in range(repeat)]
        calls = list(zip(*rounds, strict=True))
        secs = [statistics.median(times) for times in calls]
        total = sum(secs) or 1.0
        facts = self.manifest.functions
        return [
            StepTime(c.label, c.function, facts[c.function].about, s, s / total, min(times))
            for c, s, times in zip(self.manifest.steps, secs, calls, strict=True)
        ]

    def steps(self, *args: Any, **named: Any) -> Iterator[tuple[str, dict[int, Array]]]:
        """Run step by step: the label of each, and the arrays that it was called with, by the
        numbers of their values. The next step may change them."""
        with self._bound(args, named) as execution:
            for call, (function, arguments) in zip(
                self.manifest.steps, execution.calls, strict=True
            ):
                function(*arguments)
                numbers = [a for a in call.arguments if isinstance(a, int)]
                yield call.label, {n: execution.array(n) for n in numbers}

    @contextmanager
    def _bound(self, args: Sequence[Any], named: Mapping[str, Any]) -> Iterator[Execution]:
        """An execution on these inputs, random ones without any, and outputs of its own."""
        values = self._signature.in_order(args, named or ({} if args else self.random_inputs()))
        _, sources, targets = self._signature.take(values, None, slices=1)
        with self._execution() as execution:
            execution.bind([s.data_ptr() for s in sources], [t.data_ptr() for t in targets])
            yield execution

    def random_inputs(self, seed: int = 0) -> dict[str, Array]:
        """Inputs by name: normal numbers, small whole ones for integers; those by which the
        original chooses what it computes, as the model was compiled."""
        rng = np.random.default_rng(seed)
        decided = self.manifest.facts.get("decided", {})
        made = {}
        for name, port in self.inputs.items():
            array = aligned_empty(port.shape, port.dtype)
            if name in decided:
                array[...] = decided[name]
            elif port.dtype.kind == "f":
                array[...] = rng.standard_normal(port.shape)
            else:
                array[...] = rng.integers(0, 2, port.shape)
            made[name] = array
        return made


def _ports(manifest: ModelManifest, named: Mapping[str, int]) -> dict[str, Port]:
    values = manifest.values
    return {name: Port(name, values[v].shape, values[v].dtype) for name, v in named.items()}


def _advanced(addresses: Sequence[int], ports: Mapping[str, Port], index: int) -> list[int]:
    """The addresses of the slice at `index`."""
    if not index:
        return list(addresses)
    return [a + index * port.bytes for a, port in zip(addresses, ports.values(), strict=True)]
