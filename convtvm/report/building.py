"""A report: from logs, libraries and comparisons to one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convtvm import __version__
from convtvm.dispatch import container, manifest
from convtvm.dispatch.manifest import Manifest
from convtvm.errors import ReportError
from convtvm.logs.records import Problem, TuningRecord, now
from convtvm.machine.cpu import device_name
from convtvm.report import (
    bench,
    comparison,
    contests,
    failures,
    knobs,
    models,
    progress,
    roofline,
    tradeoffs,
)
from convtvm.report.bench import Bench, LayerBench, ModelBench, Profile
from convtvm.report.labels import Labels
from convtvm.report.page import Group, Section, Tile, page
from convtvm.report.picture import Figure, geomean, ms, plural, ratio, short_target, size_of
from convtvm.report.runs import Run, runs_of
from convtvm.version import with_commit

_BARS = (
    "A bar for each way to compute a layer, the chosen one in full colour with a check mark; ticks "
    "are the same algorithm untuned, ≈ is a prediction, and an arrow means that the bar is cut "
    "off. Blue is direct, orange im2col, green MEC, violet Strassen, pink Winograd, grey another "
    "library."
)
_KNOBS = "A card for each schedule template that the log has enough trials of."


@dataclass(frozen=True)
class Evidence:
    """What a report shows: records of logs and the lines that are none, libraries of kernels by
    name, comparisons, models' profiles."""

    records: Sequence[TuningRecord] = ()
    problems: Sequence[Problem] = ()
    libraries: Sequence[tuple[str, Manifest]] = ()
    documents: Sequence[Bench | ModelBench | Profile] = ()
    logs: Sequence[str] = field(default_factory=tuple)

    @property
    def benches(self) -> list[Bench]:
        return [d for d in self.documents if isinstance(d, Bench)]


def read_library(path: Path) -> Evidence:
    """A library of kernels, or a model library, whose operators are timed here. Raises
    LibraryError."""
    if container.is_model_file(path):
        return Evidence(documents=[models.profile(path)])
    _, targets = manifest.read(path)
    return Evidence(libraries=[(path.name, target) for target in targets])


def report(evidence: Evidence) -> str:
    """The HTML page. Raises ReportError where there is nothing to show."""
    runs = [run for run in runs_of(evidence.records)]
    sections = [_run(run, evidence.benches) for run in runs if run.layers]
    covered = {(run.target, run.threads) for run in runs if run.layers}
    sections += [_library(*library) for library in evidence.libraries]
    for document in evidence.documents:
        if isinstance(document, Bench):
            own = (document.target, document.threads) not in covered
            sections.append(comparison_section(document, bars=own))
        elif isinstance(document, ModelBench):
            sections.append(_model_bench(document))
        else:
            sections.append(_profile(document))
    if not sections:
        raise ReportError(_nothing(runs, evidence))
    stale = sum(run.stale for run in runs)
    notes = []
    if evidence.problems:
        first = evidence.problems[0]
        notes.append(
            f"{plural(len(evidence.problems), 'line')} of the logs could not be used, such as "
            f"{first.path}:{first.line}: {first.reason}."
        )
    if stale:
        notes.append(
            f"{plural(stale, 'record')} by older templates, or of algorithms that this version "
            "does not have, are left out; compile does not use them either."
        )
    if notes:
        sections[0] = Section(**{**vars(sections[0]), "notes": [*notes, *sections[0].notes]})
    title, subtitle = _title(runs, evidence)
    footer = f"Made by convtvm {with_commit(__version__)} on {device_name()}, {now()}."
    return page(title, subtitle, sections, footer)


def _nothing(runs: Sequence[Run], evidence: Evidence) -> str:
    places = ", ".join(evidence.logs) or "the logs"
    if runs:
        return (
            f"{places}: all {sum(run.stale for run in runs)} records are of older templates or "
            "unknown algorithms; `convtvm log check` names them"
        )
    damaged = f" ({plural(len(evidence.problems), 'line')} could not be used)"
    return f"{places}: no record to report on{damaged if evidence.problems else ''}"


def _title(runs: Sequence[Run], evidence: Evidence) -> tuple[str, str]:
    names = list(dict.fromkeys(run.network for run in runs if run.network))
    names += [d.model for d in evidence.documents if not isinstance(d, Bench)]
    names += [name for name, _ in evidence.libraries]
    title = f"convtvm: {', '.join(dict.fromkeys(names))}" if names else "convtvm report"
    devices = dict.fromkeys(device for run in runs for device in run.devices)
    places = [getattr(d, "device", "") or short_target(d.target) for d in evidence.documents]
    places += [short_target(manifest.target) for _, manifest in evidence.libraries]
    return title, ", ".join(devices or dict.fromkeys(places))


# ---- sections ------------------------------------------------------------------------------------


def _run(run: Run, benches: Sequence[Bench]) -> Section:
    mine = [b for b in benches if (b.target, b.threads) == (run.target, run.threads)]
    known = {row.workload.key: row for b in mine for row in b.layers}
    cards = [
        contests.figure(layer.label, layer.workload, contests.of_layer(layer, row))
        for layer in run.layers
        for row in [known.get(layer.workload.key)]
        if layer.best
    ]
    groups = [Group("", progress.figures(run))]
    groups.append(Group("Layer by layer", cards, _BARS))
    roof = roofline.roof_of(run, benches)
    wide = [
        *roofline.figures(run, roof),
        *tradeoffs.workspace(run),
        *tradeoffs.errors(run),
        *failures.figures(run),
    ]
    groups += [Group("", wide), Group("Which knobs mattered", knobs.figures(run), _KNOBS)]
    name = run.network or plural(len(run.layers), "layer")
    title = f"Tuning of {name}: {plural(run.threads, 'thread')}, {run.layout}"
    if run.on_gpu:
        title = f"Tuning of {name}: {', '.join(run.devices)}, {run.layout}"
    return Section(title, _facts(run), _tiles(run, known), [g for g in groups if g.figures])


def _facts(run: Run) -> list[tuple[str, str]]:
    times = sorted(r.time for r in run.made if r.time)
    templates = sorted({f"{r.algorithm.partition(':')[0]} {r.template}" for r in run.made})
    facts = [
        ("Device", ", ".join(run.devices)),
        ("Target", run.target),
        ("Threads", str(run.threads)),
        ("Layout", run.layout),
        ("Versions", "; ".join(run.versions) or "not recorded"),
        ("Templates", ", ".join(templates)),
    ]
    if times:
        first, last = (text[:16].replace("T", " ") for text in (times[0], times[-1]))
        facts.append(("When", first if first == last else f"{first} to {last}"))
    disturbed = sum(r.disturbed for r in run.made)
    if disturbed:
        facts.append(("Disturbed", f"{disturbed:,} times were taken while something else ran"))
    return facts


def _tiles(run: Run, known: dict[str, LayerBench]) -> list[Tile]:
    raced = len(run.made) - len(run.trials)
    tiles = [
        Tile(f"{len(run.layers):,}", "distinct layers" if len(run.layers) != 1 else "layer"),
        Tile(f"{len(run.trials):,}", f"trials{f', and {raced:,} raced again' if raced else ''}"),
        Tile(f"{len(run.failures):,}", "failed candidates"),
    ]
    clock = progress.elapsed(run.trials)
    if progress.is_search(run) and clock and max(clock.values()) >= 1:
        tiles.append(Tile(f"{max(clock.values()):,.0f} s", "of tuning"))
    times = [(layer.chosen, layer.multiplicity) for layer in run.layers if layer.chosen]
    if times:
        total = sum(record.seconds * count for record, count in times)
        tiles.append(
            Tile(f"{ms(total)} ms", "sum of the chosen kernels, each as often as it is used")
        )
    gains = [
        min(r.seconds for r in layer.defaults.values()) / layer.chosen.seconds
        for layer in run.layers
        if layer.chosen and layer.defaults
    ]
    if gains:
        tiles.append(
            Tile(ratio(geomean(gains)), "as fast as the best untuned kernel (geometric mean)")
        )
    plain = [
        layer.best["direct"].seconds / layer.chosen.seconds
        for layer in run.layers
        if layer.chosen and "direct" in layer.best
    ]
    if plain:
        tiles.append(Tile(ratio(geomean(plain)), "as fast as tuned direct convolution alone"))
    speedups = [s for row in known.values() if (s := row.speedup)]
    if speedups:
        tiles.append(
            Tile(ratio(geomean(speedups)), "as fast as the best other library of each layer")
        )
    return tiles


def _library(name: str, found: Manifest) -> Section:
    known = contests.of_manifest(found)
    labels = Labels.of(w for w, _ in known.values()).texts
    cards = [
        contests.figure(labels[key], w, contenders)
        for key, (w, contenders) in known.items()
        if contenders
    ]
    unmeasured = sum(k.run_secs is None for k in found.kernels)
    facts = [
        ("Target", found.target),
        ("CPU features", " ".join(found.features) or "none beyond the target's base"),
        ("Threads", str(found.threads)),
        ("Layout", found.layout),
        ("Versions", "; ".join(f"{k} {v}" for k, v in found.versions.items()) or "not recorded"),
    ]
    most = max((k.workspace_bytes for k in found.kernels), default=0)
    tiles = [
        Tile(f"{len(found.workloads):,}", "workloads"),
        Tile(f"{len(found.kernels):,}", f"kernels, {unmeasured:,} of them never measured"),
        Tile(size_of(most), "largest workspace"),
    ]
    groups = [Group("What the library holds", cards, _BARS)] if cards else []
    notes = [] if cards else ["None of the kernels was ever measured, so there is no picture."]
    return Section(f"Library {name}", facts, tiles, groups, notes)


def comparison_section(found: Bench, bars: bool) -> Section:
    """A comparison of layers; with a card for each layer unless a log's section has them."""
    labels = comparison.labels_of(found)
    rows = {row.workload.key: row for row in found.layers}
    cards: list[Figure] = []
    if bars:
        cards = [
            contests.figure(label, rows[key].workload, contests.of_bench(rows[key]))
            for key, label in labels.items()
            if rows[key].algorithms or rows[key].peers
        ]
    groups = [Group("", comparison.layers(found)), Group("Layer by layer", cards, _BARS)]
    facts = [("Target", found.target), ("Threads", str(found.threads))]
    if found.device:
        facts.insert(0, ("Device", found.device))
    if found.peak:
        facts.append(("Peak", f"{found.peak / 1e9:,.0f} GFLOP/s, measured"))
    absent = sorted({f"{name}: {why}" for row in found.layers for name, why in row.absent.items()})
    notes = [f"Took no part in some layers: {'; '.join(absent)}."] if absent else []
    title = f"Comparison: {plural(found.threads, 'thread')}"
    return Section(title, facts, [], [g for g in groups if g.figures], notes)


def _model_bench(found: ModelBench) -> Section:
    facts = [("Target", found.target), ("Threads", str(found.threads))]
    if found.device:
        facts.insert(0, ("Device", found.device))
    return Section(f"{found.model} beside others", facts, [], [Group("", comparison.model(found))])


def _profile(found: Profile) -> Section:
    facts = [("Target", found.target), ("Threads", str(found.threads))]
    if found.device:
        facts.insert(0, ("Device", found.device))
    total = sum(o.seconds for o in found.operators)
    tiles = [Tile(f"{ms(total)} ms", "sum of the operators")]
    if found.seconds:
        tiles.insert(0, Tile(f"{ms(found.seconds)} ms", "a call of the model"))
    tiles.append(Tile(f"{len(found.operators):,}", "operators"))
    return Section(f"Model {found.model}", facts, tiles, [Group("", models.figures(found))])


def read_documents(paths: Sequence[Path]) -> list[Bench | ModelBench | Profile]:
    return [bench.read(path) for path in paths]
