"""What goes into a library where a target has no records of its own, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support import record_of

from convtvm.errors import LogError
from convtvm.kernels.task import Task
from convtvm.library.choices import Choice, check_targets, choose, keep_some, stale
from convtvm.logs.records import TuningRecord
from convtvm.machine.targets import CompileTarget, is_near, resolve
from convtvm.problem.workload import ConvWorkload

W = ConvWorkload.parse("mb1ic8ih6oc16oh6kh3ph1")
LIKE_W = ConvWorkload.parse("mb1ic8ih7oc16oh7kh3ph1")
HERE = resolve("avx2", 1)
NEAR = resolve("llvm -mcpu=haswell", 1)
FAR = resolve("avx512", 1)
TWO = resolve("avx2", 2)
EIGHT = resolve("avx2", 8)
LOG = Path("x.jsonl")


def task(target: CompileTarget = HERE, w: ConvWorkload = W, name: str = "direct") -> Task:
    return Task(w, name, target)


def other_decisions(count: int = 1) -> list[dict[str, int]]:
    """Decisions that are not the default ones, but valid for both workloads."""
    space, alike = task().space, task(w=LIKE_W).space
    found = [d for d in space.points if d != space.default and alike.contains(d)]
    return found[:count]


def chosen(*made: TuningRecord, of: Task | None = None) -> Choice:
    (choice,) = choose([of or task()], made)
    return choice


def test_near_targets() -> None:
    assert is_near(HERE.name, HERE) and is_near(NEAR.name, HERE) and is_near(TWO.name, HERE)
    assert not is_near(FAR.name, HERE) and not is_near("llvm -mcpu=unheard-of", HERE)
    assert not is_near("", HERE) and not is_near(resolve("aarch64", 1).name, HERE)
    assert is_near("cuda -arch=sm_80", resolve("cuda:sm_90"))


def test_near_target_supplies_decisions() -> None:
    (decisions,) = other_decisions()
    made = record_of(task(NEAR), 2e-3, 3e-7, decisions=decisions)
    found = chosen(made)
    assert (found.record, found.origin, found.decisions) == (None, "transferred", decisions)
    assert (found.predicted_secs, found.max_error) == (2e-3, 3e-7)
    assert found.transferred_from == NEAR.name


def test_exact_record_wins() -> None:
    own = record_of(task(), 5e-3)
    found = chosen(record_of(task(NEAR), 1e-3), own)
    assert (found.record, found.origin, found.transferred_from) == (own, "tuned", "")


def test_far_target_supplies_nothing() -> None:
    found = chosen(record_of(task(FAR), 1e-3))
    assert (found.origin, found.predicted_secs, found.max_error) == ("default", None, None)
    assert found.decisions == task().space.default and found.transferred_from == ""


def test_another_number_of_threads_supplies_decisions() -> None:
    first, second = other_decisions(2)
    threaded = record_of(task(TWO), 1e-3, decisions=first)
    found = chosen(threaded)
    assert (found.decisions, found.transferred_from) == (first, "2 threads")
    assert found.predicted_secs == pytest.approx(2e-3)  # as if all threads were of use
    near = record_of(task(NEAR), 9e-3, decisions=second)
    assert chosen(threaded, near).decisions == second  # as many threads count more than the target
    both = record_of(task(resolve("llvm -mcpu=haswell", 2)), 1e-3)
    assert chosen(both).transferred_from == f"{NEAR.name}, 2 threads"


def test_decisions_of_one_thread_are_shared_out() -> None:
    """All 16 tiles in one panel are one turn, which leaves seven threads without work."""
    w = ConvWorkload.parse("mb1ic64ih14oc128oh14kh3ph1")
    alone, shared = (Task(w, "winograd:4", target) for target in (HERE, EIGHT))
    panel = {"panel_h": 4, "panel_w": 4, "images": 1, "tile_p": 4, "tile_oc": 2, "prefetch": 0}
    made = {**panel, "gemm_at_oc": 0, "input_first": 0}
    record = record_of(alone, 2e-3, 3e-7, decisions=made)
    found = chosen(record, of=shared)
    assert found.decisions == {**made, "gemm_at_oc": 1, "input_first": 1}
    assert (found.source, found.origin, found.predicted_secs) == (record, "transferred", 2.5e-4)


def test_decisions_of_another_batch_share_the_weight_anew() -> None:
    """All tiles of a 7 x 7 image are a panel of four; of all images one of cache size."""
    alone, four, eight = (
        task(w=ConvWorkload.parse(f"mb{n}ic32ih7oc32oh7kh3ph1"), name="winograd:4")
        for n in (1, 4, 8)
    )
    panel = {"panel_h": 2, "panel_w": 2, "images": 1, "tile_p": 4, "tile_oc": 2, "prefetch": 0}
    made = {**panel, "gemm_at_oc": 1, "input_first": 0}
    assert chosen(record_of(alone, 2e-3, decisions=made), of=eight).decisions["images"] == 8
    shared = {**made, "images": 8}
    assert chosen(record_of(eight, 2e-3, decisions=shared), of=four).decisions["images"] == 4
    assert chosen(record_of(eight, 2e-3, decisions=shared), of=alone).decisions == made


def test_times_of_other_threads_count_more_than_a_models() -> None:
    threaded = record_of(task(TWO), 4e-3)
    twin = chosen(threaded)
    guess = Choice(task(name="winograd:2"), None, predicted_secs=1e-3)
    similar = Choice(task(), None, threaded, threaded.decisions, 1e-3)
    assert twin.twin == threaded and twin.predicted_secs == 8e-3
    assert similar.rank() < twin.rank() < guess.rank()


def test_same_workload_goes_before_a_similar_one() -> None:
    first, second = other_decisions(2)
    similar = record_of(task(w=LIKE_W), 1e-3, decisions=first)
    found = chosen(similar)
    assert (found.decisions, found.transferred_from) == (first, LIKE_W.key)
    assert (found.predicted_secs, found.max_error) == (None, None)  # too few tasks for a model
    same = record_of(task(NEAR), 1e-3, decisions=second)
    assert chosen(similar, same).decisions == second


def test_decisions_that_failed_here_are_not_taken() -> None:
    first, second = other_decisions(2)
    failed = record_of(task(), None, decisions=first)
    made = [record_of(task(NEAR), 1e-3, decisions=first), failed]
    assert chosen(*made).origin == "default"
    made.append(record_of(task(TWO), 1e-3, decisions=second))
    assert chosen(*made).decisions == second


def test_confirmed_times_count() -> None:
    """As in an exact record: the winner of tuning that turned out slower is not the winner."""
    first, second = other_decisions(2)
    lucky = record_of(task(NEAR), 1e-3, decisions=first)
    made = [lucky, record_of(task(NEAR), 1.1e-3, decisions=second)]
    for record, secs in zip(list(made), (3e-3, 2e-3), strict=True):
        made.append(replace(record, run_secs=[secs], confirmed=True))
    for order in (made, made[::-1]):
        found = chosen(*order)
        assert (found.decisions, found.predicted_secs) == (second, 2e-3)


def raced(record: TuningRecord, secs: float) -> TuningRecord:
    return replace(record, run_secs=[secs], confirmed=True)


def test_nobody_is_chosen_by_a_trial_where_others_raced() -> None:
    """Two raced at 1.3 times their trials. The third, which had no time to, promised 2.13 ms: it
    counts with 2.77, and in a library as slower than both."""
    direct, im2col, mec = (task(name=n) for n in ("direct", "im2col", "mec:b"))
    tried = [record_of(direct, 1.74e-3), record_of(im2col, 2.0e-3), record_of(mec, 2.13e-3)]
    made = [*tried, raced(tried[0], 2.262e-3), raced(tried[1], 2.6e-3)]
    for order in (made, made[::-1]):
        found = {c.task: c for c in choose([mec, im2col, direct], order)}
        secs = [found[t].record.seconds for t in (direct, im2col, mec)]  # type: ignore[union-attr]
        assert secs == [2.262e-3, 2.6e-3, pytest.approx(2.769e-3)]
        assert names(keep_some(list(found.values()), "best")) == ["direct"]
    hasty = record_of(mec, 1.0e-3, decisions=mec.space.points[-1])
    found = {c.task: c for c in choose([mec, im2col, direct], [*made, hasty])}
    assert found[mec].decisions == hasty.decisions
    assert found[direct].rank() < found[mec].rank() < found[im2col].rank()


def test_an_untimely_race_of_another_kind_of_workload_does_not_count() -> None:
    """Races of other threads, targets and shapes say nothing."""
    own = record_of(task(), 1e-3)
    others = [raced(record_of(t, 5e-3), 5e-3) for t in (task(TWO), task(NEAR), task(w=LIKE_W))]
    assert chosen(own, *others).record == own


# ---- what is kept --------------------------------------------------------------------------------


def names(choices: Sequence[Choice]) -> list[str]:
    return [c.task.algorithm_name for c in choices]


def test_pareto_goes_by_what_was_measured_elsewhere() -> None:
    tasks = [task(name=n) for n in ("direct", "im2col", "mec:b")]
    made = [
        record_of(task(NEAR), 1e-3, 1e-7, 100),
        record_of(task(NEAR, name="im2col"), 2e-3, 1e-7, 100),
        record_of(task(NEAR, name="mec:b"), 2e-3, 1e-7, 99),
    ]
    assert names(keep_some(choose(tasks, made), "pareto")) == ["direct", "mec:b"]
    assert names(keep_some(choose(tasks, made), "best")) == ["direct"]
    assert len(keep_some(choose(tasks, made), "all")) == 3
    # A measured kernel is not left out for an expected time, which no policy has to believe.
    made.append(record_of(tasks[1], 3e-3, 1e-7, 100))
    assert names(keep_some(choose(tasks, made), "pareto")) == ["direct", "im2col", "mec:b"]
    assert names(keep_some(choose(tasks, made), "best")) == ["im2col"]


# ---- warnings and refusals -----------------------------------------------------------------------


def test_near_logs_are_used_with_a_warning() -> None:
    exact, near = record_of(task(), 1e-3), record_of(task(NEAR), 1e-3)
    assert check_targets([exact, near], HERE, "NCHW", [LOG]) == ""
    assert check_targets([], HERE, "NCHW", [LOG]) == ""
    warning = check_targets([near, record_of(task(FAR), 1e-3)], HERE, "NCHW", [LOG])
    assert warning == (
        f"no record for {HERE.name} with 1 threads, NCHW; taking decisions that were tuned for "
        f"{NEAR.name} with 1 threads, NCHW"
    )
    assert "2 threads" in check_targets([record_of(task(TWO), 1e-3)], HERE, "NCHW", [LOG])


def test_foreign_logs_are_refused() -> None:
    foreign = [record_of(task(FAR), 1e-3), replace(record_of(task(NEAR), 1e-3), layout="NHWC")]
    with pytest.raises(LogError, match=r"^x\.jsonl: no record for .*; the records are for ") as e:
        check_targets(foreign, HERE, "NCHW", [LOG])
    assert f"{FAR.name} with 1 threads, NCHW" in str(e.value) and "NHWC" in str(e.value)


def test_stale_records_of_a_near_target_are_named() -> None:
    made = record_of(task(NEAR), 1e-3)
    old = replace(made, template=made.template + 1)
    (choice,) = choose([task()], [old])
    assert choice.origin == "default"
    assert stale([old], [choice])[0].startswith(f"1 records of {W} by direct were made by another")
    (choice,) = choose([task()], [made, old])
    assert choice.origin == "transferred" and stale([made, old], [choice]) == []
