"""Limits, workloads and logs as callers give them: taken where it is clear, else one line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import log_of, record_of

import convtvm
from convtvm.cli import main
from convtvm.dispatch import KernelLibrary
from convtvm.errors import ConvtvmError, LogError, NoCandidate, WorkloadError, check_number
from convtvm.kernels.task import Task
from convtvm.library.build import compile
from convtvm.machine.targets import resolve
from convtvm.problem.sources import as_names, as_workloads
from convtvm.problem.workload import ConvWorkload
from convtvm.tuning.tuner import tune

TEXT = "mb1ic4ih5oc4oh5kh3ph1"
W = ConvWorkload.parse(f'{TEXT}n"named"')
OTHER = ConvWorkload.parse("mb1ic4ih6oc4kh1")
WEIGHT = np.ones(W.weight_shape, np.float32)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = record_of(Task(W, "direct", resolve("native", 1)), 1e-3, 1e-7, 512)
    return log_of(tmp_path_factory.mktemp("log") / "x.jsonl", made)


@pytest.fixture(scope="module")
def library(log: Path) -> KernelLibrary:
    return compile(W, threads=1, logs=log, algorithms="direct")


def one_line(error: pytest.ExceptionInfo[ConvtvmError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# ---- numbers -------------------------------------------------------------------------------------

NO_NUMBERS: list[Any] = [
    math.nan,
    np.float32("nan"),
    True,
    False,
    "1k",
    "1e-3",
    "",
    [1],
    (1,),
    b"1",
]
NO_NUMBERS += [np.array([1, 2]), 1j, object(), np.True_]


def said(value: object) -> str:
    """A name for a test that is the same in every process: without places in memory."""
    return re.sub(r" at 0x\w+", "", repr(value))


@pytest.mark.parametrize("value", NO_NUMBERS, ids=said)
@pytest.mark.parametrize("name", ["workspace_limit", "max_error"])
def test_limits_that_are_no_numbers(library: KernelLibrary, name: str, value: Any) -> None:
    limits: dict[str, Any] = {name: value}
    with pytest.raises(ConvtvmError, match=f"{name} is .*, expected a number") as error:
        library.plan(W, WEIGHT, **limits)
    assert not isinstance(error.value, NoCandidate) and one_line(error)


@pytest.mark.parametrize("kind", [int, float, np.int64, np.uint8, np.float32, np.float64])
def test_limits_of_any_kind_of_number(library: KernelLibrary, kind: Callable[[int], Any]) -> None:
    (kernel,) = library.candidates(W)
    assert library.plan(W, WEIGHT, max_error=kind(1)).algorithm == "direct"
    many = kind(200)
    if kernel.workspace_bytes <= 200:
        assert library.plan(W, WEIGHT, workspace_limit=many).algorithm == "direct"
    assert library.plan(W, WEIGHT, workspace_limit=np.inf, max_error=math.inf)  # type: ignore[arg-type]
    for limits in ({"workspace_limit": kind(0) - 1.0}, {"max_error": kind(0) - 1.0}):
        with pytest.raises(NoCandidate):
            library.plan(W, WEIGHT, **limits)


TUNING = ["trials", "total_trials", "time_limit", "min_gain", "seed"]


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, -0.5, np.int64(-3)], ids=said)
@pytest.mark.parametrize("name", TUNING)
def test_tuning_limits(tmp_path: Path, name: str, value: Any) -> None:
    limits: dict[str, Any] = {name: value}
    with pytest.raises(ConvtvmError, match=f"{name} is .*, expected a (whole )?number of") as error:
        tune([W], threads=1, log=tmp_path / "x.jsonl", **limits)
    assert one_line(error) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [("trials", 2.5), ("trials", 0), ("total_trials", 0), ("seed", 1.0), ("min_gain", 100)],
)
def test_tuning_limits_that_are_out_of_range(tmp_path: Path, name: str, value: Any) -> None:
    limits: dict[str, Any] = {name: value}
    with pytest.raises(ConvtvmError, match=f"{name} is"):
        tune([W], threads=1, log=tmp_path / "x.jsonl", **limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, True, "2", 0, -1, 1.5, [1]], ids=said)
def test_threads(library: KernelLibrary, tmp_path: Path, value: Any) -> None:
    file = tmp_path / "x.so"
    library.export(file)
    for call in (
        lambda: convtvm.load(file, threads=value),
        lambda: compile(W, threads=value, logs=[]),
        lambda: tune(W, threads=value, log=tmp_path / "x.jsonl"),
    ):
        with pytest.raises(ConvtvmError, match=r"threads is .*, expected a whole number of 1 or"):
            call()
    assert convtvm.load(file, threads=np.int32(1)).threads == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.so"]


def test_numbers() -> None:
    assert type(check_number("x", np.float32(0.5))) is float
    assert type(check_number("x", np.uint8(3), whole=True)) is int
    with pytest.raises(LogError, match=r"^x is 1\.0, expected a whole number of 2 or more$"):
        check_number("x", 1.0, least=2, whole=True, kind=LogError)


@pytest.mark.parametrize(
    "options",
    [
        ["--max-error", "nan"],
        ["--max-error", "-1"],
        ["--max-error", "1k"],
        ["--workspace-limit", "nan"],
        ["--workspace-limit", "-1"],
        ["--workspace-limit", "inf"],
        ["--workspace-limit", "True"],
        ["--repeat", "nan"],
        ["--repeat", "0"],
    ],
    ids=" ".join,
)
def test_limits_of_run(
    library: KernelLibrary,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    library.export(tmp_path / "x.so")
    assert main(["run", str(tmp_path / "x.so"), *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and options[0] in err


@pytest.mark.parametrize("option", ["--time-limit", "--min-gain", "--trials", "--total-trials"])
@pytest.mark.parametrize("value", ["nan", "-1", "many", "True"])
def test_limits_of_tune(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    log = tmp_path / "x.jsonl"
    assert main(["tune", TEXT, "--threads", "1", "--log", str(log), option, value]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and not log.exists()


# ---- activation and residual ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.ones(3), None, "yes", 1, []], ids=said)
def test_residual_is_a_question(library: KernelLibrary, value: Any) -> None:
    with pytest.raises(ConvtvmError, match=r"expected True or False; .* plan\(x, residual=tensor"):
        library.plan(W, WEIGHT, residual=value)


@pytest.mark.parametrize(
    "value",
    ["elu", ("0", "6"), (0, math.nan), (6, 0), (1,), 3, (True, 2), np.array([0, 1, 2])],
    ids=said,
)
def test_activations(library: KernelLibrary, value: Any) -> None:
    with pytest.raises(ConvtvmError, match=r"activation is .*, expected"):
        library.plan(W, WEIGHT, activation=value)
    assert library.plan(W, WEIGHT, activation=np.array([0, 6]))  # type: ignore[arg-type]


# ---- workloads -----------------------------------------------------------------------------------


def test_what_stands_for_workloads(tmp_path: Path) -> None:
    file = tmp_path / "shapes"
    file.write_text(f"{W}\n{OTHER}\n")
    for given in (W, [W], (W,), {W: 1}, {W}, iter([W]), str(W), [str(W)], (w for w in [W])):
        assert as_workloads(given) == [W]
    for given in (file, str(file), [file], [W, OTHER], [str(W), OTHER], map(str, [W, OTHER])):
        assert as_workloads(given) == [W, OTHER]
    assert len(as_workloads("resnet18")) == 11 and as_workloads([]) == []


@pytest.mark.parametrize("given", [None, 3, b"mb1", [None], [W, 3], [[W]], object()], ids=said)
def test_what_does_not(tmp_path: Path, given: Any) -> None:
    for call in (
        lambda: compile(given, threads=1, logs=[]),
        lambda: tune(given, threads=1, log=tmp_path / "x.jsonl"),
    ):
        with pytest.raises(
            WorkloadError, match=r"workloads (is|holds a) .*, expected ConvWorkloads"
        ):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [[], (), "", "resnet19", iter([]), [""]], ids=said)
def test_no_workloads(tmp_path: Path, given: Any) -> None:
    held = list(given) if not isinstance(given, (str, list, tuple)) else given
    for call in (
        lambda: compile(held, threads=1, logs=[]),
        lambda: tune(held, threads=1, log=tmp_path / "x.jsonl"),
    ):
        with pytest.raises(ConvtvmError) as error:
            call()
        assert one_line(error)
    assert not list(tmp_path.iterdir())


def test_workload_of_a_plan(library: KernelLibrary) -> None:
    for given in (W, "named", str(W), TEXT):
        assert library.plan(given, WEIGHT).algorithm == "direct"
        assert len(library.candidates(given)) == 1
    for wrong, words in (
        ([W], "workload is a list, expected a ConvWorkload or its text"),
        (None, "workload is a NoneType"),
        (WEIGHT, "workload is a ndarray"),
        ("nameless", "nameless"),
    ):
        with pytest.raises(WorkloadError, match=words):
            library.plan(wrong, WEIGHT)  # type: ignore[arg-type]
        with pytest.raises(WorkloadError, match=words):
            library.candidates(wrong)  # type: ignore[arg-type]


# ---- logs, algorithms, files ---------------------------------------------------------------------


def test_logs_one_or_several(log: Path) -> None:
    for given in (log, str(log), [log], (str(log),), iter([log])):
        (candidate,) = compile(W, threads=1, logs=given, algorithms=["direct"]).candidates(W)
        assert candidate.run_secs == 1e-3


@pytest.mark.parametrize("given", [3, [3], [None], b"x.jsonl", [b"x"], True], ids=said)
def test_logs_that_are_none(tmp_path: Path, given: Any) -> None:
    with pytest.raises(LogError, match=r"logs is .*, expected paths of tuning logs"):
        compile(W, threads=1, logs=given)
    with pytest.raises(LogError, match=r"log is .*, expected the path of one tuning log"):
        tune(W, threads=1, log=given)


@pytest.mark.parametrize("given", [["a.jsonl"], None])
def test_one_log_to_write(given: Any) -> None:
    with pytest.raises(LogError, match=r"log is .*, expected the path of one tuning log"):
        tune(W, threads=1, log=given)


def test_names() -> None:
    assert as_names("direct,winograd", "x") == as_names(["direct", " winograd"], "x")
    assert as_names(None, "x") is None and as_names(iter(["a"]), "x") == ["a"]
    for wrong in (3, [3], b"direct", {"a": 1}.items()):
        with pytest.raises(WorkloadError, match=r"algorithms is .*, expected names"):
            compile(W, threads=1, logs=[], algorithms=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConvtvmError, match="epilogue is 'relu'"):
        compile(W, threads=1, logs=[], epilogues="clip,relu")
    with pytest.raises(ConvtvmError, match="target is None, expected text"):
        tune(W, target=None, threads=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, 3, b"x.so", "a\0b.so", ["x.so"]], ids=said)
def test_paths_of_libraries(given: Any) -> None:
    with pytest.raises(ConvtvmError, match="library") as error:
        convtvm.load(given)
    assert one_line(error)


@pytest.mark.parametrize("given", [None, 3.5, "a\0b.so", ["x.so"]], ids=said)
def test_paths_to_export_to(library: KernelLibrary, given: Any) -> None:
    with pytest.raises(ConvtvmError, match="cannot write library") as error:
        library.export(given)
    assert one_line(error)
