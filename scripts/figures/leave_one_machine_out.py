"""What a CPU that no log was made for loses: leave one machine out, decide by the others' logs.

    python scripts/figures/leave_one_machine_out.py [LOG...] [--alone] [--json FILE]
    python scripts/figures/leave_one_machine_out.py --measure [--seconds 600] [--threads 1,2]

Without LOG: the logs that come along. Every machine's records are left out in turn, and its tasks
decided by those of the others, as `compile` does. Shown for each algorithm: for how many tasks the
others have decisions, how many of these decisions the machine's own records timed (`timed`; in a
log of winners only those that won here too), and what they lose against the best of its records.
The line `choice` is about the algorithm that the others' records name for each workload: its best
record against the fastest of all.

With --measure, tuned, transferred and default decisions of the machine at hand run side by side,
one workload after another in an order drawn by --seed, until --seconds are over. There, `choice`
is the kernel that a plan takes by itself, against the one that it takes by the machine's own log.
Run it on a quiet machine; ratios that something disturbed are counted as such, and the exit status
is 3 after a noisy run.

Quoted by docs/performance.md.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sheet import Sheet, main, parser_of

from convtvm.compare.bench import interleave
from convtvm.dispatch import KernelLibrary
from convtvm.errors import LogError
from convtvm.kernels.task import Task, tasks_of
from convtvm.library.build import assemble
from convtvm.library.choices import Choice, choose, keep_some
from convtvm.logs import records
from convtvm.logs.prediction import best_records
from convtvm.logs.records import TuningRecord
from convtvm.machine import cpu
from convtvm.machine.targets import resolve
from convtvm.measure.client import Zygote
from convtvm.problem.reference import random_inputs
from convtvm.problem.workload import ConvWorkload

CHOICE = "choice"  # the name of the line about algorithms


class Setting(NamedTuple):
    """Where records were made: they compare with each other only there."""

    device: str
    target: str
    threads: int
    layout: str

    @classmethod
    def of(cls, record: TuningRecord) -> Setting:
        return cls(record.device, record.target, record.threads, record.layout)

    def __str__(self) -> str:
        processor = self.target.partition("-mcpu=")[2].split(" ")[0] or self.target
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.device}, {processor}, {threads}, {self.layout}"


@dataclass
class Line:
    """One algorithm's tasks in a setting: how many there are, how many got `decided` by the records
    of others, and time ratios to the best, of those whose time is known."""

    tasks: int = 0
    decided: int = 0
    ratios: list[float] = field(default_factory=list)
    disturbed: int = 0

    def summary(self) -> dict[str, float | int]:
        """What is shown; ratios as what is lost, 0.1 for a tenth more time."""
        made = {"tasks": self.tasks, "decided": self.decided, "timed": len(self.ratios)}
        if not self.ratios:
            return made
        loss = math.exp(statistics.fmean(map(math.log, self.ratios))) - 1
        within = sum(r <= 1.05 for r in self.ratios) / len(self.ratios)
        worst = max(self.ratios)
        return {**made, "within": within, "loss": loss, "worst": worst, "disturbed": self.disturbed}


Table = dict[str, Line]  # by algorithm, `choice` the last


def split(
    history: Sequence[TuningRecord], setting: Setting
) -> tuple[list[TuningRecord], list[TuningRecord]]:
    """The setting's own records, and those of other machines."""
    own = [r for r in history if Setting.of(r) == setting]
    return own, [r for r in history if r.device != setting.device]


def left_out(history: Sequence[TuningRecord], setting: Setting, alone: bool = False) -> Table:
    """What the records of other machines decide for the tasks of this one, by its own times; or
    what is decided without any records, if it is `alone`."""
    own, others = split(history, setting)
    others = [] if alone else others
    target = resolve(setting.target, setting.threads)
    best = {(w, r.algorithm): r for w, r in best_records(own, target.kind)}
    tasks = [Task(w, name, target, setting.layout) for w, name in best]
    standings = records.standings(own)
    timed = {r.identity: standings[r.rivalry].seconds(r) for r in records.judged(own) if r.run_secs}
    table: Table = {}
    for choice in choose(tasks, others):
        task = choice.task
        line = table.setdefault(task.algorithm_name, Line())
        line.tasks += 1
        line.decided += choice.origin != "default"
        winner = best[task.workload, task.algorithm_name]
        ours = timed.get((*task.key, winner.template, *sorted(choice.decisions.items())))
        if ours is not None:
            line.ratios.append(ours / winner.seconds)
    table[CHOICE] = named(best, target, setting.layout, others)
    return table


def named(
    best: dict[tuple[ConvWorkload, str], TuningRecord],
    target: Any,
    layout: str,
    others: Sequence[TuningRecord],
) -> Line:
    """The algorithm that `compile` names first for each workload, where several were measured."""
    secs: dict[ConvWorkload, dict[str, float]] = {}
    for (w, name), r in best.items():
        secs.setdefault(w, {})[name] = r.seconds
    several = [w for w, times in secs.items() if len(times) > 1]
    line = Line()
    for first in keep_some(choose(tasks_of(several, target, layout), others), "best"):
        times = secs[first.task.workload]
        line.tasks += 1
        line.decided += first.origin != "default"
        if first.task.algorithm_name in times:
            line.ratios.append(times[first.task.algorithm_name] / min(times.values()))
    return line


# ---- measured on this machine --------------------------------------------------------------------


def measured(
    history: Sequence[TuningRecord], setting: Setting, until: float, seed: int, sheet: Sheet
) -> dict[str, Table]:
    """By `transferred` and `default`: their times over those of the tuned decisions, here and now;
    of as many workloads as there is time for."""
    own, others = split(history, setting)
    target = resolve(setting.target, setting.threads)
    tasks: dict[ConvWorkload, list[Task]] = {}
    for w, r in best_records(own):
        tasks.setdefault(w, []).append(Task(w, r.algorithm, target, setting.layout))
    order = sorted(tasks, key=lambda w: w.key)
    random.Random(seed).shuffle(order)
    tables: dict[str, Table] = {"transferred": {}, "default": {}}
    with Zygote() as zygote:
        for w in order:
            if time.monotonic() >= until:
                break
            by = {"tuned": own, "transferred": others, "default": []}
            choices = {rule: choose(tasks[w], made) for rule, made in by.items()}
            measure(choices, tables, zygote, sheet)
    return tables


def measure(
    choices: Mapping[str, Sequence[Choice]],
    tables: Mapping[str, Table],
    zygote: Zygote,
    sheet: Sheet,
) -> None:
    """The kernels that each rule chooses for one workload, in turn; added to the tables."""
    kernels = {identity(c): c for made in choices.values() for c in made}
    task = next(iter(kernels.values())).task
    data, weight, bias = random_inputs(task.workload, 0, task.layout)
    runs = {}
    for name, choice in kernels.items():
        content, objects = assemble([choice], {task.workload: ""}, zygote)
        plan = KernelLibrary(content, objects).plan(task.workload, weight, bias)
        out = np.empty(task.workload.out_shape(task.layout), np.float32)
        runs[name] = bound(plan, data, out)
    times = interleave(runs, repeat=12, threads=task.target.threads)
    for name, timing in times.items():
        sheet.time(f"{task.workload} {name}", timing, task.workload.flops, task.target)
    tuned = {c.task.algorithm_name: c for c in choices["tuned"]}
    (best,) = keep_some(choices["tuned"], "best")
    for rule, table in tables.items():
        (first,) = keep_some(choices[rule], "best")
        pairs = [(c.task.algorithm_name, c, tuned[c.task.algorithm_name]) for c in choices[rule]]
        for name, ours, other in [*pairs, (CHOICE, first, best)]:
            here, there = times[identity(ours)], times[identity(other)]
            line = table.setdefault(name, Line())
            line.tasks += 1
            line.decided += ours.origin != "default"
            line.ratios.append(here.seconds / there.seconds)  # 1 where both are one kernel
            line.disturbed += here.is_noisy or there.is_noisy


def identity(choice: Choice) -> str:
    """Equal for choices of the same kernel."""
    return f"{choice.task.algorithm_name} {sorted(choice.decisions.items())}"


def bound(plan: Any, data: np.ndarray, out: np.ndarray) -> Callable[[], Any]:
    return lambda: plan(data, out=out)


# ---- shown ---------------------------------------------------------------------------------------


def show(title: str, table: Table) -> None:
    """A line for each algorithm, the line of choices last."""
    print(f"\n{title}")
    print(
        f"  {'algorithm':26}{'tasks':>6}{'decided':>9}{'timed':>7}{'within 5%':>11}"
        f"{'loss':>8}{'worst':>8}{'disturbed':>11}"
    )
    for name in sorted(table, key=lambda name: (name == CHOICE, name)):
        found = table[name].summary()
        text = f"  {name:26}{found['tasks']:>6}{found['decided']:>9}{found['timed']:>7}"
        if table[name].ratios:
            text += f"{found['within']:>11.0%}{found['loss']:>8.1%}{found['worst']:>8.2f}"
            text += f"{found['disturbed']:>11}"
        print(text, flush=True)


def as_json(results: dict[tuple[Setting, str], Table]) -> list[dict[str, Any]]:
    return [
        {
            **setting._asdict(),
            "rule": rule,
            "lines": {
                name: {**asdict(line), "summary": line.summary()} for name, line in table.items()
            },
        }
        for (setting, rule), table in results.items()
    ]


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("logs", nargs="*", type=Path, metavar="LOG")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--layouts", default="NCHW")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    history, problems = records.load(options.logs or records.shipped_logs())
    for problem in problems:
        print(problem)
    history = [r for r in history if r.target.startswith("llvm")]
    settings = sorted({Setting.of(r) for r in history})
    results: dict[tuple[Setting, str], Table] = {}
    if options.measure:
        threads = {int(t) for t in options.threads.split(",")}
        here = [
            s
            for s in settings
            if (s.device, s.target) == (cpu.device_name(), resolve("native", 1).name)
            and s.threads in threads
            and s.layout in options.layouts.split(",")
        ]
        if not here:
            raise LogError(f"no record of {cpu.device_name()} for {resolve('native', 1).name}")
        for setting in here:
            sheet.peak(resolve(setting.target, setting.threads))
            until = time.monotonic() + options.seconds / len(here)
            for rule, table in measured(history, setting, until, options.seed, sheet).items():
                results[setting, rule] = table
                show(f"{setting}: {rule}", table)
    else:
        for setting in settings:
            table = results[setting, "records"] = left_out(history, setting, options.alone)
            show(f"{setting}: records", table)
    sheet.found["settings"] = as_json(results)


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
