"""`convtvm report`: one page about a tuning run, a library, a model, a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from convtvm.cli.options import examples, json_option
from convtvm.cli.output import check_writable, print_json, warn, without_torch, write_whole


@click.command(
    "report",
    epilog=examples(
        "convtvm report r18.jsonl -o report.html",
        "convtvm report r18.jsonl --library r18.so --bench bench.json -o report.html",
    ),
)
@click.argument("logs", nargs=-1, metavar="[LOG]...", type=click.Path(path_type=Path))
@click.option(
    "--library",
    "libraries",
    multiple=True,
    metavar="LIB.so",
    type=click.Path(path_type=Path),
    help="Library of kernels, or of a model, whose operators are then timed here; may be repeated.",
)
@click.option(
    "--bench",
    "benches",
    multiple=True,
    metavar="BENCH.json",
    type=click.Path(path_type=Path),
    help="What `bench --json` or `run --profile --json` printed; may be repeated.",
)
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    metavar="REPORT.html",
    type=click.Path(path_type=Path),
    help="Page to write, whole or not at all.",
)
@json_option
@without_torch()
def report(
    logs: Sequence[Path],
    libraries: Sequence[Path],
    benches: Sequence[Path],
    out: Path,
    as_json: bool,
) -> None:
    """Write one page of pictures and tables about tuning LOGs, libraries, models and comparisons.

    The page needs no network. Where the logs are of this machine, its peak and its memory's
    bandwidth are measured for the roofline: let nothing else run meanwhile.
    """
    if not (logs or libraries or benches):
        raise click.UsageError("nothing to report on: expected a LOG, --library or --bench")
    check_writable(out)
    from convtvm.logs.records import load
    from convtvm.report import building
    from convtvm.report.rendering import check_available

    check_available()
    documents = building.read_documents(benches)
    records, problems = load(logs)
    for problem in problems:
        warn(str(problem))
    found = [building.read_library(path) for path in libraries]
    evidence = building.Evidence(
        records,
        problems,
        [library for each in found for library in each.libraries],
        [*documents, *(d for each in found for d in each.documents)],
        [str(path) for path in logs],
    )
    content = building.report(evidence).encode("utf8")
    write_whole(out, content)
    if as_json:
        print_json({"out": str(out), "bytes": len(content), "records": len(records)})
    else:
        click.echo(f"{out}: {len(content):,} bytes, {len(records):,} records")
