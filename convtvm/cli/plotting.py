"""`bench --plot FILE`: the comparison as a page or as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from convtvm import __version__
from convtvm.cli.output import check_writable, write_whole
from convtvm.version import with_commit

_KINDS = (".html", ".svg", ".png")


def _checked(ctx: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """The path, if a picture can be made there: now, and not after the last measurement."""
    if path is None:
        return None
    if path.suffix.lower() not in _KINDS:
        raise click.BadParameter(f"{path} is no picture, expected {', '.join(_KINDS)}")
    check_writable(path)
    from convtvm.report.rendering import check_available

    check_available()
    return path


plot_option = click.option(
    "--plot",
    callback=_checked,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the comparison as well to this .html, .svg (for light and dark pages) or .png.",
)


def write_plot(path: Path | None, document: Mapping[str, Any]) -> None:
    """Draw what `--json` prints, if a path is given."""
    if path is None:
        return
    from convtvm.report import bench, comparison, rendering

    found = bench.parse(document, "the comparison")
    assert not isinstance(found, bench.Profile)
    if path.suffix.lower() == ".html":
        from convtvm.report.building import Evidence, report

        content = report(Evidence(documents=[found])).encode("utf8")
    else:
        figure, title, subtitle = comparison.picture(found)
        below = [subtitle, f"convtvm {with_commit(__version__)}"]
        if not document.get("noise", {}).get("good", True):
            below[-1] += ", from a noisy run: measure again on a machine at rest"
        if path.suffix.lower() == ".svg":
            content = rendering.svg(figure, title, below).encode("utf8")
        else:
            content = rendering.png(figure, title, below)
    write_whole(path, content)
    click.echo(f"{path}: {len(content):,} bytes", err=True)
