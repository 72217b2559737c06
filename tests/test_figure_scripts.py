"""What makes the figures of the documents: every script of scripts/figures says on what machine and
with what versions, writes JSON, and refuses to call a noisy run good. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import math
import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import log_of, record_of

import convtvm
from convtvm.compare import conditions
from convtvm.kernels.task import Task
from convtvm.machine import cpu
from convtvm.machine.targets import resolve
from convtvm.measure import peak, timing
from convtvm.measure.timing import Timing
from convtvm.problem.workload import ConvWorkload

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "figures"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if "__main__" in p.read_text("utf8"))
LINE = "mb1ic8ih6oc8oh6kh3ph1"
W = ConvWorkload.parse(f'{LINE}n"layer"')
KEYS = {"script", "options", "machine", "versions", "began", "seconds", "peaks", "times", "found"}
KEYS |= {"noise", "status"}
TIME = Timing(1e-3, 9e-4, 0.01, 9)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine at rest, with a peak of 100 GFLOP/s."""
    monkeypatch.setattr(peak, "measure_peak", lambda target: 1e11)
    monkeypatch.setattr(conditions.Neighbours, "share", lambda self: 0.01)
    monkeypatch.setattr(timing, "NOISY", math.inf)


# ---- each script, with its measurement in a few lines --------------------------------------------

Patch = pytest.MonkeyPatch
Setup = Callable[[ModuleType, Patch, Path], "list[str]"]  # -> the arguments of a short run


@dataclass(frozen=True)
class Case:
    """A short run of a script: whether it shows times, and whether these have a share of a peak."""

    script: str
    setup: Setup
    timed: bool = False
    of_peak: bool = False


def same_time(runs: dict[str, Any], repeat: int, threads: int) -> dict[str, Timing]:
    return dict.fromkeys(runs, TIME)


def only_direct(function: Callable[..., Any]) -> Callable[..., Any]:
    """What compiles, for one algorithm instead of ten."""
    return lambda ws, *args, **more: function(ws, *args, **{**more, "algorithms": ["direct"]})


def log(folder: Path) -> Path:
    """A trial of this machine and one of another for each of two algorithms."""
    made = [
        replace(record_of(Task(W, name, resolve("native", 1)), 1e-4), device=device)
        for name in ("direct", "winograd:2")
        for device in (cpu.device_name(), "another CPU")
    ]
    return log_of(folder / "log.jsonl", *made)


def trials(folder: Path, target: str = "native") -> str:
    """Six candidates of a layer and six of another, the first ones the fastest."""
    found = []
    for w in (W, replace(W, oc=16)):
        task = Task(w, "direct", resolve(target, 1))
        for number, decisions in enumerate(task.space.points[:6], start=1):
            found.append(record_of(task, 1e-4 * number, decisions=decisions))
    return str(log_of(folder / "trials.jsonl", *found))


def budgets(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script, "interleave", same_time)
    path = str(log(folder))
    return [LINE, "--logs", path, path, "--algorithms", "direct", "--warm"]


def costs(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr("convtvm.compare.bench.interleave", same_time)
    patch.setattr(script, "compile_library", only_direct(script.compile_library))
    return ["--run", "--source", f'{LINE}n"layer"']


def decisions(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script, "interleave", same_time)
    return [LINE, "direct", "--log", str(log(folder))]


def torch_models(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    pytest.importorskip("torch")
    row = {"model": "resnet18", "threads": 1, "flops": 10**9, "gain": 1.5, "rounds": 9}
    row |= {"times": dict.fromkeys(script.WAYS, vars(TIME)), "ms": dict.fromkeys(script.WAYS, 1.0)}
    row |= {"error": dict.fromkeys(script.WAYS, 1e-7), "planned": ["a"], "left": []}
    patch.setattr(script, "measure", lambda *args: row)
    return ["resnet18", "--threads", "1"]


def tuners(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script.records, "shipped_logs", list)  # put back afterwards
    for name in ("ours", "stock"):
        patch.setattr(script, name, lambda *args: (4, 2.0, 1e-3))
    return ["--workload", LINE, "--rounds", "2"]


def workspace_limits(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script, "read_source", lambda source: [W])
    patch.setattr(convtvm, "compile", only_direct(convtvm.compile))
    patch.setattr(script, "run", lambda *args: (0, 0, [1e-3] * 3))
    return ["--policy", "logged"]


def other_machines(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script, "interleave", same_time)
    return [str(log(folder)), "--measure", "--threads", "1"]


def overhead(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script, "burst", lambda call: call() is None or 1.5)
    return ["--rounds", "2"]


def startup(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    parts = dict.fromkeys([*script.TOLD, "load"], 0.5)
    patch.setattr(script, "start", lambda *args: parts)
    patch.setattr(script, "deploy", lambda *args: {"x.so": 1, "lib": 2})
    patch.setattr(convtvm, "compile", only_direct(convtvm.compile))
    return [LINE, "--repeat", "2"]


def ptxas(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    pool = SimpleNamespace(map=map)
    patch.setattr(script, "ProcessPoolExecutor", lambda jobs: _Entered(pool))
    patch.setattr(script.cubin, "find_compiler", lambda: SimpleNamespace(name="a compiler"))
    made = {("main_kernel", "sm_80"): script.cubin.Figures(32, 0, 0, 1024)}
    patch.setattr(script, "figures_of", lambda task: made)
    return [LINE, "--arches", "sm_80", "--algorithms", "direct"]


def accesses(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    counted = [script.Access("main_kernel", "shared", "copy", 16, 9, 72, 36, 2)]
    zygote = SimpleNamespace(call=lambda *_: [(0, SimpleNamespace(value=counted))])
    patch.setattr(script, "emulated", lambda: _Entered(zygote))
    return [LINE, "--dtypes", "tf32"]


def gpu_builds(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    row = {**dict.fromkeys(script.COLUMNS, 0.1), "whole": 0.5}
    builder = SimpleNamespace(build=lambda many: [row] * len(many), close=lambda: None)
    patch.setattr(script, "Builder", lambda checkout: builder)
    patch.setattr(script.nvrtc, "is_available", lambda: True)
    return ["--candidates", "4", "--rounds", "2", "--beside", str(folder)]


def gpu_runner(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script, "emulated", lambda: _Entered(None))
    patch.setattr(script, "built", lambda zygote: None)
    patch.setattr(script, "batches", lambda *_: (1e-3, 2e-3))
    return ["--rounds", "2"]


class _Entered:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *args: object) -> None:
        pass


def files_of_packages(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script, "report", lambda file, cache: {"max_error": 0.0})
    return ["pnet", "--cache", str(folder)]


def logs_in_danger(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    def noted(stress: Any, *args: object) -> list[Path]:
        stress.note("what was done", "what was found")
        return []

    for name in ("kills", "two_writers", "cat"):
        patch.setattr(script, name, noted)
    return []


def process(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(convtvm, "compile", only_direct(convtvm.compile))
    patch.setattr(script, "MANY", 2)
    patch.setattr(script, "show", lambda *args: (["[0.001, 0.001]", "all is well"], 0))
    return ["--workload", LINE]


def breaks(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(convtvm, "compile", only_direct(convtvm.compile))
    patch.setattr(script, "spinning", lambda call: 0.0)
    patch.setattr(script, "after", lambda call, pause: [TIME] * len(script.SHOWN))
    return [LINE, "--threads", "1", "--breaks", "0,10"]


def winograd(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    patch.setattr(script, "compile_library", only_direct(script.compile_library))
    return ["--source", LINE]


def networks(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    def write(name: str, into: Path, *args: object) -> list[Path]:
        (into / name).write_bytes(b"x")
        return [into / name]

    patch.setattr(script, "write", write)
    return [str(folder), "resnet18"]


def shapes(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    return [LINE, "--algorithms", "direct", "--workers", "1", "--opt-level", "0"]


def node_tests(script: ModuleType, patch: Patch, folder: Path) -> list[str]:
    """Of one operator: the package makes those of all when it is asked for any."""
    node = importlib.import_module("onnx.backend.test.case.node")
    only = lambda package: importlib.import_module(f"{package.__name__}.relu")  # noqa: E731
    patch.setattr(node, "import_recursive", only)
    return ["--only", "test_relu"]


CASES = [
    Case("check_shapes", shapes),
    Case("compare_budgets", budgets, timed=True, of_peak=True),
    Case("compare_costs", costs, timed=True, of_peak=True),
    Case("compare_costs", lambda *_: ["--source", LINE]),
    Case("compare_decisions", decisions, timed=True, of_peak=True),
    Case("compare_torch_models", torch_models, timed=True, of_peak=True),
    Case("compare_tuners", tuners, timed=True),
    Case("compare_workspace_limits", workspace_limits, timed=True, of_peak=True),
    Case("count_accesses", accesses),
    Case("evaluate_costs", lambda _script, _patch, folder: [str(log(folder))]),
    Case("evaluate_prediction", lambda _script, _patch, folder: [str(log(folder))]),
    Case("evaluate_transfer", lambda _script, _patch, folder: [trials(folder)]),
    Case("fit_gpu_costs", lambda *a: [trials(a[2], "cuda:sm_90"), "--sweeps=1", "--folds=2"]),
    Case("leave_one_machine_out", lambda _script, _patch, folder: [str(log(folder))]),
    Case("leave_one_machine_out", other_machines, timed=True, of_peak=True),
    Case("measure_gpu_builds", gpu_builds, timed=True),
    Case("measure_gpu_runner", gpu_runner, timed=True),
    Case(
        "measure_gpu_tuner",
        lambda *_: [LINE, "--trials", "3", "--rounds", "2"],
        timed=True,
    ),
    Case("measure_overhead", overhead, timed=True),
    Case("measure_startup", startup, timed=True),
    Case("onnx_node_tests", node_tests),
    Case("ptxas_figures", ptxas),
    Case("real_models", files_of_packages),
    Case("stress_logs", logs_in_danger),
    Case("stress_process", process, timed=True, of_peak=True),
    Case("stress_run_time", lambda *_: ["--threads=1", "--calls=1000", "--loads=100"], timed=True),
    Case("time_after_breaks", breaks, timed=True, of_peak=True),
    Case("winograd_error", winograd),
    Case("write_networks", networks),
]


def name_of(case: Case) -> str:
    return f"{case.script}{'-timed' if case.timed else ''}"


def run(case: Case, patch: Patch, folder: Path) -> tuple[int, dict[str, Any]]:
    """The exit status of a short run, and its JSON."""
    script, out = importlib.import_module(case.script), folder / "figures.json"
    given = [*case.setup(script, patch, folder), "--json", str(out)]
    sheet = importlib.import_module("sheet")
    with pytest.raises(SystemExit) as ended:
        sheet.main(script.arguments().parse_args(given), script.figures)
    return int(ended.value.code or 0), json.loads(out.read_text("utf8"))


def peaks_in(said: str) -> list[str]:
    """The lines that tell a measured peak."""
    return [line for line in said.splitlines() if " GFLOP/s, " in line]


def test_every_script_has_a_case() -> None:
    assert sorted({case.script for case in CASES}) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module(name)
    with pytest.raises(SystemExit) as ended:
        script.arguments().parse_args(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert str(script.__doc__).splitlines()[0] in said and "--json FILE" in said


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_quiet_run(
    case: Case, quiet: None, tmp_path: Path, monkeypatch: Patch, capsys: Any
) -> None:
    status, found = run(case, monkeypatch, tmp_path)
    said = capsys.readouterr().out
    assert status == found["status"] == 0, said
    assert set(found) == KEYS and found["script"] == case.script and found["found"]
    assert found["machine"] == cpu.facts() and f"machine   {cpu.device_name()}" in said
    assert found["versions"]["apache-tvm"] in said and "convtvm" in found["versions"]
    assert bool(found["times"]) == case.timed and found["noise"]["good"]
    assert ("noisy" in said) == case.timed
    for time_ in found["times"].values():
        assert time_["seconds"] >= time_["least"] > 0 and not time_["noisy"]
    shares = [t["share_of_peak"] for t in found["times"].values() if t["share_of_peak"]]
    assert bool(shares) == case.of_peak and (not shares or "GFLOP/s" in said)
    # Not in the middle of another line: tables are read by line.
    assert all(re.match(r"peak +\d+ GFLOP/s, .+, threads \d+$", line) for line in peaks_in(said))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_noisy_run_is_shown_and_refused(
    case: Case, quiet: None, tmp_path: Path, monkeypatch: Patch, capsys: Any
) -> None:
    """No time is as steady as this limit asks for."""
    monkeypatch.setattr(timing, "NOISY", -1.0)
    status, found = run(case, monkeypatch, tmp_path)
    said = capsys.readouterr().out
    assert status == found["status"] == (3 if case.timed else 0)
    assert found["found"], "figures are still shown"
    assert found["noise"]["good"] is not case.timed
    assert all(time_["noisy"] for time_ in found["times"].values())
    assert ("NOISY" in said) == case.timed
    if case.timed:
        (last,) = (line for line in said.splitlines() if line.startswith("NOISY"))
        assert "not good: measure again" in last
        assert last.startswith(f"NOISY: {len(found['times'])} of {len(found['times'])} time")


# ---- what they share -----------------------------------------------------------------------------


@pytest.fixture
def ways(importable: None) -> ModuleType:
    return importlib.import_module("sheet")


def ended(ways: ModuleType, figures: Any, path: Path | None = None) -> Any:
    with pytest.raises(SystemExit) as found:
        ways.main(Namespace(json=path), figures)
    return found.value.code


def test_company_alone_makes_a_run_noisy(
    ways: ModuleType, quiet: None, monkeypatch: Patch, capsys: Any
) -> None:
    """However steady the times look: a neighbour may have been there all the time."""
    monkeypatch.setattr(conditions.Neighbours, "share", lambda self: 0.5)
    assert ended(ways, lambda options, sheet: sheet.time("a", TIME) and None) == 3
    said = capsys.readouterr().out
    assert "NOISY: 0 of 1 time; spread 1.0 %" in said and "others took 50 % of the cores" in said
    assert ended(ways, lambda options, sheet: None) == 0, "without times noise means nothing"
    monkeypatch.setattr(conditions.Neighbours, "share", lambda self: None)
    assert ended(ways, lambda options, sheet: sheet.time("a", TIME) and None) == 0


def test_something_wrong_counts_for_more_than_noise(ways: ModuleType, quiet: None) -> None:
    def wrong(options: Namespace, sheet: Any) -> bool:
        sheet.time("a", replace(TIME, disturbed=True))
        return True

    assert ended(ways, wrong) == 1


def test_disturbed_times_are_marked_and_named(
    ways: ModuleType, quiet: None, tmp_path: Path
) -> None:
    shown: list[Any] = []

    def figures(options: Namespace, sheet: Any) -> None:
        shown.append(sheet.time("conv", TIME, flops=5e7))
        shown.append(sheet.time("conv", replace(TIME, disturbed=True)))

    out = tmp_path / "x.json"
    assert ended(ways, figures, out) == 3
    assert [s.mark for s in shown] == [" ", "~"]
    assert [s.about for s in shown] == ["±1.0 %, 50 % of peak", "±1.0 %"]
    assert json.loads(out.read_text())["noise"]["noisy"] == ["conv (2)"]


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(
    ways: ModuleType, tmp_path: Path, capsys: Any
) -> None:
    assert ended(ways, lambda *_: pytest.fail("it ran"), tmp_path / "none" / "x.json") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot write ") and err.count("\n") == 1


def test_mistakes_are_one_line(ways: ModuleType, quiet: None, capsys: Any) -> None:
    def figures(options: Namespace, sheet: Any) -> None:
        ConvWorkload.parse("nonsense")

    assert ended(ways, figures) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_json_is_strict(ways: ModuleType) -> None:
    import numpy as np

    odd = {1: math.nan, "a": (np.float32(2.5), np.int64(3), True, None), "p": Path("x")}
    assert ways.plain(odd) == {"1": None, "a": [2.5, 3, True, None], "p": "x"}


# ---- how noise is seen ---------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: Patch) -> Iterator[dict[str, float]]:
    """The clock, the cores' busy seconds and this process's own, to be set."""
    now = {"wall": 0.0, "busy": 0.0, "own": 0.0}
    monkeypatch.setattr(
        conditions.Neighbours, "_now", staticmethod(lambda: (now["wall"], now["busy"], now["own"]))
    )
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    yield now


def test_neighbours_are_what_is_busy_and_not_ours(clock: dict[str, float]) -> None:
    found = conditions.Neighbours()
    assert found.share() is None, "no time has passed"
    clock.update(wall=10.0, busy=15.0, own=9.0)
    assert found.share() == pytest.approx(0.3)
    clock.update(own=15.5)
    assert found.share() == 0.0, "clocks of different grain"


def test_neighbours_of_this_machine() -> None:
    """By the kernel's own files: this process is no neighbour of itself."""
    found = conditions.Neighbours()
    before, end = found._now(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    share, after = found.share(), found._now()
    assert share is None or share >= 0
    assert after[2] - before[2] > 0.2, "its own seconds"
    if before[1] is not None and after[1] is not None:
        assert after[1] - before[1] > 0.2, "which are among the busy ones"


def test_conditions_name_machine_and_versions() -> None:
    found = conditions.conditions()
    first, second = conditions.lines(found)
    assert cpu.device_name() in first and f"{cpu.physical_cores()} core" in first
    assert all(f"{name} {version}" in second for name, version in found["versions"].items())
    assert found["versions"]["convtvm"].startswith(convtvm.__version__)
    assert "no such package" not in conditions.conditions(["no such package"])["versions"]
