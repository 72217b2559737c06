"""Policies, reasons, batches in slices, activations and residuals of plans."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import log_of, record_of

from convtvm.dispatch import KernelLibrary, Plan, SlicedPlan
from convtvm.dispatch.manifest import Kernel
from convtvm.dispatch.selection import Wish, batches, choose
from convtvm.errors import ArrayError, ConvtvmError, NoCandidate, UnknownWorkload
from convtvm.kernels.task import Task
from convtvm.library.build import compile
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

NATIVE = resolve("native", 1)
ONE = ConvWorkload.parse("mb1ic6ih7oc10oh7kh3ph1")
TWO = replace(ONE, n=2)
ALGORITHMS = ["direct", "im2col"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    """Batches of one and two; direct with its epilogues, two images dearer than twice one."""
    made = [
        record_of(Task(ONE, "direct", NATIVE), 1e-3),
        record_of(Task(ONE, "im2col", NATIVE), 2e-3, max_error=2e-7),
        record_of(Task(TWO, "direct", NATIVE), 1.5e-3),
    ]
    log = log_of(tmp_path_factory.mktemp("log") / "x.jsonl", *made)
    return compile(
        [ONE, TWO], threads=1, logs=[log], keep="all", algorithms=ALGORITHMS, epilogues=["clip"]
    )


@pytest.fixture(scope="module")
def fused() -> KernelLibrary:
    return compile(
        [ONE], threads=1, logs=[], algorithms=["direct"], epilogues=["none", "clip", "add"]
    )


# ---- choice --------------------------------------------------------------------------------------


def kernel(name: str, secs: float | None, workspace: int, predicted: float | None = None) -> Kernel:
    return Kernel("w", name, f"f_{name}", "p", (1,), workspace, secs, 1e-7, "tuned", predicted)


def chosen(kernels: list[Kernel], policy: str, measured: dict[str, float] | None = None) -> str:
    return choose(ONE, kernels, Wish(policy=policy), measured).kernel.algorithm


def test_policies() -> None:
    logged, guessed = kernel("a", 2e-3, 0), kernel("b", None, 0, 1e-3)
    assert chosen([logged, guessed], "logged") == "a"
    assert chosen([logged, guessed], "predicted") == "b"
    assert chosen([guessed, logged], "measure", {"f_a": 3.0, "f_b": 4.0}) == "a"
    assert chosen([kernel("c", None, 0), guessed], "logged") == "c"  # in the order given
    assert chosen([kernel("c", None, 0), guessed], "predicted") == "b"
    with pytest.raises(ConvtvmError, match="policy is 'guess', expected one of logged, pred"):
        Wish(policy="guess")


def test_ties_go_to_the_smaller_workspace() -> None:
    for policy in ("logged", "predicted"):
        assert chosen([kernel("a", 1e-3, 9), kernel("b", 1e-3, 8)], policy) == "b"


def test_choice_in_words() -> None:
    kernels = [kernel("winograd:4", 1e-3, 500), kernel("direct", 2e-3, 0), kernel("mec:b", 4e-3, 8)]
    text = choose(ONE, kernels, Wish(workspace_limit=100)).explain()
    assert text == (
        "direct, the fastest of 2 candidates: 2 ms measured while tuning, workspace 0 B. "
        "Next: mec:b, 4 ms. Out by workspace limit 100: winograd:4 needs 500 B of workspace."
    )
    lonely = choose(ONE, [replace(kernels[1], run_secs=None, decisions="default")], Wish())
    assert lonely.explain() == (
        "direct, the only candidate: none was measured or predicted, so the first by cost, "
        "workspace 0 B. Its decisions are default, not tuned here."
    )
    guess = choose(ONE, [kernel("direct", None, 0, 3e-3)], Wish(policy="predicted")).explain()
    assert "direct, the fastest, the only candidate: 3 ms predicted" in guess


def test_measure_times_here_and_remembers(library: KernelLibrary) -> None:
    weight = np.ones(ONE.weight_shape, np.float32)
    first = library.plan(ONE, weight, policy="measure")
    assert "measured here and now" in first.explain()
    again = library.plan(ONE, weight, policy="measure")
    assert again.explain() == first.explain()
    assert library.plan(ONE, weight).algorithm == "direct"


# ---- batches -------------------------------------------------------------------------------------


def test_batches() -> None:
    assert batches(5, {1: 1.0, 2: 1.5}) == [2, 2, 1]
    assert batches(4, {1: 1.0, 2: 3.0}) == [1, 1, 1, 1]
    assert batches(7, {3: 1.0, 2: 1.0}) == [3, 2, 2]
    assert batches(4, {1: None, 3: None}) == [3, 1]
    assert batches(5, {2: 1.0, 4: 1.0}) == []
    assert batches(5, {}) == []


def test_batches_of_many_images() -> None:
    """The slices of few images, and many of the cheapest."""
    for sizes in ({1: 1.0, 7: 5.0, 16: 11.9}, {4: None, 6: None}, {5: 2.0, 8: 3.0}):
        for total in (240, 242, 251):
            few, many = (Counter(batches(n, sizes)) for n in (total, total + 168 * 500))
            assert sum(many.elements()) == (total + 168 * 500 if few else 0)
            assert len(many - few) == bool(few) and not few - many


@pytest.mark.parametrize("n", [3, 4, 7])
def test_unknown_batch_runs_in_slices(library: KernelLibrary, n: int) -> None:
    w = replace(ONE, n=n)
    data, weight, bias = random_inputs(w, 1, "NCHW", "integer")
    reference = conv2d_reference(w, data, weight, bias, "NCHW")
    plan = library.plan(w, weight, bias)
    assert isinstance(plan, SlicedPlan) and [p.workload.n for p in plan.parts][:1] == [2]
    assert np.array_equal(plan(data), reference)
    assert plan.run_secs == pytest.approx(n // 2 * 1.5e-3 + n % 2 * 1e-3)
    assert plan.workspace_bytes == max(p.workspace_bytes for p in plan.parts)
    text = plan.explain()
    assert f"No kernel for batch {n}: it runs in slices, {n // 2} of batch 2" in text
    rectified = library.plan(w, weight, bias, activation="relu", residual=True)
    out = np.empty(w.out_shape(), np.float32)
    residual = -reference.astype(np.float32) + 3
    assert rectified(data, out=out, residual=residual) is out and np.all(out == 3)


def test_batches_that_do_not_add_up(library: KernelLibrary) -> None:
    weight = np.ones(ONE.weight_shape, np.float32)
    with pytest.raises(UnknownWorkload):
        library.plan(replace(ONE, n=3, ic=7), None)
    with pytest.raises(NoCandidate, match="algorithm mec"):
        library.plan(replace(ONE, n=3), weight, algorithm="mec")


def test_slices_of_torch_tensors(library: KernelLibrary) -> None:
    torch = pytest.importorskip("torch")
    w = replace(ONE, n=3)
    data, weight, bias = random_inputs(w, 1, "NCHW", "integer")
    out = library.plan(w, weight, bias)(torch.from_numpy(data))
    expected = conv2d_reference(w, data, weight, bias, "NCHW")
    assert type(out) is torch.Tensor and np.array_equal(out.numpy(), expected)


# ---- epilogues -----------------------------------------------------------------------------------

ENDINGS = [None, "relu", "relu6", (-2.0, 5.0)]
BOUNDS: dict[Any, tuple[float, float]] = {None: (-math.inf, math.inf), "relu": (0, math.inf)}
BOUNDS["relu6"] = (0, 6)


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
@pytest.mark.parametrize("adds", [False, True])
def test_endings(library: KernelLibrary, fused: KernelLibrary, ending: Any, adds: bool) -> None:
    """Fused or in a pass of its own, the answer is the same."""
    data, weight, bias = random_inputs(ONE, 1, "NCHW", "integer")
    residual = np.random.default_rng(3).integers(-9, 9, ONE.out_shape()).astype(np.float32)
    sums = conv2d_reference(ONE, data, weight, bias, "NCHW") + (residual if adds else 0)
    low, high = BOUNDS.get(ending, ending)
    for lib in (library, fused):
        plan = lib.plan(ONE, weight, bias, activation=ending, residual=adds)
        given = {"residual": residual} if adds else {}
        assert np.array_equal(plan(data, **given), np.clip(sums, low, high))
        text = plan.explain()
        assert ("after it: the library was compiled without the epilogue 'add'" in text) == (
            adds and lib is library
        )
        assert ("inside the kernel" in text) == (
            (adds and lib is fused) or (ending is not None and not adds)
        )


def test_epilogues_are_refused(library: KernelLibrary) -> None:
    data, weight, _ = random_inputs(ONE, 1)
    out = np.zeros(ONE.out_shape(), np.float32)
    for bad in ("swish", (1.0, 0.0), (1.0,), 3, (math.nan, 1.0)):
        with pytest.raises(ConvtvmError, match=r"activation is .*, expected"):
            library.plan(ONE, weight, activation=bad)  # type: ignore[arg-type]
    with pytest.raises(ConvtvmError, match="epilogue is 'swish', expected one of none, clip, add"):
        compile([ONE], threads=1, logs=[], epilogues=["swish"])
    with pytest.raises(ArrayError, match="residual: found one, expected none"):
        library.plan(ONE, weight)(data, residual=out)
    adding = library.plan(ONE, weight, residual=True)
    with pytest.raises(ArrayError, match="residual: found none, expected one"):
        adding(data)
    with pytest.raises(ArrayError, match="residual has shape"):
        adding(data, residual=out[:, :1])
    with pytest.raises(ArrayError, match="out overlaps residual"):
        adding(data, out=out, residual=out)


# ---- decisions and times from other workloads ----------------------------------------------------


def test_transfer(tmp_path: Any) -> None:
    """The nearest record's decisions, only of the same algorithm and only where they are valid."""
    near, far = ConvWorkload.parse("mb1ic6ih9oc10kh3ph1"), ConvWorkload.parse("mb1ic64ih99oc64kh3")
    task = Task(near, "direct", NATIVE)
    good = next(
        {**task.space.default, "tile_ow": t}
        for t in (2, 3, 4)
        if t != task.space.default["tile_ow"]
        and Task(ONE, "direct", NATIVE).space.contains({**task.space.default, "tile_ow": t})
    )
    records = [record_of(task, 1e-3, decisions=good), record_of(Task(far, "im2col", NATIVE), 1e-3)]
    log = log_of(tmp_path / "x.jsonl", *records)
    lib = compile([ONE, far], threads=1, logs=[log], keep="all", algorithms=ALGORITHMS)
    found = {c.algorithm: c for c in lib.candidates(ONE)}
    assert {name: c.decisions for name, c in found.items()} == {
        "direct": "transferred",
        "im2col": "default",
    }
    assert all(c.run_secs is None and c.predicted_secs is None for c in found.values())
    data, weight, bias = random_inputs(ONE, 1, "NCHW", "integer")
    plan = lib.plan(ONE, weight, bias, algorithm="direct")
    assert isinstance(plan, Plan) and plan.decisions == f"transferred from {near.key}"
    assert f"Its decisions are {plan.decisions}, not tuned here." in plan.explain()
    assert str(found["direct"]).endswith(f"error unknown, transferred from {near.key})")
    assert np.array_equal(plan(data), conv2d_reference(ONE, data, weight, bias, "NCHW"))
