"""How far a compiled model is from its original, and which operator is the first to differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from convtvm.dispatch.model import Model
from convtvm.errors import BuildError
from convtvm.models.imported import Imported, NotComparable
from convtvm.models.program import Program

_SENSITIVE = 8.0  # times what the original itself moves by when its input is rounded otherwise
# The same of a quantised one, the most that it moves by in several draws: a sum on the edge of a
# step falls to the other side in some of them.
_SENSITIVE_IN_STEPS, _DRAWS = 2.0, 4
_TELLING = 0.1  # a bound above this part of the largest element tells nothing
_SAME = 1e-3  # of the largest element: one tensor computed in two ways

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Differences:
    """By output: the largest difference, also relative to the largest element of the original's."""

    absolute: Mapping[str, float]
    relative: Mapping[str, float]
    condition: float = 0.0
    sensitive: float = _SENSITIVE

    @property
    def error(self) -> float:
        """The largest relative one; 0 if it is no larger than rounding the inputs makes it."""
        worst = max(self.relative.values(), default=0.0)
        return 0.0 if worst <= self.sensitive * self.condition else worst

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        facts: dict[str, Any] = {
            "max_error": max(self.relative.values(), default=0.0),
            "max_difference": max(self.absolute.values(), default=0.0),
        }
        return facts | ({"conditioning": self.condition} if self.condition else {})


def between(model: Model, imported: Imported, inputs: Arrays) -> Differences:
    """The differences on these inputs. Raises EnvironmentProblem if the original cannot be run,
    NotComparable if that tells nothing.

    Where they look large, the original is run again on inputs that are rounded otherwise: outputs
    that hang on the last bits of the inputs, such as those of a sigmoid near 0, say nothing.
    """
    expected = imported.reference(inputs)
    result = model(inputs)
    found = list(result) if isinstance(result, tuple) else [result]
    names = list(model.outputs)
    plain = _compare(names, found, expected)
    if max(plain.relative.values(), default=0.0) <= _SAME:
        return plain
    if not imported.is_quantized:
        moved = _moved(imported, inputs, expected, 0)
        return Differences(plain.absolute, plain.relative, moved)
    moved = max(_moved(imported, inputs, expected, seed) for seed in range(_DRAWS))
    worst = max(plain.relative.values())
    if _SENSITIVE_IN_STEPS * moved > _TELLING and math.isfinite(worst):
        raise NotComparable(
            "what it rounds to 8 bits hangs on the last bits of the inputs: these move its outputs "
            f"by {moved:.1e} of the largest (the result differs by {worst:.1e}); give an example "
            "of real inputs"
        )
    return Differences(plain.absolute, plain.relative, moved, _SENSITIVE_IN_STEPS)


def _moved(imported: Imported, inputs: Arrays, expected: Sequence[np.ndarray], seed: int) -> float:
    """How far the original's outputs move when its inputs are rounded otherwise."""
    random = np.random.default_rng(seed)
    shaken = {
        name: (array * (1 + imported.rounding * random.uniform(-1, 1, array.shape))).astype(
            array.dtype
        )
        if array.dtype.kind == "f"
        else array
        for name, array in inputs.items()
    }
    names = [port.name for port in imported.outputs]
    return max(_compare(names, imported.reference(shaken), expected).relative.values(), default=0.0)


def _compare(
    names: Sequence[str], found: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> Differences:
    pairs = dict(zip(names, zip(found, expected, strict=True), strict=True))
    return Differences(
        {name: _difference(*pair)[0] for name, pair in pairs.items()},
        {name: _difference(*pair)[1] for name, pair in pairs.items()},
    )


def _difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Largest difference, and relative to the largest element; the same infinity or NaN is none."""
    if found.shape != expected.shape:
        return math.inf, math.inf
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    odd = ~np.isfinite(b)
    if not np.array_equal(a[odd], b[odd], equal_nan=True) or not np.isfinite(a[~odd]).all():
        return math.inf, math.inf
    largest = float(np.abs(b[~odd]).max(initial=0.0))
    off = float(np.abs(a[~odd] - b[~odd]).max(initial=0.0))
    return off, off / largest if largest else off


class TooFar(Exception):
    """A compiled model that differs from its original by more than it may, on these inputs."""

    def __init__(
        self,
        model: Model,
        program: Program,
        imported: Imported,
        inputs: Arrays,
        found: Differences,
    ) -> None:
        super().__init__(model.target)
        self.error = found.error
        self._finding = (model, program, imported, inputs, found)

    def explained(self) -> BuildError:
        """The error for people; looks for the operator that begins."""
        return complaint(*self._finding)


def complaint(
    model: Model, program: Program, imported: Imported, inputs: Arrays, found: Differences
) -> BuildError:
    """The error about a model that differs too much: which output, and the operator that begins."""
    output = max(found.relative, key=lambda name: found.relative[name])
    try:
        where = _culprit(model, program, imported, inputs)
    except Exception as error:  # the finding stands, whatever the search runs into
        first = (str(error).splitlines() or [""])[0]
        where = f"the operator was not found: {type(error).__name__}: {first}"
    return BuildError(
        f"output {output!r} differs from the original's by {found.relative[output]:.1e} of its "
        f"largest element; {where}"
    )


def _culprit(model: Model, program: Program, imported: Imported, inputs: Arrays) -> str:
    """In words, where the difference begins."""
    results, inner = _unscheduled(imported, inputs)
    names = [port.name for port in imported.outputs]
    by_import = _compare(names, results, imported.reference(inputs))
    if max(by_import.relative.values()) > _SAME:
        return "the import is to blame: TVM computes the same from the imported operators"
    label = _first_unknown(model, program, inputs, inner)
    return f"the first operator that differs is {label}" if label else "no operator differs alone"


def _unscheduled(imported: Imported, inputs: Arrays) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The outputs, and all values on the way to them, as Relax's default build computes them."""
    module = relax.transform.ToNonDataflow()(imported.module)
    main = module["main"]
    variables = [
        binding.var
        for block in main.body.blocks
        for binding in block.bindings
        if isinstance(binding.var.ty, relax.TensorType)
    ]
    count = len(imported.outputs)
    outputs = [main.body.body]
    if count > 1 or isinstance(main.ret_ty, relax.TupleType):
        outputs = [relax.TupleGetItem(main.body.body, i) for i in range(count)]
    results = (
        list(main.ret_ty.fields) if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
    )
    types = relax.TupleType([*results, *(var.ty for var in variables)])
    body = relax.SeqExpr(main.body.blocks, relax.Tuple([*outputs, *variables]))
    whole = relax.Function(main.params, body, types).with_attr("global_symbol", "main")
    module = tvm.IRModule({**dict(module.functions), module.get_global_var("main"): whole})
    module = relax.transform.Normalize()(module)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    arguments = [tvm.runtime.tensor(inputs[port.name]) for port in imported.inputs]
    arrays = [value.numpy() for value in machine["main"](*arguments)]
    return arrays[:count], arrays[count:]


def _first_unknown(
    model: Model, program: Program, inputs: Arrays, known: Sequence[np.ndarray]
) -> str | None:
    """The label of the first step with a result that, in any layout, is none of `known`, and from
    which none of `known` follows."""
    blamed: dict[int, str] = {}  # value -> the first step from which it is unknown
    suspects: dict[str, None] = {}
    for step, (label, arrays) in zip(program.steps, model.steps(inputs), strict=True):
        before = [blamed[v] for v in map(program.root, step.reads) if v in blamed]
        for number in step.outputs:
            if any(_is_same(arrays[number], one) for one in known):
                for earlier in before:
                    suspects.pop(earlier, None)
            else:
                blamed[program.root(number)] = first = before[0] if before else label
                suspects.setdefault(first)
    return next(iter(suspects), None)


def _is_same(array: np.ndarray, known: np.ndarray) -> bool:
    """Whether `array` is `known` as it is, in blocks of channels filled up, or channels last."""
    for form in _forms(array, known.shape):
        if _difference(form, known.reshape(form.shape))[1] <= _SAME:
            return True
    return False


def _forms(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """`array` read as each layout that a tensor of `shape` may have been put into."""
    if array.size == math.prod(shape):
        yield array.reshape(shape)
        if array.ndim == len(shape) == 4:
            n, h, w, c = array.shape
            if (n, c, h, w) == shape:
                yield array.transpose(0, 3, 1, 2)
    if array.ndim == 5 and len(shape) == 4:
        n, chunks, h, w, block = array.shape
        plain = array.transpose(0, 1, 4, 2, 3).reshape(n, chunks * block, h, w)
        if (n, h, w) == (shape[0], *shape[2:]) and chunks == -(-shape[1] // block):
            yield plain[:, : shape[1]]
