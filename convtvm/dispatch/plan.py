"""A plan: one kernel with its packed weight and epilogue, ready to be called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convtvm.dispatch import tensors
from convtvm.dispatch.copies import Local
from convtvm.dispatch.selection import Candidate, Choice
from convtvm.dispatch.tensors import Operands, Port
from convtvm.dispatch.threads import numbers, pool
from convtvm.problem.activations import Activation
from convtvm.problem.dtypes import numpy_dtype
from convtvm.problem.reference import aligned_empty
from convtvm.problem.workload import ConvWorkload


@dataclass(frozen=True)
class Code:
    """What a plan needs of its library: functions by name, how its kernels lay out data and output,
    and what to do before each call."""

    function: Callable[[str], Any]
    layout: str
    prepare: Callable[[], None]


class Plan(Local):
    """A chosen kernel with its packed weight; call it with data, from any number of threads.

    `activation` ends it, `adds` says whether a residual is added before that. Both happen inside
    the kernel if the library has it with that epilogue, else in one pass over the output.
    """

    _elsewhere = "pickle its library, or load that there, and make the plan anew by `lib.plan(...)`"

    def __init__(
        self,
        code: Code,
        workload: ConvWorkload,
        choice: Choice,
        weight: Any,
        bias: Any,
        activation: Activation = Activation(),  # noqa: B008 - it never changes
        adds: bool = False,
    ) -> None:
        self.code, self.workload, self.choice = code, workload, choice
        self._number = next(numbers)
        self._operands = operands(Port, workload, code.layout, adds)
        self._activation, self.adds, self._prepare = activation, adds, code.prepare
        self._choose_epilogue()
        self._pack(weight, bias)

    def _choose_epilogue(self) -> None:
        kernel, wanted = self.choice.kernel, self._activation.epilogue(self.adds)
        self._fused = wanted == "none" or wanted in kernel.epilogues
        self._epilogue = wanted
        self._numbers = () if wanted == "none" else self._activation.numbers
        name = kernel.epilogues.get(wanted, kernel.function)
        self._run = self.code.function(name)

    def _pack(self, weight: Any, bias: Any) -> None:
        kernel, w = self.choice.kernel, self.workload
        weights = tensors.as_array(weight, w.weight_shape, "weight", w.dtype)
        self._packed_array = aligned_empty(kernel.packed_shape, w.dtype)
        self._packed = tensors.from_array(self._packed_array)
        self._prepare()
        self.code.function(kernel.pack)(tensors.from_array(weights), self._packed)
        given = None if bias is None else tensors.as_array(bias, (w.oc,), "bias", w.dtype).copy()
        self._bias_array = np.zeros(w.oc, numpy_dtype(w.dtype)) if given is None else given
        self._bias = tensors.from_array(self._bias_array)

    @property
    def algorithm(self) -> str:
        return self.choice.kernel.algorithm

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of a call, in bytes; TVM's pool keeps it for the next call."""
        return self.choice.kernel.workspace_bytes

    @property
    def run_secs(self) -> float | None:
        """Seconds a call, as measured while tuning."""
        return self.choice.kernel.run_secs

    @property
    def max_error(self) -> float | None:
        return self.choice.kernel.max_error

    @property
    def decisions(self) -> str:
        """In words, where the kernel's decisions come from: tuned, default or transferred from."""
        return Candidate.of(self.choice.kernel).origin

    def explain(self) -> str:
        """In words, why this kernel."""
        text = self.choice.explain()
        if self._epilogue != "none":
            how = "inside the kernel"
            if not self._fused:
                how = f"after it: the library was compiled without the epilogue {self._epilogue!r}"
            function = self._activation.function
            what, verb = (function, "is") if function else ("bounds", "are")
            what = f"Residual and {what} are" if self.adds else f"The {what} {verb}"
            text += f" {what} applied {how}."
        return text

    def __call__(self, data: Any, out: Any = None, residual: Any = None) -> Any:
        """The convolution of `data`, as the same kind of tensor; with `out`, into it, allocating
        nothing. `residual`, like the output, is added if the plan was made for that.

        Raises ArrayError if a shape, dtype or device does not fit, or `out` overlaps what is read;
        NoMemory if there is none for the output or for the kernel's workspace.
        """
        result, source, target, added = self._operands.take(data, out, residual)
        self.compute(source, target, added)
        if out is None and type(result) is not type(data):
            return tensors.same_kind(result, data)
        return result

    def compute(self, source: Any, target: Any, added: Sequence[Any]) -> None:
        """Run the kernel on tensors of tvm_ffi or PyTorch that fit it and lie apart; `added` holds
        the residual of a plan that adds one."""
        self._prepare()
        if self._number not in pool.served:
            pool.serve(self._number, self.workspace_bytes)
        if self._epilogue == "none":
            self._run(source, self._packed, self._bias, target)
        elif self._fused:
            self._run(source, self._packed, self._bias, target, *self._numbers, *added)
        else:
            self._run(source, self._packed, self._bias, target)
            port = self._operands.out
            out = tensors.over(target, port)
            for tensor in added:
                out += tensors.over(tensor, port)
            self._activation.apply(out)


def operands(port: type[Port], workload: ConvWorkload, layout: str, adds: bool) -> Operands:
    """The tensors of calls for `workload`."""
    shape, dtype = workload.out_shape(layout), workload.dtype
    return Operands(
        port("data", workload.data_shape(layout), dtype),
        port("out", shape, dtype),
        port("residual", shape, dtype) if adds else None,
    )


class SlicedPlan(Local):
    """A batch that the library has no kernel for, run in slices by plans for smaller batches."""

    _elsewhere = "pickle its library, or load that there, and make the plan anew by `lib.plan(...)`"

    def __init__(self, workload: ConvWorkload, parts: Sequence[Plan]) -> None:
        self.workload, self.parts = workload, list(parts)
        self._operands = operands(Port, workload, parts[0].code.layout, parts[0].adds)

    @property
    def algorithm(self) -> str:
        """Of the first, largest slice."""
        return self.parts[0].algorithm

    @property
    def decisions(self) -> str:
        """As of Plan, of the first slice."""
        return self.parts[0].decisions

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of a call: of the slice that needs most."""
        return max(p.workspace_bytes for p in self.parts)

    @property
    def run_secs(self) -> float | None:
        """The sum over the slices, None if one was never measured."""
        secs = [p.run_secs for p in self.parts]
        return None if None in secs else sum(s for s in secs if s is not None)

    @property
    def max_error(self) -> float | None:
        errors = [p.max_error for p in self.parts]
        return None if None in errors else max(e for e in errors if e is not None)

    def explain(self) -> str:
        """In words, which slices and why their kernels."""
        sizes = [p.workload.n for p in self.parts]
        counts = {n: sizes.count(n) for n in sizes}
        listed = " and ".join(f"{count} of batch {n}" for n, count in counts.items())
        said = {p.workload.n: p.explain() for p in self.parts}
        each = " ".join(f"Batch {n}: {text}" for n, text in said.items())
        return f"No kernel for batch {self.workload.n}: it runs in slices, {listed}. {each}"

    def __call__(self, data: Any, out: Any = None, residual: Any = None) -> Any:
        """As of Plan."""
        result, source, target, added = self._operands.take(data, out, residual)
        read, written = self._operands.data, self._operands.out
        held = [tensors.over(source, read), *(tensors.over(t, written) for t in (target, *added))]
        start = 0
        for part in self.parts:
            rows = slice(start, start + part.workload.n)
            given, to, *ending = (tensors.from_array(array[rows]) for array in held)
            part.compute(given, to, ending)
            start = rows.stop
        if out is None and type(result) is not type(data):
            return tensors.same_kind(result, data)
        return result
