"""`convtvm report`: what a page says, how it treats odd logs and names, and that it stays small."""

from __future__ import annotations

import builtins
import itertools
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from convtvm.cli import main
from convtvm.cli.plotting import write_plot
from convtvm.errors import ReportError
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task
from convtvm.logs import records
from convtvm.logs.records import TuningRecord, shipped_logs
from convtvm.machine.targets import resolve
from convtvm.measure.bandwidth import measure_bandwidth
from convtvm.problem.sources import read_source
from convtvm.problem.workload import ConvWorkload
from convtvm.report import bench, building, contests, progress, rendering, roofline, tradeoffs
from convtvm.report.building import Evidence
from convtvm.report.labels import Labels, sizes
from convtvm.report.picture import MOST_POINTS, MOST_ROWS
from convtvm.report.runs import runs_of
from convtvm.tuning.speed import SpeedModel

W = ConvWorkload.parse("mb1ic8ih12oc16oh12kh3ph1")
OTHER = ConvWorkload.parse("mb1ic16ih9oc8kh5ph2sh2")
TARGET = resolve("avx2", 1)
EVIL = "</script><img src=x onerror=alert(1)>&\"'\u2028\ud800"
WAYS = ("direct", "im2col", "mec:b", "winograd:2", "winograd:4")


@cache
def task(w: ConvWorkload, algorithm: str) -> Task:
    return Task(w, algorithm, TARGET)


def made(
    w: ConvWorkload = W, algorithm: str = "direct", secs: float | None = 1e-3, **changes: Any
) -> TuningRecord:
    """A trial by the default decisions of its task, or a failure for None."""
    entry: dict[str, Any] = {
        "workload": w.key,
        "algorithm": algorithm,
        "target": TARGET.name,
        "threads": 1,
        "layout": "NCHW",
        "device": "a CPU",
        "decisions": task(w, algorithm).space.default,
        "template": int(ALGORITHMS[algorithm].template.VERSION),
        "run_secs": [] if secs is None else [secs],
        "error": {"kind": "crash", "message": "killed by SIGSEGV"} if secs is None else {},
        "max_error": None if secs is None else 1e-7,
        "workspace_bytes": 4096,
        "versions": {"convtvm": "0.1.0"},
        "time": "2026-11-27T10:00:00+00:00",
    }
    return TuningRecord(**{**entry, **changes})


def tuned(workloads: Sequence[ConvWorkload] = (W,), trials: int = 12) -> list[TuningRecord]:
    """A run as a tuner writes it: the default of each task first, then others; some fail."""
    chance, found = random.Random(0), []
    for w in workloads:
        for way in (n for n in WAYS if ALGORITHMS[n].inapplicable(w) is None):
            space = task(w, way).space
            points = [space.default, *chance.sample(space.points, min(trials, len(space.points)))]
            for d in points:
                secs = None if chance.random() < 0.1 and len(found) else chance.uniform(1, 2) / 1e3
                stamp = f"2026-11-27T10:{len(found) // 60:02}:{len(found) % 60:02}+00:00"
                facts = {"decisions": d, "time": stamp}
                facts |= {"workspace_bytes": 512 * len(way), "max_error": len(way) * 1e-7}
                found.append(
                    made(
                        w, way, secs, **({"decisions": d, "time": stamp} if secs is None else facts)
                    )
                )
    return found


class Page(HTMLParser):
    """What a browser would make of a page, without running it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.text, self.charts = html, [], [], {}  # type: ignore[var-annotated]
        self._inside: tuple[str, str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag, dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[0]:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text.append(data)
        elif self._inside[1] and self._inside[1] != "config":
            self.charts[self._inside[1]] = json.loads(data)

    @property
    def words(self) -> str:
        return " ".join(self.text)

    @property
    def figures(self) -> int:
        return sum(tag == "figure" for tag, _ in self.tags)


def page(history: Sequence[TuningRecord] = (), **more: Any) -> Page:
    content = building.report(Evidence(records=history, **more))
    return Page(content.encode("utf8").decode("utf8"))


# ---- content -------------------------------------------------------------------------------------


def test_a_run_gets_every_picture_with_its_sentence_and_its_table() -> None:
    found = page(tuned([W, OTHER], trials=40))
    headings = (
        "Best time against trials",
        "Best time against seconds",
        "Layer by layer",
        "Roofline",
        "Workspace against time",
        "Error against tile size",
        "Failures",
        "Which knobs mattered",
    )
    for heading in headings:
        assert heading in found.words, heading
    count = {
        tag: sum(t == tag for t, _ in found.tags) for tag in ("figcaption", "details", "table")
    }
    assert len(found.charts) == found.figures == count["figcaption"]
    assert count["details"] == count["table"] == found.figures > 8
    for spec in found.charts.values():
        assert spec["description"] and spec["width"] == "container"
    for fact in ("a CPU", TARGET.name, "convtvm 0.1.0", "2026-11-27 10:00 to 2026-11-27 10:0"):
        assert fact in found.words, fact


def test_the_page_needs_nothing_from_outside() -> None:
    """Not even if it asked: its policy forbids all but the script whose checksum it has."""
    found = page([made()])
    policy = next(a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a)
    assert (
        policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy
    )
    for _, attributes in found.tags:
        assert not {"src", "srcset", "data"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "@import" not in found.html and "url(" not in found.html.split("</style>")[0]


def test_chosen_default_and_rivals_of_a_layer() -> None:
    """The tick is the default of the same algorithm, the winner what a plan would take."""
    space = Task(W, "direct", TARGET).space
    other = next(d for d in space.points if d != space.default)
    history = [
        made(secs=3e-3),
        made(secs=2e-3, decisions=other),
        made(algorithm="im2col", secs=4e-3),
        made(algorithm="winograd:2", secs=1e-3),
    ]
    (run,) = runs_of(history)
    (layer,) = run.layers
    bars = {c.name: c for c in contests.of_layer(layer)}
    assert [*bars] == ["winograd:2", "direct", "im2col"]
    assert bars["winograd:2"].note == "chosen" and bars["direct"].note == ""
    assert (bars["direct"].seconds, bars["direct"].default) == (2e-3, 3e-3)
    assert bars["im2col"].default is None  # a single trial is no search
    figure = contests.figure(layer.label, W, [*bars.values()])
    assert "winograd:2 takes 1.00 ms, 2.00× as fast as direct." in figure.sentence
    assert [row[0] for row in figure.table.rows] == [*bars]


def test_confirmed_times_count_and_are_no_trials() -> None:
    history = [made(secs=1e-3), made(secs=2e-3, confirmed=True)]
    (run,) = runs_of(history)
    assert (len(run.trials), len(run.made)) == (1, 2)
    assert run.layers[0].best["direct"].seconds == 2e-3


def test_what_compile_does_not_use_is_left_out_and_said() -> None:
    history = [
        made(),
        made(template=0),
        made(algorithm="direct", workload="mb1ic8"),
        made(secs=9.0),
    ]
    history.append(TuningRecord(**{**vars(made()), "algorithm": "fft"}))
    found = page(history)
    assert "3 records by older templates" in found.words


def test_by_the_clock_breaks_do_not_count_and_odd_times_are_left_out() -> None:
    times = ["2026-11-27T10:00:00+00:00", "2026-11-27T10:00:30+00:00", "2026-11-28T10:00:00+00:00"]
    trials = [made(time=t) for t in (*times, "2026-11-28T10:00:10+00:00", "yesterday", "")]
    clock = progress.elapsed(trials)
    assert [clock.get(id(r)) for r in trials] == [0.0, 30.0, 30.0, 40.0, None, None]


def test_pareto_set_is_what_limits_walk_along() -> None:
    sizes_ = [(3e-3, 0), (1e-3, 100), (2e-3, 50), (2.5e-3, 60), (1e-3, 200), (4e-3, 0)]
    found = tradeoffs.pareto([made(secs=s, workspace_bytes=b) for s, b in sizes_])
    assert [(r.seconds, r.workspace_bytes) for r in found] == [(1e-3, 100), (2e-3, 50), (3e-3, 0)]


def test_a_roof_that_nobody_measured_is_not_called_a_peak() -> None:
    (run,) = runs_of([made(secs=1e-3), made(algorithm="winograd:2", secs=1e-3)])
    roof = roofline.roof_of(run, [])
    assert roof.peak is None
    (figure,) = roofline.figures(run, roof)
    assert "nobody measured" in figure.sentence
    shares = {row[1]: row[-1] for row in figure.table.rows}
    assert shares == {"direct": "100", "winograd:2": "44"}  # of the products of F(2): 16 for 36


def test_the_peak_of_a_benchmark_counts_for_its_target_and_threads() -> None:
    (run,) = runs_of([made(secs=1e-3)])
    ours = bench.Bench(TARGET.name, 1, [], 50e9)
    other = bench.Bench(TARGET.name, 2, [], 99e9)
    assert roofline.roof_of(run, [other, ours]).peak == 50e9
    busy = roofline.figures(run, roofline.Roof(1.0, None, "measured"))[0]
    assert "at least" in busy.sentence and "something else ran" in busy.sentence


def test_labels_are_the_networks_names_in_its_order_and_distinct() -> None:
    layers = read_source("resnet18")
    found = Labels.of(ConvWorkload.parse(w.key) for w in reversed(layers))
    assert found.network == "resnet18"
    assert [*found.texts] == [w.key for w in layers]
    assert found.texts[layers[0].key] == "conv1" and found.multiplicity[layers[1].key] == 4
    odd = [ConvWorkload.parse(f'mb1ic8ih{i}oc8kh3ph1n"same"') for i in (9, 10)]
    assert [*Labels.of(odd).texts.values()] == ["8→8 3×3 on 9²", "8→8 3×3 on 10²"]
    twins = [ConvWorkload.parse(f"mb1ic8ih9oc8kh3ph{p}") for p in (0, 1)]
    assert [*Labels.of(twins).texts.values()] == ["8→8 3×3 on 9² (1)", "8→8 3×3 on 9² (2)"]
    text = sizes(ConvWorkload.parse("g8mb2ic8ih9iw7oc8kh3kw3ph1pw1sh2sw2dh1dw1_f16"))
    assert text == "8→8 3×3 on 9×7 stride 2 dilation 2 depthwise batch 2 float16"
    assert Labels.of([]).texts == {}


def test_gpu_log_with_its_opt_ins() -> None:
    (log,) = (path for path in shipped_logs() if path.name == "h200.jsonl")
    history, problems = records.load([log])
    found = page(history, problems=problems)
    assert "NVIDIA H200" in found.words and "opt-in" in found.words and "a GPU" in found.words
    for run in runs_of(history):
        for layer in run.layers:
            assert layer.chosen is None or "tf32" not in layer.chosen.algorithm


def test_log_of_winners() -> None:
    """One record a task: no search to show, and no default known."""
    (log,) = (path for path in shipped_logs() if path.parts[-2:] == ("znver5", "threads2.jsonl"))
    found = page(records.load([log])[0])
    assert "Roofline" in found.words and "Best time against" not in found.words
    assert found.figures > 50 and len(found.html) < 4e6


def test_influence_is_of_the_knob_that_decides() -> None:
    """Whatever the others do: no derived quantity follows from this one."""
    winograd, chance = task(W, "winograd:2"), random.Random(0)
    points = chance.sample(winograd.space.points, 60)
    model = SpeedModel()
    model.learn(winograd, [(d, 1e-3 * (1 + d["prefetch"])) for d in points])
    found = model.influence()
    assert max(found, key=lambda name: found[name]) == "prefetch"
    assert found["prefetch"] > 0.1 > 5 * sum(v for k, v in found.items() if k != "prefetch")
    assert SpeedModel().influence() == {}


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_is_one_that_memory_can_have(threads: int) -> None:
    assert 1e8 < measure_bandwidth(threads, samples=1) < 1e13


# ---- odd logs ------------------------------------------------------------------------------------


def test_names_cannot_become_markup() -> None:
    """Every text that a log or a document may hold, in every place that shows it."""
    history = [
        made(device=EVIL, versions={EVIL: EVIL}),
        made(secs=None, error={"kind": EVIL, "message": EVIL}),
    ]
    name = "".join(c for c in EVIL if c.isprintable() and c != '"')
    layer = {
        "workload": W.key,
        "name": name,
        "chosen": EVIL,
        "algorithms": {EVIL: {"seconds": 1e-3, "max_error": 0.0, "workspace_bytes": 0}},
        "peers": {EVIL: {"seconds": 2e-3, "max_error": 0.0}},
        "absent": {EVIL: EVIL},
    }
    entry = {"target": EVIL, "threads": 1, "layers": [layer], "device": EVIL}
    step = {"label": EVIL, "about": EVIL, "seconds": 1e-3}
    profile = {"library": EVIL, "target": EVIL, "threads": 1, "profile": [step]}
    whole = {"model": EVIL, "target": EVIL, "threads": 1, "ours": {"seconds": 1, "max_error": 0}}
    whole |= {"peers": {EVIL: {"seconds": 1, "max_error": 0}}}
    found = page(
        history,
        documents=[bench.parse(e, "x") for e in (entry, profile, whole)],
        problems=[records.Problem(EVIL, 1, EVIL)],
    )
    assert not any(tag == "img" for tag, _ in found.tags)
    assert sum(tag == "script" for tag, _ in found.tags) == len(found.charts) + 2
    assert found.words.count("<img src=x onerror=alert(1)>") > 20
    assert all(not name.startswith("on") for _, attributes in found.tags for name in attributes)


def test_torn_and_foreign_lines_are_named_and_the_others_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "x.jsonl", tmp_path / "r.html"
    torn = made().to_line()[:40]
    log.write_text("\n".join([made().to_line(), "\x00\xff", '{"format":99}', torn]))
    assert main(["report", str(log), "-o", str(out)]) == 0
    assert capsys.readouterr().err.count("line skipped") == 3
    assert "3 lines of the logs could not be used" in Page(out.read_text("utf8")).words


@pytest.mark.parametrize("content", ["", "\n\n", '{"workload":"g1mb', "hello\n"])
def test_nothing_to_show_is_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "x.jsonl", tmp_path / "r.html"
    log.write_text(content)
    assert main(["report", str(log), "-o", str(out)]) == 2
    assert "no record to report on" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    "history",
    [
        [made(secs=None)],
        [made()],
        [made(max_error=None, workspace_bytes=None, time="", versions={})],
        [made(max_error=0.0, workspace_bytes=0)],
        [made(confirmed=True)],
        [made(secs=1e-9), made(algorithm="im2col", secs=1e3)],
        [made(), made(OTHER, secs=None), made(layout="NHWC"), made(threads=64)],
        [made(target="llvm -mcpu=nothing")],
    ],
)
def test_poor_logs(history: list[TuningRecord]) -> None:
    page(history)


def test_a_huge_log_makes_no_huge_page() -> None:
    """Not in bytes, points or rows, however many candidates and layers there are."""
    chance = random.Random(1)
    knobs = made().decisions
    history = []
    for number in range(12_000):
        w = ConvWorkload.make(ic=8 * (1 + number % 60), oc=16, ih=12, kh=3, padding=1)
        d = {**knobs, "tile_ow": number}  # a decision that no space has: no time is spent on it
        secs = None if number % 7 == 0 else chance.uniform(1e-3, 1e-2)
        history.append(
            made(W, "direct", secs, decisions=d, workspace_bytes=number)
            if number % 2
            else TuningRecord(**{**vars(made(W, "direct", secs, decisions=d)), "workload": w.key})
        )
    found = page(history)
    assert len(found.html) < 4e6
    for spec in found.charts.values():
        for part in (spec, *spec.get("layer", ())):
            assert len(part.get("data", {}).get("values", ())) <= 2 * MOST_POINTS
    assert found.html.count("<tr>") < MOST_ROWS * found.figures
    assert re.search(r"Every candidate \([\d,]+ of 10,", found.words)


# ---- the command ---------------------------------------------------------------------------------


def test_command_writes_the_page_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "x.jsonl", tmp_path / "r.html"
    log.write_text("".join(f"{r.to_line()}\n" for r in tuned()))
    assert main(["report", str(log), "-o", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bytes"] == out.stat().st_size and document["out"] == str(out)
    assert 5e5 < out.stat().st_size < 3e6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["report", "-o", "r.html"], "expected a LOG, --library or --bench"),
        (["report", "x.jsonl"], "Missing option '-o'"),
        (["report", "no.jsonl", "-o", "r.html"], "cannot read log no.jsonl"),
        (["report", "--library", "no.so", "-o", "r.html"], "cannot read library no.so"),
        (["report", "--bench", "no.json", "-o", "r.html"], "cannot read no.json"),
        (["report", "--bench", "bad.json", "-o", "r.html"], "it is no JSON document"),
        (["report", "--bench", "other.json", "-o", "r.html"], "is no comparison"),
        (["report", "--bench", "torn.json", "-o", "r.html"], "'chosen' is missing"),
        (["report", "--bench", "negative.json", "-o", "r.html"], "positive number"),
        (["report", "bad.json", "-o", "no/r.html"], "there is no folder no"),
    ],
)
def test_misuse_is_one_line(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    head = '{"target":"t","threads":1,"layers":'
    Path("bad.json").write_text("{")
    Path("other.json").write_text('{"tasks":[]}')
    Path("torn.json").write_text(f'{head}[{{"workload":"{W.key}"}}]}}')
    Path("negative.json").write_text('{"target":"t","threads":1,"layers":[],"peak_flops":-1}')
    before = sorted(tmp_path.iterdir())
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.iterdir()) == before


def test_missing_package_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def absent(name: str, *args: Any, **more: Any) -> Any:
        if name == "vl_convert":
            raise ImportError("No module named 'vl_convert'")
        return real(name, *args, **more)

    rendering.scripts.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    log, out = tmp_path / "x.jsonl", tmp_path / "r.html"
    log.write_text(made().to_line())
    assert main(["report", str(log), "-o", str(out)]) == 2
    assert "pip install 'convtvm[report]'" in capsys.readouterr().err
    assert not out.exists()


# ---- libraries and comparisons -------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel library of one layer with a record of one of its algorithms."""
    path = tmp_path_factory.mktemp("library") / "one.so"
    log = path.with_suffix(".jsonl")
    log.write_text(made(secs=1e-3).to_line())
    source = f'{W.key}n"first"'
    args = ["compile", source, "--target", "avx2", "--threads", "1", "--log", str(log)]
    assert main([*args, "-o", str(path)]) == 0
    return path


def test_library_of_kernels(library: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    assert main(["report", "--library", str(library), "-o", str(out)]) == 0
    found = Page(out.read_text("utf8"))
    assert "Library one.so" in found.words and TARGET.name in found.words
    assert "direct takes 1.00 ms" in found.words
    assert found.figures == 1


def test_files_whose_names_are_no_utf8(library: Path, tmp_path: Path) -> None:
    odd, out = os.fsdecode(b"\xff"), tmp_path / "r.html"
    for suffix, content in (
        ("so", library.read_bytes()),
        ("jsonl", f"{made().to_line()}\ntorn".encode()),
        ("json", json.dumps({**MODEL, "model": f"{odd}.onnx"}).encode()),
    ):
        (tmp_path / f"{odd}.{suffix}").write_bytes(content)
    given = [f"{tmp_path}/{odd}.jsonl", "--library", f"{tmp_path}/{odd}.so"]
    assert main(["report", *given, "--bench", f"{tmp_path}/{odd}.json", "-o", str(out)]) == 0
    words = Page(out.read_text("utf8")).words
    assert all(rf"\udcff.{suffix}" in words for suffix in ("so", "jsonl", "onnx"))


def test_counts_without_end_are_refused() -> None:
    entry = comparison_of()
    entry["layers"][0]["algorithms"]["direct"]["workspace_bytes"] = 10**400
    with pytest.raises(ReportError, match="where a count belongs"):
        bench.parse(entry, "x")


def time_of(seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "max_error": 1e-7, "workspace_bytes": 64}


def comparison_of(**peers: float) -> dict[str, Any]:
    """What `bench --json` prints of one layer that takes us 1 ms."""
    layer = {
        "workload": W.key,
        "name": "",
        "chosen": "direct",
        "algorithms": {"direct": time_of(1e-3), "im2col": time_of(2e-3)},
        "peers": {name: time_of(seconds) for name, seconds in peers.items()},
    }
    return {"target": TARGET.name, "threads": 1, "peak_flops": 1e11, "layers": [layer]}


def test_a_library_counts_by_its_fastest_setting() -> None:
    document = comparison_of(**{"torch": 3e-3, "torch-nhwc": 2e-3, "ncnn": 4e-3})
    found = page(documents=[bench.parse(document, "x")])
    assert "2.00× the fastest other library of each layer" in found.words
    (name,) = (name for name, spec in found.charts.items() if "other libraries" in str(spec))
    parts = [part for part in (found.charts[name], *found.charts[name]["layer"]) if "data" in part]
    rows = parts[0]["data"]["values"]
    assert {row["library"]: row["ratio"] for row in rows} == {"torch": 2.0, "ncnn": 4.0}


@pytest.mark.parametrize(
    "ratios", [(0.02, 0.5), (0.86, 4.1), (1.0, 1.0), (0.97, 1.04), (1.4, 1.5), (1.2, 60.0)]
)
def test_ticks_of_a_comparison_stand_apart(ratios: tuple[float, float], tmp_path: Path) -> None:
    """Within their scale, at whose ends Vega would pile up the others."""
    first, second = ratios
    write_plot(tmp_path / "p.svg", comparison_of(torch=first * 1e-3, ncnn=second * 1e-3))
    drawn = (tmp_path / "p.svg").read_text("utf8")
    axis = drawn[drawn.index("X-axis titled") : drawn.index("Y-axis for")]
    places = [float(x) for x in re.findall(r"<text[^>]*translate\(([\d.]+),16\)", axis)]
    assert 'opacity="0"' not in axis, "a label was left out"
    assert len(places) > 2 and all(b - a > 25 for a, b in itertools.pairwise(places)), places


def test_noisy_figures_are_counted() -> None:
    document = comparison_of(torch=3e-3)
    assert "never at rest" not in page(documents=[bench.parse(document, "x")]).words
    document["layers"][0]["peers"]["torch"] |= {"spread": 0.3}
    assert "1 figure came from a machine never at rest" in (
        page(documents=[bench.parse(document, "x")]).words
    )


def test_layers_of_a_log_are_shown_as_the_benchmark_of_its_target_had_them() -> None:
    """And with nothing of the log beside them: those times are of another hour."""
    history = [made(secs=5e-3), made(algorithm="im2col", secs=6e-3), *tuned()]
    document = bench.parse(comparison_of(torch=3e-3), "x")
    found = page(history, documents=[document])
    assert "direct takes 1.00 ms, 2.00× as fast as im2col, 3.00× as fast as torch." in found.words
    elsewhere = bench.parse({**comparison_of(torch=3e-3), "threads": 2}, "x")
    assert "direct takes 1.00 ms" in page(history, documents=[elsewhere]).words


def test_a_gpus_comparison_has_no_threads_and_layers_may_lack_a_choice() -> None:
    document = {**comparison_of(torch=2e-3), "target": "cuda -arch=sm_90"}
    del document["threads"], document["peak_flops"]
    empty = {"chosen": "", "algorithms": {}, "workload": OTHER.key}
    document["layers"].append({**document["layers"][0], **empty})
    found = page(documents=[bench.parse(document, "x")])
    assert "2.00× the fastest" in found.words


PROFILE = {
    "library": "m.so",
    "target": "t",
    "threads": 2,
    "median_secs": 0.5,
    "profile": [
        {"label": "conv1", "about": "convolution 3x3 by winograd:4, relu", "seconds": 0.3},
        {"label": "pool", "about": "", "seconds": 0.1},
    ],
}
MODEL = {
    "model": "m.onnx",
    "target": "t",
    "threads": 1,
    "ours": time_of(1.0),
    "peers": {"torch": time_of(1.5), "ncnn": time_of(2.0)},
}


def test_models_by_operators_and_beside_others(tmp_path: Path) -> None:
    paths = [tmp_path / "profile.json", tmp_path / "model.json"]
    for path, document in zip(paths, (PROFILE, MODEL), strict=True):
        path.write_text(json.dumps(document))
    out = tmp_path / "r.html"
    args = [part for path in paths for part in ("--bench", str(path))]
    assert main(["report", *args, "-o", str(out)]) == 0
    found = Page(out.read_text("utf8"))
    assert "convolutions take 75 %" in found.words
    assert "a call takes 1.00 s, 1.50× as fast as torch" in found.words


@pytest.mark.parametrize("document", [comparison_of(torch=2e-3), comparison_of(), MODEL])
@pytest.mark.parametrize(
    ("name", "start"), [("p.html", b"<!doctype"), ("p.svg", b"<svg"), ("p.PNG", b"\x89PNG")]
)
def test_plots(name: str, start: bytes, document: dict[str, Any], tmp_path: Path) -> None:
    write_plot(tmp_path / name, document)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(start) and len(content) > 2000
    if name == "p.svg":
        assert b"prefers-color-scheme:dark" in content and b"var(--ink)" in content
    assert not list(tmp_path.glob(".convtvm-*"))


@pytest.mark.parametrize("good", [True, False])
def test_a_picture_of_a_noisy_run_says_so(good: bool, tmp_path: Path) -> None:
    write_plot(tmp_path / "p.svg", {**comparison_of(torch=2e-3), "noise": {"good": good}})
    assert ("from a noisy run" in (tmp_path / "p.svg").read_text("utf8")) is not good


@pytest.mark.parametrize(
    ("path", "message"), [("p.gif", "expected .html, .svg, .png"), ("no/p.svg", "no folder")]
)
def test_a_plot_that_cannot_be_made_is_refused_before_anything_is_measured(
    path: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convtvm.measure.client.Zygote.__init__", work)
    monkeypatch.setattr("convtvm.compare.bench.bench", work)
    assert main(["bench", "resnet50", "--threads", "1", "--plot", path]) == 2
    assert message in capsys.readouterr().err
