"""`convtvm bench`: the table and the document, beside peers that stand in for the optional ones."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convtvm import __version__
from convtvm.cli import main
from convtvm.cli.benching import bench as command
from convtvm.cli.benching import geomean
from convtvm.compare import bench, peers
from convtvm.compare.bench import BenchRow, Measured
from convtvm.compare.conditions import Neighbours
from convtvm.library.build import compile as compile_library
from convtvm.machine.cpu import device_name, facts
from convtvm.measure.timing import Timing
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload
from convtvm.version import with_commit

LINE = 'mb1ic8ih6oc8oh6kh3ph1n"tiny"'
CHATTER = b"The device supports everything\n"


def slow_peer(
    w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int
) -> dict[str, peers.Run]:
    """Right, and prints past Python as C++ libraries do."""
    os.write(1, CHATTER)
    answer = conv2d_reference(w, data, weight, bias, "NCHW").astype(np.float32)

    def run(seconds: float) -> np.ndarray:
        time.sleep(seconds)
        return answer

    return {"slow": lambda: run(2e-3), "slow-nhwc": lambda: run(1e-3)}


def broken_peer(
    w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int
) -> dict[str, peers.Run]:
    """Does not get on with one of its own dependencies, for one of two layers."""
    if w.name == "tiny":
        raise RuntimeError("gencode 6 is newer than runtime 5\nand more")
    return slow_peer(w, data, weight, bias, threads)


def wrong_peer(
    w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int
) -> dict[str, peers.Run]:
    return {"wrong": lambda: np.ones(w.out_shape("NCHW"), np.float32)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(peers.PEERS, "slow", (slow_peer, ("numpy",)))
    monkeypatch.setitem(peers.PEERS, "broken", (broken_peer, ("numpy",)))
    monkeypatch.setitem(peers.PEERS, "wrong", (wrong_peer, ("numpy",)))
    monkeypatch.setitem(peers.PEERS, "absent", (slow_peer, ("no_such_package",)))


def test_document(capfd: pytest.CaptureFixture[str]) -> None:
    args = ["bench", LINE, "--threads", "1", "--peers", "slow", "--repeat", "3", "--json"]
    assert main(args) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)  # nothing but the document
    assert CHATTER.decode() in err
    assert (found["threads"], len(found["layers"])) == (1, 1)
    assert found["peak_flops"] > 1e9
    (layer,) = found["layers"]
    assert layer["name"] == "tiny" and layer["chosen"] in layer["algorithms"]
    assert {"direct", "im2col", "mec:b", "winograd:2"} <= set(layer["algorithms"])
    for ours in layer["algorithms"].values():
        assert ours["seconds"] > 0 and ours["max_error"] < 1e-4 and ours["workspace_bytes"] >= 0
    assert set(layer["peers"]) == {"slow", "slow-nhwc"}
    assert layer["peers"]["slow"]["least"] >= 2e-3 and layer["peers"]["slow-nhwc"]["least"] >= 1e-3
    best = min(peer["seconds"] for peer in layer["peers"].values())
    assert layer["speedup"] == best / layer["algorithms"][layer["chosen"]]["seconds"]
    assert found["geomean"] == pytest.approx(layer["speedup"])
    assert found["worst"] == layer["speedup"]
    assert layer["share_of_ceiling"] > 0 and layer["share_of_peak"] > 0
    assert found["machine"] == facts() and found["versions"]["apache-tvm"]
    figures = [*layer["algorithms"].values(), *layer["peers"].values()]
    assert all(f["spread"] >= 0 and f["least"] <= f["seconds"] for f in figures)
    assert found["noise"]["figures"] == len(figures)


def test_plot_is_of_the_document(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = ["bench", LINE, "--threads", "1", "--peers", "slow", "--repeat", "3", "--json"]
    assert main([*args, "--plot", "p.svg"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["device"] == device_name()
    drawn = (tmp_path / "p.svg").read_text("utf8")
    assert "tiny" in drawn and "slow" in drawn and found["device"].split(" (")[0] in drawn
    assert f"convtvm {with_commit(__version__)}" in drawn


def test_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", LINE, "--threads", "1", "--repeat", "3", "--layout", "NHWC"]) == 0
    out, _ = capfd.readouterr()
    assert "threads 1, NHWC" in out and "tiny" in out and "% peak" in out and "% ceiling" in out
    assert "geomean" not in out  # nobody to compare with
    assert f"machine   {device_name()}" in out and f"convtvm {with_commit(__version__)}" in out


@pytest.mark.parametrize(("others", "spread"), [(0.4, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_a_noisy_run_is_not_called_good(
    others: float,
    spread: float,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Because of what else ran, or of how far the figures lie apart."""
    same = Timing(1e-3, 1e-3, spread, 9)
    monkeypatch.setattr(bench, "interleave", lambda runs, *_: dict.fromkeys(runs, same))
    monkeypatch.setattr(Neighbours, "share", lambda self: others)
    args = ["bench", LINE, "--threads", "1", "--repeat", "3"]
    assert main(args) == 0
    out, err = capfd.readouterr()
    noisy = bool(others or spread)
    assert ("measure again on a machine at rest" in err) == noisy
    assert ("1.000~" in out) == bool(spread) and ("took 40 % of the cores" in err) == bool(others)
    assert main([*args, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["noise"]["good"] is not noisy


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_peer_that_fails_costs_only_its_own_figure(
    form: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "two.txt"
    source.write_text(f'{LINE}\nmb1ic8ih5oc8oh5kh1n"other"\n')
    args = ["bench", str(source), "--threads", "1", "--repeat", "3", "--peers", "broken,wrong"]
    assert main([*args, *form]) == 0
    out, err = capfd.readouterr()
    why = "RuntimeError: gencode 6 is newer than runtime 5"
    assert f"broken took no part in 1 of 2 layers: {why}" in err
    assert "wrong took no part in 2 of 2 layers: ConvtvmError: relative error" in err
    if form:
        first, second = json.loads(out)["layers"]
        assert first["absent"]["broken"] == why and first["peers"] == {}
        assert first["speedup"] is None
        assert set(second["absent"]) == {"wrong"} and set(second["peers"]) == {"slow", "slow-nhwc"}
    else:
        assert "geomean" in out and "(other)" in out


def row(speed: float, rivals: dict[str, float]) -> BenchRow:
    ours = {"direct": Measured(speed, 1e-7), "im2col": Measured(speed / 2, 1e-7)}
    theirs = {name: Measured(seconds, 1e-7) for name, seconds in rivals.items()}
    return BenchRow(ConvWorkload.parse(LINE), "direct", ours, theirs)


def test_ratio_is_of_the_chosen_to_the_best_peer() -> None:
    """Not of our fastest, which is not what a user gets, and not of the peers' mean."""
    assert row(2.0, {"a": 3.0, "b": 5.0}).speedup == 1.5
    assert row(2.0, {"a": 3.0, "b": 5.0}).best_peer == ("a", 3.0)
    assert row(2.0, {}).speedup is None


def test_the_ceiling_counts_an_algorithms_own_products() -> None:
    w = ConvWorkload.parse("mb1ic8ih8oc8kh3ph1")
    measured = {"direct": Measured(2.0, 1e-7), "winograd:2": Measured(1.0, 1e-7)}
    assert BenchRow(w, "direct", measured, {}).multiplied == w.flops / 2
    assert BenchRow(w, "winograd:2", measured, {}).multiplied == w.flops * 16 / 36


class Clock:
    """Passes while one sleeps; the process is busy in these sleeps by such shares of a core."""

    def __init__(self, *shares: float) -> None:
        self.now, self.cpu, self.shares = 0.0, 0.0, list(shares)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.cpu += seconds * self.shares.pop(0)

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def process_time(self) -> float:
        return self.cpu


def test_a_figure_is_of_the_kernel_whose_name_it_has() -> None:
    """`direct` is a family too, whose fastest kernel another call would get."""
    w = ConvWorkload.parse("ic8ih9oc8kh3ph4dh3")
    library = compile_library([w], threads=1, logs=[], keep="all", algorithms=["direct"])
    _, weight, bias = random_inputs(w, 0)
    plans = bench.plans_of(library, w, weight, bias)
    assert len(plans) > 1
    assert {name: plan.algorithm for name, plan in plans.items()} == {name: name for name in plans}
    for c in library.candidates(w):
        assert plans[c.algorithm].workspace_bytes == c.workspace_bytes


def test_waits_until_the_threads_of_others_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """For two looks in a row, as threads pause; but not for ever."""
    clock = Clock(1.0, 0.0, 0.5, 0.05, 0.0, 7.0)
    monkeypatch.setattr(bench, "time", clock)
    bench._until_others_sleep()
    assert clock.shares == [7.0]
    clock.shares = [1.0] * 1000
    bench._until_others_sleep()
    assert len(clock.shares) > 800


def test_geomean() -> None:
    assert geomean([2.0, 0.5, 8.0]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--peers", "cudnn"], "unknown peer 'cudnn'; expected one of torch, onnxruntime"),
        (["--peers", "absent"], "peer 'absent' needs no_such_package: pip install no_such_package"),
        (["--peers", "slow", "--layout", "NHWC"], "peers run NCHW, the library is NHWC"),
        (["--repeat", "2"], "2 is not in the range x>=3"),
    ],
)
def test_refusals(args: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", LINE, "--threads", "1", *args]) == 2
    out, err = capfd.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_help_names_all_peers() -> None:
    named: Any = next(p.help for p in command.params if p.name == "peers")
    shipped = [name for name in peers.PEERS if name not in ("slow", "broken", "wrong", "absent")]
    assert ",".join(shipped) in named
