"""From records to a library: what goes in, in which order, from which decisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import log_of, record_of

from convtvm import __version__
from convtvm.dispatch import KernelLibrary
from convtvm.dispatch.manifest import Kernel
from convtvm.errors import BuildError, ConvtvmError, LogError, TargetError, WorkloadError
from convtvm.kernels import codegen, lowering
from convtvm.kernels.task import Task, tasks_of
from convtvm.library import build
from convtvm.library.build import compile
from convtvm.library.cache import VARIABLE
from convtvm.library.choices import choose, keep_some
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.measure.jobs import BuildJob, Limits, Outcome
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload

FIRST = ConvWorkload.parse('mb1ic8ih6oc8oh6kh3ph1n"first*2"')
SECOND = ConvWorkload.parse("mb1ic4ih5oc9oh3kh1sh2")  # direct alone of `ALGORITHMS` applies
NATIVE = resolve("native", 1)
ALGORITHMS = ("direct", "winograd:2", "winograd:4")


def task(name: str, w: ConvWorkload = FIRST, layout: str = "NCHW") -> Task:
    return Task(w, name, NATIVE, layout)


class StubZygote:
    """Builds nothing: every job succeeds with a workspace of as many bytes as its path is long."""

    jobs: list[BuildJob]
    failing = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> StubZygote:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(
        self, kind: str, jobs: list[BuildJob], limits: Limits
    ) -> Iterator[tuple[int, Outcome]]:
        self.jobs += jobs
        for index, job in reversed(list(enumerate(jobs))):
            if self.failing and self.failing in job.symbol:
                yield index, Outcome(None, "compile", "TVMError: planted")
            else:
                yield index, Outcome(len(job.path) if job.symbol.startswith("conv") else 0)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubZygote:
    """Compiling without compiling; the library is no library, only its manifest is looked at."""
    made = StubZygote(tmp_path)
    made.jobs = []

    def link(objects: list[str], path: Path, target: CompileTarget) -> None:
        path.write_text("\n".join(objects), encoding="utf8")

    class Library:
        def __init__(self, content: bytes, manifests: Any) -> None:
            self.content, self.manifests, self.problems = content, manifests, []
            self.manifest = manifests[0]

    monkeypatch.setenv(VARIABLE, "off")  # what it makes are no objects to keep
    monkeypatch.setattr(build, "Zygote", lambda at_once: made)
    monkeypatch.setattr(build.codegen, "link_objects", link)
    monkeypatch.setattr(build, "KernelLibrary", Library)
    return made


def stub_compile(*workloads: ConvWorkload, **options: Any) -> Any:
    options = {"logs": [], "algorithms": ALGORITHMS, **options}
    return compile(workloads or [FIRST], NATIVE, **options)


def kernels(library: Any, w: ConvWorkload = FIRST) -> list[Kernel]:
    return [k for k in library.manifest.kernels if k.workload == w.key]


# ---- really compiled -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untuned() -> KernelLibrary:
    return compile([FIRST, SECOND], threads=1, logs=[], algorithms=ALGORITHMS)


def test_without_a_log_defaults_are_compiled(untuned: KernelLibrary) -> None:
    assert {c.algorithm for c in untuned.candidates(FIRST)} == set(ALGORITHMS)
    assert [c.algorithm for c in untuned.candidates(SECOND)] == ["direct"]
    for w in (FIRST, SECOND):
        for c in untuned.candidates(w):
            assert (c.run_secs, c.max_error, c.decisions) == (None, None, "default")
    assert [(w.key, w.name) for w in untuned.workloads] == [(FIRST.key, "first"), (SECOND.key, "")]
    assert untuned.problems == [] and untuned.threads == 1
    assert (untuned.layout, untuned.target) == ("NCHW", NATIVE.name)
    assert untuned.manifest.features == NATIVE.features
    assert untuned.manifest.versions["convtvm"] == __version__


def test_second_compile_gives_the_same_bytes(untuned: KernelLibrary, tmp_path: Path) -> None:
    again = compile([FIRST, SECOND], threads=1, logs=[], algorithms=ALGORITHMS)
    untuned.export(tmp_path / "a.so")
    again.export(tmp_path / "b.so")
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()


def test_unmeasured_workspace_is_known(untuned: KernelLibrary) -> None:
    for c in untuned.candidates(FIRST):
        own = task(c.algorithm)
        lowered = lowering.lower(own.instantiate(own.space.default), NATIVE.tvm)
        assert c.workspace_bytes == codegen.workspace_bytes(lowered, 1)


# ---- records -------------------------------------------------------------------------------------

# algorithm -> seconds, error, workspace: each is the best in one of them
Facts = tuple[float | None, float | None, int | None]
FACTS: dict[str, Facts] = {
    "direct": (3e-3, 1e-7, 1000),
    "winograd:2": (2e-3, 1e-6, 100),
    "winograd:4": (1e-3, 1e-5, 10_000),
}


def facts_log(path: Path, **changes: Facts) -> Path:
    return log_of(path, *(record_of(task(n), *f) for n, f in (FACTS | changes).items()))


def test_best_records_win(stub: StubZygote, tmp_path: Path) -> None:
    """The fastest decisions of each algorithm are built; the fastest algorithm comes first."""
    direct = task("direct")
    slow, fast, failed = direct.space.points[:3]
    log = log_of(
        tmp_path / "x.jsonl",
        record_of(direct, 5e-3, decisions=slow),
        record_of(direct, 1e-3, 2e-7, decisions=fast),
        record_of(direct, None, decisions=failed),
        record_of(task("winograd:2"), 2e-3, 3e-7),
    )
    library = stub_compile(FIRST, logs=[log], keep="all")
    assert [(k.algorithm, k.run_secs, k.max_error, k.decisions) for k in kernels(library)] == [
        ("direct", 1e-3, 2e-7, "tuned"),
        ("winograd:2", 2e-3, 3e-7, "tuned"),
        ("winograd:4", None, None, "default"),
    ]
    built = {j.task.algorithm_name: j.decisions for j in stub.jobs if j.decisions is not None}
    assert built == {
        "direct": fast,
        "winograd:2": task("winograd:2").space.default,
        "winograd:4": task("winograd:4").space.default,
    }


@pytest.mark.parametrize(
    ("keep", "names"),
    [
        ("best", ["winograd:4"]),
        ("pareto", ["winograd:4", "winograd:2", "direct"]),
        ("all", ["winograd:4", "winograd:2", "direct"]),
    ],
)
def test_keep(stub: StubZygote, tmp_path: Path, keep: str, names: list[str]) -> None:
    library = stub_compile(FIRST, SECOND, logs=[facts_log(tmp_path / "x.jsonl")], keep=keep)
    assert [k.algorithm for k in kernels(library)] == names
    assert [k.algorithm for k in kernels(library, SECOND)] == ["direct"]


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        ((4e-3, 1e-7, 1000), False),
        ((3e-3, 2e-7, 1000), False),
        ((3e-3, 1e-7, 1001), False),
        ((4e-3, 2e-7, 1001), False),
        ((3e-3, 1e-7, 1000), True),  # equal: neither is left out
        ((4e-3, 1e-7, 999), True),
        ((4e-3, 9e-8, 1000), True),
        ((2.9e-3, 1e-6, 5000), True),
        ((None, None, None), True),  # never measured: nothing is known to compare
    ],
)
def test_pareto_leaves_out_what_no_limit_would_choose(
    stub: StubZygote, tmp_path: Path, other: Facts, kept: bool
) -> None:
    made = [record_of(task("direct"), *FACTS["direct"])]
    if other[0] is not None:
        made.append(record_of(task("winograd:2"), *other))
    log = log_of(tmp_path / "x.jsonl", *made)
    library = stub_compile(logs=[log], algorithms=["direct", "winograd:2"], keep="pareto")
    names = {k.algorithm for k in kernels(library)}
    assert names == ({"direct", "winograd:2"} if kept else {"direct"})
    assert ("winograd_2" in library.content.decode("utf8", "replace")) == kept
    every = stub_compile(logs=[log], algorithms=["direct", "winograd:2"], keep="all")
    assert len(kernels(every)) == 2


@pytest.mark.parametrize("facts", [(1e-3, None, 0), (1e-3, 0.0, None)])
def test_what_is_unknown_leaves_nothing_out(stub: StubZygote, tmp_path: Path, facts: Facts) -> None:
    log = facts_log(tmp_path / "x.jsonl", **{"winograd:2": facts})
    assert len(kernels(stub_compile(logs=[log], keep="pareto"))) == 3


def test_ties_go_to_the_smaller_workspace(stub: StubZygote, tmp_path: Path) -> None:
    """The stub's workspace is as large as the name is long: direct needs least."""
    same = dict.fromkeys(FACTS, (1e-3, 1e-7, 0))
    library = stub_compile(logs=[facts_log(tmp_path / "x.jsonl", **same)], keep="all")
    assert kernels(library)[0].algorithm == "direct"


def test_unmeasured_kernels_rank_by_a_rough_cost(stub: StubZygote) -> None:
    """Of few channels and pixels, the small weight of F(2) counts for more than its products."""
    w = ConvWorkload.parse("mb1ic8ih8oc8oh8kh3ph1")
    assert [k.algorithm for k in kernels(stub_compile(w), w)] == [
        "winograd:2",
        "winograd:4",
        "direct",
    ]


UNKNOWN = {  # workload, layout -> what is taken where no log says anything
    ("g32mb1ic32ih56oc32kh3ph1", "NCHW"): "direct:depthwise",
    ("g32mb1ic32ih56oc32kh3ph1", "NHWC"): "direct:depthwise",
    ("g32mb1ic32ih56oc32kh3sh2ph1", "NCHW8c"): "direct:depthwise",
    ("mb1ic64ih56oc256kh1", "NCHW"): "direct:pointwise",
    ("mb1ic64ih56oc256kh1", "NHWC"): "direct",
    ("mb1ic64ih56oc256kh1", "NCHW8c"): "direct",
    ("mb1ic64ih56oc64kh3ph1", "NCHW"): "winograd:6",
    ("mb1ic512ih14oc512kh3sh2ph1", "NCHW"): "direct",
    ("g4mb1ic32ih28oc32kh3ph1", "NCHW"): "direct",
}


@pytest.mark.parametrize(("text", "layout"), UNKNOWN)
def test_what_is_best_without_any_log(text: str, layout: str) -> None:
    """No algorithm whose vectors are mostly empty, such as `direct` for depthwise layers, which
    took 18 times as long; none that reads several times the weight for a few pixels."""
    tasks = tasks_of([ConvWorkload.parse(text)], resolve("avx2", 1), layout)
    (best,) = keep_some(choose(tasks, []), "best")
    assert best.task.algorithm_name.removesuffix(":inplace") == UNKNOWN[text, layout]


def test_several_logs(stub: StubZygote, tmp_path: Path) -> None:
    logs = [
        log_of(tmp_path / "a.jsonl", record_of(task("direct"), 3e-3)),
        log_of(tmp_path / "b.jsonl", record_of(task("direct"), 1e-3)),
        log_of(tmp_path / "c.jsonl", record_of(task("winograd:2"), 2e-3)),
    ]
    for ordered in (logs, logs[::-1]):
        library = stub_compile(logs=ordered, keep="all")
        assert [k.run_secs for k in kernels(library)] == [1e-3, 2e-3, None]


def test_another_workloads_log_leaves_defaults(stub: StubZygote, tmp_path: Path) -> None:
    library = stub_compile(SECOND, logs=[facts_log(tmp_path / "x.jsonl")])
    assert [(k.algorithm, k.decisions) for k in library.manifest.kernels] == [("direct", "default")]
    assert library.problems == []


def test_what_only_failed_is_left_out(stub: StubZygote, tmp_path: Path) -> None:
    log = facts_log(tmp_path / "x.jsonl", **{"winograd:4": (None, None, None)})
    library = stub_compile(logs=[log], keep="all")
    assert [k.algorithm for k in kernels(library)] == ["winograd:2", "direct"]


def changed_log(path: Path, **changes: Any) -> Path:
    entry = json.loads(record_of(task("direct"), 1e-3).to_line()) | changes
    path.write_text(json.dumps(entry) + "\n", encoding="utf8")
    return path


def test_epilogues_of_each_workload(stub: StubZygote) -> None:
    library = stub_compile(FIRST, SECOND, epilogues={FIRST: ["none", "clip"]}, keep="best")
    assert [list(k.epilogues) for w in (FIRST, SECOND) for k in kernels(library, w)] == [
        ["clip"],
        [],
    ]
    with pytest.raises(ConvtvmError, match="epilogue is 'sine', expected one of"):
        stub_compile(epilogues={FIRST: ["sine"]})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target": "llvm -mcpu=other"}, "llvm -mcpu=other with 1 threads, NCHW"),
        ({"layout": "NHWC"}, f"{NATIVE.name} with 1 threads, NHWC"),
    ],
)
def test_foreign_log_is_refused(
    stub: StubZygote, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    log = changed_log(tmp_path / "x.jsonl", **changes)
    with pytest.raises(LogError) as caught:
        stub_compile(logs=[log])
    message = str(caught.value)
    assert message.startswith(f"{log}: no record for {NATIVE.name} with 1 threads, NCHW; ")
    assert message.endswith(f"the records are for {named}") and stub.jobs == []


def test_logs_that_came_along_may_be_foreign(
    stub: StubZygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        build.records, "shipped_logs", lambda: [changed_log(tmp_path / "x.jsonl", target="other")]
    )
    library = stub_compile(logs=None)
    assert {k.decisions for k in library.manifest.kernels} == {"default"}


def test_logs_that_came_along_are_used(
    stub: StubZygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.records, "shipped_logs", lambda: [facts_log(tmp_path / "x.jsonl")])
    assert [k.run_secs for k in kernels(stub_compile(logs=None))] == [1e-3, 2e-3, 3e-3]
    assert {k.decisions for k in stub_compile(logs=[]).manifest.kernels} == {"default"}


def test_stale_and_damaged_records_are_named(stub: StubZygote, tmp_path: Path) -> None:
    version = task("direct").template_version
    stale = changed_log(tmp_path / "stale.jsonl", template=version + 1)
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"torn', encoding="utf8")
    library = stub_compile(logs=[stale, torn, facts_log(tmp_path / "x.jsonl")])
    damaged, outdated = library.problems
    assert damaged.startswith(f"{torn}:1: ")
    assert outdated.startswith(f"1 records of {FIRST} by direct were made by another version")
    assert f"(now {version}); not used, tune again" in outdated
    assert [k.run_secs for k in kernels(library)] == [1e-3, 2e-3, 3e-3]


# ---- what is built -------------------------------------------------------------------------------


def test_packing_functions_are_shared(stub: StubZygote) -> None:
    """Workloads with the same weights have one packing function for each algorithm."""
    larger = ConvWorkload.parse("mb1ic8ih10oc8kh3ph1")
    library = stub_compile(FIRST, larger, SECOND)
    assert len(library.manifest.kernels) == 7
    packs = {(k.workload, k.algorithm): k.pack for k in library.manifest.kernels}
    assert len(set(packs.values())) == 4
    for name in ALGORITHMS:
        assert packs[FIRST.key, name] == packs[larger.key, name]
    symbols = [job.symbol for job in stub.jobs]
    assert len(symbols) == len(set(symbols)) == 11
    for kernel in library.manifest.kernels:
        w = next(w for w in (FIRST, larger, SECOND) if w.key == kernel.workload)
        assert kernel.packed_shape == task(kernel.algorithm, w).packed_shape()
        (job,) = (j for j in stub.jobs if j.symbol == kernel.function)
        assert kernel.workspace_bytes == len(job.path)


def test_packings_of_one_weight_may_differ(tmp_path: Path) -> None:
    """Winograd's depends on the stride, of which the weight's shape says nothing."""
    pair = [ConvWorkload.parse(f"mb1ic4ih9oc8kh3ph1{stride}") for stride in ("", "sh2")]
    library = compile(pair, NATIVE, algorithms=["winograd:2"], logs=[], keep="all")
    assert len({k.pack for k in library.manifest.kernels}) == 2
    for w in pair:
        data, weight, bias = random_inputs(w, seed=0)
        out = library.plan(w, weight, bias)(data)
        assert relative_error(out, conv2d_reference(w, data, weight, bias)) < 1e-5


def test_workloads_keep_their_order_and_first_name(stub: StubZygote) -> None:
    again = ConvWorkload.parse(f'{FIRST.key}n"again"')
    library = stub_compile(SECOND, FIRST, again, SECOND)
    assert list(library.manifest.workloads.items()) == [(SECOND.key, ""), (FIRST.key, "first")]


def test_failing_build_is_named(stub: StubZygote) -> None:
    stub.failing = "winograd_2"
    with pytest.raises(BuildError) as caught:
        stub_compile()
    expected = f"{FIRST} by winograd:2 does not compile: TVMError: planted"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stub_compile(keep="some"), ConvtvmError, "keep is 'some', expected one of best,"),
        (lambda: compile([], NATIVE), ConvtvmError, "no workloads to compile"),
        (lambda: stub_compile(logs=["no.jsonl"]), LogError, "cannot read log no.jsonl"),
        (lambda: stub_compile(algorithms=["mce"]), WorkloadError, "unknown algorithm 'mce'"),
        (lambda: compile([FIRST], "toaster"), TargetError, "unknown target 'toaster'"),
        (lambda: compile([FIRST], threads=0), TargetError, "threads is 0"),
    ],
)
def test_refused(
    stub: StubZygote, call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
    assert stub.jobs == []


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "CHWN"},
        {"algorithms": ["winograd"]},
    ],
)
def test_refused_for_a_workload(stub: StubZygote, options: dict[str, Any]) -> None:
    with pytest.raises(ConvtvmError):
        stub_compile(SECOND, **options)
    assert stub.jobs == []


# ---- the linker ----------------------------------------------------------------------------------


def test_linker_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.o").write_text("no object", encoding="utf8")
    objects, path = [tmp_path / "x.o"], tmp_path / "x.so"
    with pytest.raises(BuildError, match=r"ld failed: .*x\.o"):
        codegen.link_objects(objects, path, NATIVE)
    assert not path.exists()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"no linker for .*: ld not found; install binutils"):
        codegen.link_objects(objects, path, NATIVE)
