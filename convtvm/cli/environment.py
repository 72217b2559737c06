"""`convtvm info`: versions, this CPU, its target, compilers, and what is missing."""

from __future__ import annotations

import shutil
from typing import Any

import click

from convtvm import __version__, version
from convtvm.cli import caching
from convtvm.cli.options import examples, json_option
from convtvm.cli.output import print_json, print_table, without_torch
from convtvm.errors import ConvtvmError
from convtvm.machine import cpu

# Compiler -> (what it is for, how to get it)
_COMPILERS = {
    "ld": ("tune and compile", "install binutils (apt install binutils, dnf install binutils)"),
    "aarch64-linux-gnu-ld": (
        "compile for aarch64",
        "install binutils-aarch64-linux-gnu, or lld for every target",
    ),
    "g++": ("extensions of your own only", "install g++ (apt install g++, dnf install gcc-c++)"),
    "nvcc": ("CUDA targets, unless NVRTC is there", "pip install convtvm[cuda]"),
}
_REQUIRED = "ld"


@click.command(epilog=examples("convtvm info"))
@json_option
@without_torch()
def info(as_json: bool) -> None:
    """Show versions, CPU, target, compilers, what is missing."""
    facts = gather()
    if as_json:
        print_json(facts)
        return
    target = facts["target"]
    rows = list(facts["versions"].items())
    rows.append(("CPU", facts["cpu"]["name"]))
    rows.append(("cores", f"{facts['cpu']['cores']} usable"))
    rows.append(("features", " ".join(facts["cpu"]["features"]) or "unknown"))
    rows.append(("native target", target["name"] if target else "none"))
    if target:
        rows.append(("vector width", f"{target['lanes']} floats, {target['registers']} registers"))
    rows += facts["compilers"].items()
    kept = facts["cache"]
    held = f"{kept['folder']}: {kept['entries']} kernels, {kept['bytes']:,} bytes"
    rows.append(("cache", held if kept["folder"] else "disabled"))
    print_table("", ["", ""], [(name, value or "not found") for name, value in rows])
    for line in facts["missing"]:
        click.echo(f"missing: {line}")
    if not facts["missing"]:
        click.echo("nothing is missing")


def gather() -> dict[str, Any]:
    """All that `info` shows, as JSON has it."""
    versions = version.versions(__version__)
    missing = [
        f"{name}: pip install {version.PACKAGES[name][0]}"
        for name, found in versions.items()
        if found is None
    ]
    compilers = {name: shutil.which(name) for name in _COMPILERS}
    for name, path in compilers.items():
        if path is None:
            use, cure = _COMPILERS[name]
            optional = "" if name == _REQUIRED else "optional, "
            missing.append(f"{name} ({optional}for {use}): {cure}")
    target, problem = _native()
    missing += [problem] if problem else []
    return {
        "versions": versions,
        "cpu": cpu.facts(),
        "target": target,
        "compilers": compilers,
        "cache": caching.facts(),
        "missing": missing,
    }


def _native() -> tuple[dict[str, Any] | None, str]:
    """The native target's facts, or None and why there is none."""
    try:
        from convtvm.machine.targets import resolve

        target = resolve("native")
    except (ConvtvmError, ImportError, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        return None, f"native target: {first or type(error).__name__}"
    return {"name": target.name, "lanes": target.lanes, "registers": target.registers}, ""
