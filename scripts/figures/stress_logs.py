#!/usr/bin/env python3
"""Tuning logs of runs that were killed, written by two at once, mixed, torn and damaged.

    scripts/figures/stress_logs.py [--kills 50] [--trials 24] [--seed 0] [--keep FOLDER]

Runs of `convtvm tune` are killed by SIGKILL at random moments, in turn the process alone and its
whole group, and resumed until all trials are done; then a new log begins. Two more write one log at
once. Three logs are joined in every order; lines are torn and garbage put between them. After each:
every line is a record or named by file and line, no candidate was tried twice, no process is left,
nothing was removed from the log, and the winners are those of the clean records. The exit status
is 1 if anything of it is not so.

Quoted by docs/command-line.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
from sheet import Sheet, main, parser_of

from convtvm.logs import records
from convtvm.logs.records import TuningRecord

WORKLOAD = "mb1ic8ih6oc8oh6kh3ph1"
ALGORITHMS = "direct,winograd:2"
TOKEN = "CONVTVM_STRESS"  # every process of a run has it in its environment
PATIENCE = 60.0  # seconds that processes may take to end, on a busy machine
GARBAGE = b"\xff\xfe\x00\x01garbage"

Winners = dict[tuple[Any, ...], TuningRecord | None]


class Stress:
    """One call of this script: what was done, what was found, and what was wrong."""

    def __init__(self, folder: Path, trials: int, seed: int) -> None:
        self.folder, self.trials = folder, trials
        self.random = random.Random(seed)
        self.token = f"{os.getpid()}-{time.time()}"
        self.rows: list[tuple[str, str]] = []
        self.faults: list[str] = []

    def expect(self, fine: bool, fault: str) -> None:
        if not fine:
            self.faults.append(fault)
            print(f"WRONG: {fault}", flush=True)

    def note(self, what: str, found: str) -> None:
        self.rows.append((what, found))
        print(f"{what}: {found}", flush=True)

    def start(self, log: Path, trials: int | None = None, seed: int = 0) -> subprocess.Popen[str]:
        """A run of `convtvm tune`, in a process group of its own."""
        command = [sys.executable, "-m", "convtvm", "tune", WORKLOAD, "--threads", "1"]
        command += ["--algorithms", ALGORITHMS, "--trials", str(trials or self.trials)]
        command += ["--log", str(log), "--seed", str(seed), "--quiet", "--json"]
        return subprocess.Popen(
            command,
            env=dict(os.environ, **{TOKEN: self.token}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, run: subprocess.Popen[str], what: str) -> dict[str, Any]:
        """What a run says that ends by itself."""
        out, err = run.communicate()
        self.expect(run.returncode == 0, f"{what}: exit status {run.returncode}: {err}")
        self.expect_nothing_left(what)
        return dict(json.loads(out)) if run.returncode == 0 else {"measured": -1, "problems": []}

    def expect_nothing_left(self, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.expect(not left, f"{what}: processes left: {left}")

    def processes(self) -> list[psutil.Process]:
        """Those of the runs that still live."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(TOKEN) == self.token:
                    found.append(process)
            except psutil.Error:  # gone, or somebody else's
                continue
        return found

    def read(self, log: Path, damaged: Iterable[int] = ()) -> list[TuningRecord]:
        """The records of a log whose lines `damaged`, counted from 1, are none."""
        found, problems = records.load([log])
        named = [(p.path, p.line) for p in problems]
        wanted = [(str(log), line) for line in damaged]
        self.expect(named == wanted, f"{log.name}: lines {named} are named, expected {wanted}")
        lines = len([line for line in log.read_bytes().split(b"\n") if line.strip()])
        self.expect(lines == len(found) + len(named), f"{log.name}: lines are lost")
        return found

    def expect_once(self, made: Iterable[TuningRecord], what: str, most: int = 1) -> None:
        # Winners of a race run in the next one again: times of different races do not compare.
        counts = Counter(r.identity for r in made if not r.confirmed)
        twice = [identity for identity, count in counts.items() if count > most]
        self.expect(not twice, f"{what}: measured more than {most}x: {twice}")


def clean_winners(made: Iterable[TuningRecord]) -> Winners:
    """The winner of every task, from each record once and in an order of its own."""
    return winners([records.parse_line(line) for line in sorted({r.to_line() for r in made})])


def winners(made: Sequence[TuningRecord]) -> Winners:
    keys = dict.fromkeys(r.task_key for r in made)
    return {key: records.best(r for r in made if r.task_key == key) for key in keys}


# ---- kills ---------------------------------------------------------------------------------------


def kills(stress: Stress, count: int) -> list[Path]:
    """Kill runs at random moments and resume them; the finished logs."""
    clean = stress.folder / "clean.jsonl"
    started = time.monotonic()
    run = stress.start(clean)
    while run.poll() is None and not (clean.exists() and clean.stat().st_size):
        time.sleep(0.02)
    opening = time.monotonic() - started
    whole = stress.finish(run, "the undisturbed run")
    logs, done, moments = [clean], 0, Counter[str]()
    while done < count:
        log = stress.folder / f"killed-{len(logs)}.jsonl"
        torn: list[int] = []
        while done < count:
            size = log.stat().st_size if log.exists() else 0
            run = stress.start(log, seed=len(logs))
            if not _outlives(run, stress.random.uniform(0.05, 2) * opening):
                stress.finish(run, log.name)
                moments["(and others ended before their kill)"] += 1
                break
            _kill(stress, run, log, torn, done % 2 == 1)
            moments[_moment(log, size)] += 1
            done += 1
        last = stress.finish(stress.start(log, seed=len(logs)), f"last run of {log.name}")
        again = stress.finish(stress.start(log, seed=len(logs)), f"one more of {log.name}")
        found = stress.read(log, torn)
        stress.expect_once(found, log.name)
        trials = sum(not r.confirmed for r in found)
        stress.expect(trials == whole["measured"], f"{log.name}: {trials} trials")
        stress.expect(last["measured"] + last["reused"] == trials, f"{log.name}: {_told(last)}")
        stress.expect(
            again["measured"] + again["confirmed"] == 0, f"{log.name} again: {_told(again)}"
        )
        stress.expect(winners(found) == clean_winners(found), f"{log.name}: other winners")
        stress.note(log.name, f"{trials} trials, {len(found) - trials} confirmed, {len(torn)} torn")
        logs.append(log)
    stress.note(f"{done} runs killed", ", ".join(f"{n} {what}" for what, n in moments.items()))
    return logs


def _told(said: dict[str, Any]) -> dict[str, Any]:
    return {what: said[what] for what in ("measured", "confirmed", "reused")}


def _outlives(run: subprocess.Popen[str], seconds: float) -> bool:
    """Whether the run still goes on after that time."""
    try:
        run.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _moment(log: Path, size: int) -> str:
    """What a killed run was doing, to judge by what it added to a log of `size` bytes."""
    added = log.read_bytes()[size:] if log.exists() else b""
    if not added:
        return "before their first line"
    return "while confirming" if b'"confirmed":true' in added else "while tuning"


def _kill(
    stress: Stress, run: subprocess.Popen[str], log: Path, torn: list[int], group: bool
) -> None:
    """Kill a run and look at what it leaves; a line that it tore is added to `torn`."""
    before = log.read_bytes() if log.exists() else b""
    if group:
        os.killpg(run.pid, signal.SIGKILL)
    else:
        run.kill()
    try:
        run.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        stress.expect(False, f"{log.name}: something holds the pipes of a killed run")
    stress.expect_nothing_left(f"{log.name}, killed")
    if not log.exists():
        return
    content = log.read_bytes()
    stress.expect(content.startswith(before), f"{log.name}: what was written has changed")
    last, number = content.split(b"\n")[-1], content.count(b"\n") + 1
    if last and not _is_record(last) and number not in torn:
        torn.append(number)
    made = stress.read(log, torn)
    stress.expect_once(made, f"{log.name}, killed")
    stress.expect(winners(made) == clean_winners(made), f"{log.name}, killed: other winners")


# ---- two writers, cat, damage --------------------------------------------------------------------


def two_writers(stress: Stress) -> Path:
    """Two runs append to one log at the same time."""
    log = stress.folder / "both.jsonl"
    runs = [stress.start(log, seed=seed) for seed in (1, 2)]
    said = [stress.finish(run, f"writer {n}") for n, run in enumerate(runs, start=1)]
    found = stress.read(log)
    counts = [(s["measured"], s["confirmed"]) for s in said]
    stress.expect(sum(map(sum, counts)) == len(found), f"both.jsonl: {counts}, {len(found)} lines")
    stress.expect_once(found, "both.jsonl", most=2)
    stress.expect(winners(found) == clean_winners(found), "both.jsonl: other winners")
    again = stress.finish(stress.start(log), "one more of both.jsonl")
    stress.expect(again["measured"] == 0, f"both.jsonl: {again['measured']} measured again")
    stress.note("two writers", f"(measured, confirmed) {counts}, {len(found)} lines")
    return log


def cat(stress: Stress, logs: Sequence[Path]) -> None:
    """Join logs in every order; then damage the result and go on writing."""
    every = [record for log in logs for record in records.load([log])[0]]
    expected = clean_winners(every)
    for number, order in enumerate(itertools.permutations(logs)):
        joined = stress.folder / "joined.jsonl"
        joined.write_bytes(b"".join(log.read_bytes() for log in order))
        damaged = [p.line for p in records.load([joined])[1]]  # torn by the kills
        stress.expect(winners(stress.read(joined, damaged)) == expected, f"cat, order {number}")
        _damage(stress, joined, expected)
    run = stress.start(joined, trials=4 * stress.trials)
    before = joined.read_bytes()
    said = stress.finish(run, "a run after the damage")
    content = joined.read_bytes()
    stress.expect(content.startswith(before), "the damaged log was rewritten")
    made = stress.read(joined, [p.line for p in records.load([joined])[1]])
    stress.expect(
        len(made) == len(every) + said["measured"] + said["confirmed"],
        f"after the damage: {len(made)} records of {len(every)} and {said['measured']} new ones",
    )
    stress.expect(bool(said["problems"]), "the run named no damaged line")
    stress.note(
        f"cat of {len(logs)} logs in {number + 1} orders, damaged",
        f"{len(every)} records, {len(said['problems'])} lines named, "
        f"{said['reused']} trials reused, {said['measured']} new",
    )


def _damage(stress: Stress, log: Path, expected: Winners) -> None:
    """Put torn lines and garbage between the lines of a log, and a torn one at its end."""
    lines = log.read_bytes().splitlines(keepends=True)
    for rubbish in (GARBAGE + b"\n", os.urandom(64).replace(b"\n", b"") + b"\n"):
        lines.insert(stress.random.randrange(len(lines)), b"\xff" + rubbish)
    for _ in range(2):
        cut = stress.random.choice(lines)
        torn = cut[: stress.random.randrange(1, max(2, len(cut) - 2))]
        lines.insert(stress.random.randrange(len(lines)), torn + b"\n")
    lines.append(lines[0][: len(lines[0]) // 2])
    log.write_bytes(b"".join(lines))
    bad = [number for number, line in enumerate(lines, start=1) if not _is_record(line)]
    stress.expect(len(bad) >= 5, f"{log.name}: {len(bad)} damaged lines, expected 5 or more")
    stress.expect(winners(stress.read(log, bad)) == expected, f"{log.name}, damaged: winners")


def _is_record(line: bytes) -> bool:
    """By its looks alone: one whole JSON object."""
    try:
        return isinstance(json.loads(line.decode("utf8")), dict)
    except ValueError:
        return False


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--trials", type=int, default=24, help="for each of two algorithms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the logs, kept afterwards")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if options.keep:
            options.keep.mkdir(parents=True)
        stress = Stress(options.keep or Path(folder), options.trials, options.seed)
        started = time.monotonic()
        logs = kills(stress, options.kills)
        cat(stress, [two_writers(stress), *logs[:2]])
    print()
    width = max(len(what) for what, _ in stress.rows)
    for what, found in stress.rows:
        print(f"{what:{width}}  {found}")
    wrong = f"{len(stress.faults)} things are wrong" if stress.faults else "nothing is wrong"
    print(f"{wrong}; {time.monotonic() - started:.0f} s")
    sheet.found = {"rows": dict(stress.rows), "faults": stress.faults}
    return bool(stress.faults)


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
