"""ONNX's own tests of its operators, compiled as models: how many are right, refused, wrong.

    python scripts/figures/onnx_node_tests.py [--only TEXT] [--verbose]

Every test of the onnx package that has tensors of numbers is compiled twice: as it is, and with all
operands but the first tensor, of float32 if there is one, as constants, as files have shapes, axes
and weights. It is right where one of the two agrees with the package's own results and none
differs; refused where both are refused in one line; and anything else is wrong. Takes ten minutes
of two cores. The exit status is 0 whatever is found.

Quoted by docs/models.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import google.protobuf.message
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests
from sheet import Sheet, main, parser_of

from convtvm.dispatch.model import Model
from convtvm.errors import ConvtvmError
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.models.building import assemble
from convtvm.models.from_onnx import from_onnx
from convtvm.models.graph import make_program
from convtvm.models.program import Program

TOGETHER = 60  # models in one library
RELATIVE, ABSOLUTE = 1e-3, 1e-5  # as the package's own runner has it, but for numbers near 0


@dataclass
class Case:
    """A test in one of its two forms, and what became of it: right, refused or wrong, and why."""

    name: str
    form: str
    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    outputs: Sequence[np.ndarray]
    program: Program | None = None
    verdict: str = ""
    reason: str = ""

    def end(self, verdict: str, reason: object = "") -> None:
        lines = str(reason).strip().splitlines()
        self.verdict, self.reason = verdict, lines[0] if lines else type(reason).__name__


def tests(only: str) -> Iterator[tuple[str, onnx.ModelProto, list[Any], list[Any]]]:
    """Name, model, inputs and outputs of every test that is asked for: of single operators, and
    what PyTorch and others made of layers."""

    def is_asked_for(name: str) -> bool:
        # Expanded ones are the same in terms of other operators.
        return "_expanded" not in name and any(part in name for part in only.split(","))

    for test in collect_testcases(None):
        if test.model is not None and test.data_sets and is_asked_for(test.name):
            yield test.name, test.model, *test.data_sets[0]
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        for test in load_model_tests(kind=kind):
            if not is_asked_for(test.name):
                continue
            folder = Path(test.model_dir)
            inputs, outputs = (
                [_tensor(path) for path in _numbered(folder / "test_data_set_0", what)]
                for what in ("input", "output")
            )
            yield test.name, onnx.load(folder / "model.onnx"), inputs, outputs


def _numbered(folder: Path, what: str) -> list[Path]:
    """input_0.pb and so on, by number."""
    return sorted(folder.glob(f"{what}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))


def _tensor(path: Path) -> onnx.TensorProto | None:
    """The tensor in a file, None for a sequence or the like."""
    try:
        return onnx.TensorProto.FromString(path.read_bytes())
    except google.protobuf.message.DecodeError:
        return None


def cases(only: str) -> Iterator[Case]:
    """Both forms of all tests with tensors of numbers."""
    for name, model, inputs, outputs in tests(only):
        weights = {tensor.name for tensor in model.graph.initializer}
        names = [value.name for value in model.graph.input if value.name not in weights]
        arrays = [_array(value) for value in (*inputs, *outputs)]
        if any(array is None for array in arrays) or len(names) != len(inputs):
            continue
        given = dict(zip(names, arrays, strict=False))
        results = arrays[len(inputs) :]
        yield Case(name, "as it is", model, given, results)
        large = [name for name in names if given[name].size > 1] or names
        floats = [name for name in large if given[name].dtype == np.float32]
        kept = next(iter(floats or large), None)
        if kept is not None and len(names) > 1:
            fixed = _fixed(model, given, kept)
            yield Case(name, "constants", fixed, {kept: given[kept]}, results)


def _array(value: Any) -> np.ndarray | None:
    """A tensor of numbers; None for sequences, texts, missing ones and narrow types."""
    if isinstance(value, onnx.TensorProto):
        try:
            value = numpy_helper.to_array(value)
        except (TypeError, ValueError):
            return None
    if not isinstance(value, (np.ndarray, np.generic)):
        return None
    array = np.asarray(value)
    return array if array.dtype.kind in "fiub" and array.dtype.isnative else None


def _fixed(model: onnx.ModelProto, given: dict[str, np.ndarray], kept: str) -> onnx.ModelProto:
    """The model with all inputs but one as constants."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    inputs = [value for value in made.graph.input if value.name == kept]
    del made.graph.input[:]
    made.graph.input.extend(inputs)
    made.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in given.items() if name != kept
    )
    return made


def import_case(case: Case, folder: Path) -> None:
    """Give the case its program, or its end."""
    path = folder / "case.onnx"
    onnx.save(case.model, path)
    try:
        shapes = {name: tuple(array.shape) for name, array in case.inputs.items()}
        imported = from_onnx(path, shapes)
        case.program = make_program(imported, resolve("native", 1), [])
    except ConvtvmError as error:
        case.end("refused", error)
    except Exception as error:
        case.end("wrong", f"{type(error).__name__}: {error}")


def run_cases(some: Sequence[Case]) -> None:
    """Compile these together and run each; one by one if that fails."""
    target = resolve("native", 1)
    try:
        with Zygote() as zygote:
            content = assemble([(case.program, target) for case in some if case.program], zygote)
    except Exception as error:
        if len(some) == 1:
            some[0].end("refused" if isinstance(error, ConvtvmError) else "wrong", error)
            return
        middle = len(some) // 2
        run_cases(some[:middle])
        run_cases(some[middle:])
        return
    for case, manifest in zip(some, content.targets, strict=True):
        try:
            found = Model(replace(content, targets=[manifest]))(case.inputs)
        except Exception as error:
            case.end("wrong", f"{type(error).__name__}: {error}")
            continue
        compare(case, list(found) if isinstance(found, tuple) else [found])


def compare(case: Case, found: Sequence[np.ndarray]) -> None:
    """Right or wrong, by the package's own results."""
    for have, want in zip(found, case.outputs, strict=True):
        if have.shape != want.shape or have.dtype != want.dtype:
            case.end("wrong", f"{have.dtype} {have.shape}, expected {want.dtype} {want.shape}")
            return
        near = np.allclose(
            have.astype("float64"), want.astype("float64"), RELATIVE, ABSOLUTE, equal_nan=True
        )
        if not near:
            with np.errstate(all="ignore"):
                off = np.nanmax(np.abs(have.astype("float64") - want.astype("float64")))
            case.end("wrong", f"differs by {off:.2g}")
            return
    case.end("right")


def report(made: Sequence[Case], verbose: bool) -> dict[str, Any]:
    """Print the counts, reasons of refusals by how often, and whatever is wrong; the same for
    JSON."""
    by_name: dict[str, list[Case]] = {}
    wrong: list[str] = []
    for case in made:
        by_name.setdefault(case.name, []).append(case)
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    for name, both in by_name.items():
        verdicts = {case.verdict for case in both}
        found = "wrong" if "wrong" in verdicts else "right" if "right" in verdicts else "refused"
        counts[found] += 1
        for case in both:
            if case.verdict == found == "wrong":
                wrong.append(f"{name}, {case.form}: {case.reason}")
                print(f"wrong: {wrong[-1]}")
        if found == "refused":
            nodes = [node.op_type for node in both[-1].model.graph.node]
            refusals[f"{nodes[0] if len(nodes) == 1 else 'several'}: {_kind(both[-1])}"] += 1
            if verbose:
                print(f"refused: {name}: {both[-1].reason}")
    for reason, count in refusals.most_common():
        print(f"{count:4} {reason}")
    kinds = ("right", "refused", "wrong")
    print(", ".join(f"{counts[kind]} {kind}" for kind in kinds))
    return {**{kind: counts[kind] for kind in kinds}, "refusals": refusals, "what_is_wrong": wrong}


def _kind(case: Case) -> str:
    """The reason of a refusal without the names in front of it."""
    return case.reason.rpartition("): ")[2][:110]


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="tests whose name holds this, or one of A,B ...")
    parser.add_argument("--verbose", action="store_true", help="list every refusal")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    """Compile, run, report."""
    warnings.simplefilter("ignore")
    made = list(cases(options.only))
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(made):
            import_case(case, Path(folder))
            if number % 100 == 99:
                print(f"{number + 1} of {len(made)} imported", file=sys.stderr, flush=True)
    ready = [case for case in made if case.program is not None]
    for start in range(0, len(ready), TOGETHER):
        run_cases(ready[start : start + TOGETHER])
        print(f"{start + TOGETHER} of {len(ready)} run", file=sys.stderr, flush=True)
    sheet.found = report(made, options.verbose)


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
