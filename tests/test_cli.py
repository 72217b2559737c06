"""The command line: every refusal, the logs, and tune -> compile -> run in separate processes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from support import LONG
from warm import beginning

from convtvm.cli import commands, main
from convtvm.cli.options import Bytes
from convtvm.cli.output import short, significant
from convtvm.problem.sources import BUILTIN_NETWORKS, read_source
from convtvm.problem.workload import ConvWorkload

ROOT = Path(__file__).resolve().parents[1]
LINE = "mb1ic8ih6oc8oh6kh3ph1"
WORKLOAD = ConvWorkload.parse(LINE)
TRIALS = 2

# For processes that tests start, themselves or through the tuner.
PATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

# (exit status, stdout, stderr) of a command line
Result = tuple[int, str, str]
Convtvm = Callable[..., Result]


@pytest.fixture
def convtvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Convtvm:
    """Run a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PATH)

    def call(*args: str | Path) -> Result:
        status = main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return call


def separate(folder: Path, *args: str | Path, code: str = "", begin: Sequence[str] = ()) -> Result:
    """The same in a process of its own; `code` runs instead of the module. By default a new one,
    which has to import what it needs."""
    command = begin or [sys.executable, *(["-c", code] if code else ["-m", "convtvm"])]
    done = subprocess.run(
        [*command, *map(str, args)],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=PATH),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    return done.returncode, done.stdout, done.stderr


def refused(result: Result, *parts: str) -> None:
    """Exit status 2, nothing on stdout, one line on stderr with these parts."""
    status, out, err = result
    assert (status, out) == (2, ""), result
    assert err.startswith("convtvm: error: ") and err.count("\n") == 1, err
    assert [part for part in parts if part not in err] == [], err


# ---- help ----------------------------------------------------------------------------------------

HELP = """
import sys
from convtvm.cli import main
commands = [[], ["tune"], ["compile"], ["run"], ["info"], ["log"]]
commands += [["log", name] for name in ("list", "best", "merge", "check")]
for command in commands:
    assert main([*command, "--help"]) == 0
heavy = {"tvm", "tvm_ffi", "numpy", "rich", "xgboost"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    status, out, err = separate(tmp_path, code=HELP)
    assert status == 0, err
    assert out.count("Usage: convtvm") == 10 and "SOURCE is a network" in out
    assert all(network in out for network in BUILTIN_NETWORKS)


def test_version(convtvm: Convtvm) -> None:
    status, out, _ = convtvm("--version")
    assert status == 0 and out.startswith("convtvm, version ")


@pytest.mark.parametrize("group", [[], ["log"]])
def test_group_alone_shows_help_and_is_misuse(convtvm: Convtvm, group: list[str]) -> None:
    status, out, err = convtvm(*group)
    assert (status, out) == (2, "") and "Commands:" in err


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["tune"], ["compile", "-o", "x.so"]])
@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("resnet19", ["neither a network", "did you mean resnet18?"]),
        ("net.onnx", ["cannot read net.onnx", "No such file"]),
        ("mb1ic8ihx", ["token 'ih' at character 7", "'x'"]),
        ("mb1ic8ih6zz3", ["unknown token 'zz3' at character 10"]),
        ("mb1ic8ih2oc8kh7", ["kh is 7", "padded input's 2"]),
        ("ic8id8ih8oc8kd3kh3", ["3-D"]),
        (".", ["cannot read .", "directory"]),
        ("bad.txt", ["bad.txt:2", "unknown token 'what'"]),
        ("empty.txt", ["holds no workload"]),
    ],
)
def test_source_is_refused(
    convtvm: Convtvm, tmp_path: Path, command: list[str], source: str, parts: list[str]
) -> None:
    (tmp_path / "bad.txt").write_text(f"{LINE}\nwhat\n", encoding="utf8")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf8")
    refused(convtvm(*command, source), *parts)
    assert not list(tmp_path.glob("*.so")) and not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([LINE, "--target", "toaster"], ["unknown target 'toaster'", "native"]),
        ([LINE, "--target", "cuda:sm_1"], ["unknown CUDA architecture 'sm_1'", "sm_90"]),
        ([LINE, "--algorithms", "dierct"], ["unknown algorithm 'dierct'", "direct"]),
        ([LINE, "--algorithms", ","], ["--algorithms", "separated by commas"]),
        (["mb1ic8ih6oc8kh1", "--algorithms", "winograd"], ["none of winograd:2", "1x1"]),
        ([LINE, "--log", "nowhere/x.jsonl"], ["cannot write log nowhere/x.jsonl"]),
        ([LINE, "--log", "."], ["--log"]),
        ([LINE, "--trials", "0"], ["--trials", "0"]),
        ([LINE, "--threads", "0"], ["--threads"]),
        ([LINE, "--time-limit", "nan"], ["--time-limit", "seconds above 0"]),
        ([LINE, "--layout", "CHWN"], ["--layout", "CHWN", "NHWC"]),
        (
            [LINE, "--target", "cuda:sm_90", "--tracker", "127.0.0.1:1", "--key", "k"],
            ["no tracker answers at 127.0.0.1:1"],
        ),
        (
            [LINE, "--target", "cuda:sm_80,sm_90", "--tracker", "127.0.0.1:1", "--key", "k"],
            ["devices of a tracker have one architecture", "--target cuda:sm_90"],
        ),
        ([LINE, "--tracker", "127.0.0.1:1"], ["--tracker and --key belong together"]),
        ([LINE, "--tirals", "3"], ["--tirals", "convtvm tune --help"]),
        ([], ["SOURCE"]),
    ],
)
def test_tune_is_refused(convtvm: Convtvm, args: list[str], parts: list[str]) -> None:
    refused(convtvm("tune", *args), *parts)


def takers_of_text() -> list[tuple[tuple[str, ...], str]]:
    """(command, option or argument) of all that take a text."""
    found = []

    def look(group: click.Group, before: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                look(command, (*before, name))
                continue
            for param in command.params:
                if param.default != "" and not getattr(param, "is_flag", False):
                    is_option = isinstance(param, click.Option)
                    found.append(((*before, name), param.opts[0] if is_option else ""))

    look(commands, ())
    return found


@pytest.mark.parametrize(("command", "option"), takers_of_text(), ids=str)
def test_empty_text_is_refused(
    convtvm: Convtvm, command: tuple[str, ...], option: str, tmp_path: Path
) -> None:
    """As a value of its own, or behind `=`; before anything is read or written."""
    ways = [["x", option, ""], ["x", f"{option}="]] if option.startswith("--") else [[option, ""]]
    for args in ways:
        refused(convtvm(*command, *filter(None, args[:-1]), args[-1]), option, "it is empty")
    assert list(tmp_path.iterdir()) == []


def test_no_peers_and_no_epilogues_are_empty(convtvm: Convtvm) -> None:
    refused(convtvm("bench", "no", "--peers", ""), "'no'")
    refused(convtvm("compile", "no", "--epilogues", "", "-o", "x.so"), "'no'")


def test_tune_for_another_machine_is_refused(convtvm: Convtvm) -> None:
    other = "avx2" if platform.machine() == "aarch64" else "aarch64"
    refused(convtvm("tune", LINE, "--target", other), "cannot be tuned here", platform.machine())


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([LINE], ["-o"]),
        ([LINE, "-o", "nowhere/x.so"], ["cannot write nowhere/x.so", "no folder nowhere"]),
        ([LINE, "-o", "."], ["not a plain file"]),
        ([LINE, "-o", "/dev/null"], ["not a plain file"]),
        ([LINE, "-o", "x.so", "--log", "no.jsonl"], ["cannot read log no.jsonl"]),
        ([LINE, "-o", "x.so", "--target", "toaster"], ["unknown target 'toaster'"]),
        ([LINE, "-o", "x.so", "--keep", "some"], ["--keep", "some", "pareto"]),
        ([LINE, "-o", "x.so", "--algorithms", "dierct"], ["unknown algorithm 'dierct'", "direct"]),
        ([LINE, "-o", "x.so", "--batch", "0"], ["--batch", "0", "x>=1"]),
        ([LINE, "-o", "x.so", "--epilogues", "swish"], ["epilogue is 'swish'", "none, clip, add"]),
        ([LINE, "-o", "x.so", "--target", "avx2,aarch64"], ["targets of one library", "aarch64"]),
        ([LINE, "-o", "x.so", "--target", "avx2,toaster"], ["unknown target 'avx2,toaster'"]),
    ],
)
def test_compile_is_refused(convtvm: Convtvm, args: list[str], parts: list[str]) -> None:
    refused(convtvm("compile", *args), *parts)


MISSING = """
import sys
from convtvm.cli import main
sys.modules[sys.argv[1]] = None
sys.exit(main(["tune", "mb1ic8ih6oc8oh6kh3ph1"]))
"""


def test_missing_package_is_named(tmp_path: Path) -> None:
    refused(separate(tmp_path, "tvm", code=MISSING), "pip install apache-tvm,")
    status, _, err = separate(tmp_path, "convtvm.tuning.tuner", code=MISSING)
    assert status == 1 and "Traceback" in err  # a module of our own: our bug


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", BUILTIN_NETWORKS)
def test_short_descriptor_means_the_same(network: str) -> None:
    for w in read_source(network):
        assert ConvWorkload.parse(short(w)) == w and len(short(w)) < len(w.key)


@pytest.mark.parametrize("text", [LINE, "mb1ic8iw64oc8kw3pw1", "g8mb2ic8ih9oc8oh4kh3sh2"])
def test_short_descriptor_of_any_shape(text: str) -> None:
    w = ConvWorkload.parse(text)
    assert ConvWorkload.parse(short(w)) == w


def test_significant_digits() -> None:
    values = {0.0: "0.000", 1.23456: "1.235", 0.000123456: "0.0001235", 98765.4: "98765"}
    assert {value: significant(value) for value in values} == values


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("64k", 65536), ("1.5M", 1572864), ("2GiB", 2**31)]
)
def test_bytes(text: str, size: int) -> None:
    assert Bytes().convert(text, None, None) == size


# ---- tune, without tuning ------------------------------------------------------------------------


def test_interrupt_prints_what_there_is(convtvm: Convtvm, monkeypatch: pytest.MonkeyPatch) -> None:
    from convtvm.kernels.task import tasks_of
    from convtvm.tuning import tuner

    def stopped(workloads: Sequence[ConvWorkload], target: Any, **options: Any) -> Any:
        tasks = [tuner.TaskProgress(t, 2) for t in tasks_of(workloads, target)]
        return tuner.TuningSummary(tasks, options["log"], stopped="interrupted")

    monkeypatch.setattr(tuner, "tune", stopped)
    status, out, err = convtvm("tune", LINE)
    assert status == 130 and "the next run resumes" in err
    assert "mb1ic8ih6oc8kh3ph1" in out and "0 trials measured" in out
    status, out, _ = convtvm("tune", LINE, "--json")
    assert status == 130 and json.loads(out)["stopped"] == "interrupted"


def test_interrupt_elsewhere(convtvm: Convtvm, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convtvm.cli.environment.gather", interrupt)
    assert convtvm("info")[0] == 130


# ---- tune -> compile -> run ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, servers: Callable[[], str]) -> Path:
    """A folder with x.jsonl and x.so (LINE, tuned) and two.so (LINE and another one, untuned)."""
    folder, begin = tmp_path_factory.mktemp("tuned"), beginning(servers())
    options = ("--threads", "1", "--log", "x.jsonl")
    tune = (LINE, *options, "--trials", TRIALS, "--algorithms", "direct")
    status, out, err = separate(folder, "tune", *map(str, tune), begin=begin)
    assert status == 0, err
    assert "mb1ic8ih6oc8kh3ph1" in out and f"{TRIALS} trials measured, " in out
    assert ", 0 reused" in out
    assert f"[{TRIALS}/{TRIALS}] mb1ic8ih6oc8kh3ph1 direct {TRIALS}/{TRIALS}: best" in err
    best = ("--keep", "best")
    made = ("compile", LINE, "-o", "x.so", *options, *best)
    status, out, err = separate(folder, *made, begin=begin)
    assert status == 0 and "direct" in out and "untuned" not in out + err
    (folder / "two.txt").write_text(f'{LINE}n"first"\nmb1ic4ih5oc8kh1n"second"\n', "utf8")
    made = ("compile", "two.txt", "-o", "two.so", *best, "--json")
    status, out, err = separate(folder, *made, begin=begin)
    assert status == 0 and "2 of 2 workloads untuned" in err and "--log FILE" in err
    assert len(json.loads(out)["workloads"]) == 2
    return folder


def test_compile_what_was_asked_for(convtvm: Convtvm) -> None:
    """--batch and --algorithms; the hint repeats them."""
    options = ("--batch", "3", "--algorithms", "mec:b,winograd:2", "--keep", "all")
    status, out, err = convtvm("compile", LINE, "-o", "x.so", *options, "--json")
    assert status == 0 and "--batch 3 --algorithms mec:b,winograd:2 --log FILE" in err, err
    (made,) = json.loads(out)["workloads"]
    assert made["workload"] == replace(WORKLOAD, n=3).key
    assert {c["algorithm"] for c in made["candidates"]} == {"mec:b", "winograd:2"}
    refused(
        convtvm("compile", "mb1ic8ih6oc8kh1", "-o", "y.so", "--algorithms", "winograd"),
        "none of the algorithms",
    )
    assert not Path("y.so").exists()


def test_tune_resumes(convtvm: Convtvm, tuned: Path, tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    lines = (tuned / "x.jsonl").read_bytes().splitlines(keepends=True)[:TRIALS]
    log.write_bytes(b"".join(lines)[:-40])  # torn in the last trial
    options = ("--threads", "1", "--log", log, "--algorithms", "direct", "--quiet", "--json")
    status, out, err = convtvm("tune", LINE, *options, "--trials", TRIALS)
    assert status == 0 and f"x.jsonl:{TRIALS}: " in err, err
    found = json.loads(out)
    assert (found["measured"], found["reused"]) == (1, TRIALS - 1)
    (task,) = found["tasks"]
    assert task["workload"] == WORKLOAD.key and task["trials"] == TRIALS
    assert 0 < task["best_secs"] <= task["default_secs"] and task["max_error"] < 1e-5
    assert task["library_secs"] > 0 and found["confirmed"] > 0 and task["ended"]


RUN = """
import sys
from convtvm.cli import main
status = main(sys.argv[1:])
assert not {"tvm", "xgboost", "torch"} & set(sys.modules), "what takes seconds was imported"
sys.exit(status)
"""


def test_run_without_the_compiler(tuned: Path) -> None:
    args = ("run", "x.so", "--check", "--print-time", "--repeat", "2")
    status, out, err = separate(tuned, *args, code=RUN)
    assert (status, err) == (0, "")
    assert "median ms" in out and "error" in out and "direct" in out


def test_run_on_given_arrays(convtvm: Convtvm, tuned: Path, tmp_path: Path) -> None:
    ones = {"data": np.ones((1, 8, 6, 6), np.float32), "weight": np.ones((8, 8, 3, 3))}
    np.savez(tmp_path / "in.npz", **ones)
    args = ("--inputs", "in.npz", "--outputs", "out", "--json", "--check", "--workload", LINE)
    status, out, _ = convtvm("run", tuned / "x.so", *args)
    (entry,) = json.loads(out)["runs"]
    assert status == 0 and entry["error"] == 0 and entry["correct"]
    result = np.load(tmp_path / "out")["out"]
    assert result.shape == (1, 8, 6, 6) and result[0, 0, 2, 2] == 72 and result[0, 0, 0, 0] == 32


def test_run_every_workload(convtvm: Convtvm, tuned: Path, tmp_path: Path) -> None:
    status, out, _ = convtvm("run", tuned / "two.so", "--outputs", "o.npz", "--repeat", "1")
    assert status == 0 and "first" in out and "second" in out and "GFLOP/s" in out
    with np.load(tmp_path / "o.npz") as arrays:
        assert {n: a.shape for n, a in arrays.items()} == {
            "out_0": (1, 8, 6, 6),
            "out_1": (1, 8, 5, 5),
        }


@pytest.mark.parametrize(
    ("policy", "reason"),
    [("logged", "measured while tuning"), ("measure", "measured here and now")],
)
def test_run_by_a_policy(convtvm: Convtvm, tuned: Path, policy: str, reason: str) -> None:
    status, out, _ = convtvm("run", tuned / "x.so", "--policy", policy, "--json")
    (entry,) = json.loads(out)["runs"]
    assert status == 0 and entry["decisions"] == "tuned" and reason in entry["why"]


def test_decisions_of_another_number_of_threads(
    convtvm: Convtvm, tuned: Path, tmp_path: Path
) -> None:
    """Used and said so by compile and by run; their times are predictions."""
    options = ("--threads", "2", "--log", tuned / "x.jsonl", "--keep", "best", "-o", "x.so")
    status, out, err = convtvm("compile", LINE, *options, "--epilogues", "clip, add")
    assert status == 0 and "transferred from 1 thread" in out and " ~" in out, out
    assert "taking decisions that were tuned for" in err and "1 of 1 workload untuned" in err
    status, out, _ = convtvm("run", "x.so", "--json", "--policy", "predicted", "--check")
    (entry,) = json.loads(out)["runs"]
    assert status == 0 and entry["decisions"] == "transferred from 1 thread"
    assert entry["tuned_secs"] is None and "predicted" in entry["why"]
    status, out, _ = convtvm("compile", LINE, *options, "--json")
    (candidate,) = json.loads(out)["workloads"][0]["candidates"]
    assert status == 0 and candidate["predicted_secs"] > 0 and candidate["run_secs"] is None
    assert (candidate["decisions"], candidate["source"]) == ("transferred", "1 thread")


def test_run_finds_a_wrong_answer(
    convtvm: Convtvm, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "convtvm.problem.reference.relative_error", lambda out, expected: float("nan")
    )
    status, out, err = convtvm("run", tuned / "x.so", "--check", "--json")
    assert status == 1 and "wrong answer" in err
    assert json.loads(out)["runs"][0]["correct"] is False


def test_run_checks_what_is_not_finite(convtvm: Convtvm, tmp_path: Path) -> None:
    """Where the right answer is not finite, the same is right; Winograd spreads it and overflows,
    and is told so."""
    options = ("--threads", "1", "--keep", "all", "--algorithms", "direct,winograd:4")
    assert convtvm("compile", "mb1ic2ih9oc4kh3ph1", *options, "-o", "x.so")[0] == 0
    ordinary = np.random.default_rng(0).standard_normal((1, 2, 9, 9)).astype(np.float32)
    spoilt = ordinary.copy()
    spoilt[0, 0, 0, 0], spoilt[0, 1, 5, 5] = np.nan, np.inf
    weight = np.random.default_rng(1).uniform(1e-7, 1e-6, (4, 2, 3, 3))
    for data in (spoilt, 1e38 * np.sign(ordinary)):
        np.savez("in.npz", data=data, weight=weight)
        args = ("run", "x.so", "--inputs", "in.npz", "--check", "--algorithm")
        status, out, err = convtvm(*args, "direct")
        assert (status, err) == (0, "") and "direct" in out
        status, _, err = convtvm(*args, "winograd")
        assert status == 1 and err.count("\n") == 1
        assert "may overflow on data above 6.9e+36; `--algorithm direct` has neither" in err


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--workload", "mb1ic9ih6oc8kh3"], ["no kernel for", "nearest"]),
        (["--workload", "mb1ic8ihx"], ["token 'ih'"]),
        (["--algorithm", "mec"], ["algorithm mec", "direct"]),
        (["--max-error", "0"], ["max error 0", "direct"]),
        (["--policy", "guess"], ["--policy", "'guess'", "'measure'"]),
        (["--workspace-limit", "few"], ["'few' is no size"]),
        (["--outputs", "nowhere/o.npz"], ["no folder nowhere"]),
        (["--inputs", "no.npz"], ["cannot read no.npz", "No such file"]),
        (["--inputs", "."], ["cannot read ."]),
        (["--inputs", "text.npz"], ["cannot read text.npz"]),
        (["--inputs", "cut.npz"], ["cannot read cut.npz"]),
        (["--inputs", "one.npy"], ["one array without a name"]),
        (["--inputs", "objects.npz"], ["cannot read objects.npz", "allow_pickle"]),
        (["--inputs", "dataless.npz"], ["no array 'data'", "it holds weight"]),
        (["--inputs", "shape.npz"], ["data has shape (8, 6, 6), expected (1, 8, 6, 6)"]),
        (["--inputs", "bias.npz"], ["bias has shape (9,), expected (8,)"]),
        (["--inputs", "whole.npz"], ["weight is int64, expected float32"]),
        (["--inputs", "extra.npz"], ["unknown array 'biases'"]),
    ],
)
def test_run_is_refused(
    convtvm: Convtvm, tuned: Path, tmp_path: Path, args: list[str], parts: list[str]
) -> None:
    data, weight = np.ones((1, 8, 6, 6), np.float32), np.ones((8, 8, 3, 3), np.float32)
    (tmp_path / "text.npz").write_text("no arrays", encoding="utf8")
    np.save(tmp_path / "one.npy", data)
    files: dict[str, dict[str, Any]] = {
        "objects": {"data": np.array([None]), "weight": weight},
        "dataless": {"weight": weight},
        "shape": {"data": data[0], "weight": weight},
        "bias": {"data": data, "weight": weight, "bias": np.ones(9)},
        "whole": {"data": data, "weight": np.ones((8, 8, 3, 3), int)},
        "extra": {"data": data, "weight": weight, "biases": np.ones(8)},
    }
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "extra.npz").read_bytes()[:-30])
    refused(convtvm("run", tuned / "x.so", *args), *parts)


def test_run_needs_one_workload_for_its_inputs(convtvm: Convtvm, tuned: Path) -> None:
    refused(convtvm("run", tuned / "two.so", "--inputs", "x.npz"), "2 workloads", "--workload")


def test_run_refuses_what_is_no_library(convtvm: Convtvm, tuned: Path, tmp_path: Path) -> None:
    refused(convtvm("run", "no.so"), "cannot read library no.so")
    refused(convtvm("run", tuned / "x.jsonl"), "not a convtvm library")
    (tmp_path / "cut.so").write_bytes((tuned / "x.so").read_bytes()[:-1])
    refused(convtvm("run", "cut.so"), "cut short")


# ---- info ----------------------------------------------------------------------------------------


def test_info(convtvm: Convtvm) -> None:
    status, out, _ = convtvm("info")
    assert status == 0 and "apache-tvm" in out and "native target" in out
    status, out, _ = convtvm("info", "--json")
    facts = json.loads(out)
    assert status == 0 and set(facts) == {
        "versions",
        "cpu",
        "target",
        "compilers",
        "cache",
        "missing",
    }
    assert facts["cpu"]["cores"] >= 1 and facts["versions"]["Python"]


def test_info_says_what_is_missing(convtvm: Convtvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(sys.modules, "convtvm.machine.targets", None)
    status, out, _ = convtvm("info")
    assert status == 0 and "missing: ld (for tune and compile): install binutils" in out
    assert "missing: native target: " in out
