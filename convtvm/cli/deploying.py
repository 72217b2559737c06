"""`convtvm deploy`: a folder with a library and all that it needs to run. Loads no compiler."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from convtvm.cli.options import examples, json_option
from convtvm.cli.output import print_json, print_table, text_of
from convtvm.errors import printable


@click.command(epilog=examples("convtvm deploy r18.so -o folder"))
@click.argument("library", type=click.Path(path_type=Path), metavar="LIB.so")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="New folder to write.",
)
@json_option
def deploy(library: Path, folder: Path, as_json: bool) -> None:
    """Write a folder that runs LIB.so without TVM's compiler: from Python with numpy, or from C++.

    It is for this machine's kind and this version of Python.
    """
    from convtvm.library.deployment import deploy as write_folder

    sizes = write_folder(library, folder)
    besides = sum(size for name, size in sizes.items() if name != library.name)
    if as_json:
        print_json({"folder": str(folder), "bytes": sizes, "run_time_bytes": besides})
        return
    rows = [[name, text_of(size, "{:,}")] for name, size in sizes.items()]
    print_table(str(folder), ["name", ">bytes"], rows)
    example = shlex.join(["python", str(folder / "example.py")])
    click.echo(printable(f"{besides:,} bytes besides the library; try `{example}`"))
