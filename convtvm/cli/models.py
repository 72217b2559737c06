"""Whole models on the command line: compile one, and what is said of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtvm.cli.output import (
    check_writable,
    plural,
    print_json,
    print_table,
    torch_allowed,
    warn,
)
from convtvm.errors import ConvtvmError

if TYPE_CHECKING:
    from convtvm.dispatch import Model


def compile_source(source: str | Path, quiet: bool = False, **options: Any) -> Model:
    """The model in a file, compiled with the options of `convtvm.compile_model`."""
    from convtvm.models.remembered import compile_model  # without PyTorch, which ONNX does not need

    with torch_allowed():
        shown = not quiet and sys.stderr.isatty()
        made = compile_model(
            source, progress=_show if shown else lambda done, total: None, **options
        )
    for problem in made.problems:
        warn(problem)
    return made


def _show(done: int, total: int) -> None:
    click.echo(f"\rcompiling: {done} of {plural(total, 'function')}", err=True, nl=done == total)


def compile_to(out: Path, source: str, as_json: bool, **options: Any) -> None:
    """Compile the model in `source` to a library at `out`, and say what is in it."""
    check_writable(out)
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise ConvtvmError(f"cannot write {out}: it is the model itself")
    started = time.monotonic()
    model = compile_source(source, quiet=as_json, **options)
    model.export(out)
    seconds = time.monotonic() - started
    document = document_of(model, out, seconds)
    if as_json:
        print_json(document)
        return
    print_table("", ["", ""], facts_of(model))
    click.echo(f"{out}: {out.stat().st_size:,} bytes, {seconds:.1f} s")


def facts_of(model: Model) -> list[tuple[str, str]]:
    facts = model.facts
    rows = [
        ("model", str(facts.get("source", "-"))),
        ("targets", ", ".join(m.target for m in model.content.targets)),
        ("threads", str(model.threads)),
        *(("input", str(port)) for port in model.inputs.values()),
        *(("output", str(port)) for port in model.outputs.values()),
        ("operators", f"{len(model.manifest.steps)}, {_kernels(model)} of them convolutions"),
        ("weights", f"{model.weight_bytes:,} bytes"),
        ("memory", f"{model.peak_bytes:,} bytes at most, {model.arena_bytes:,} of them values"),
    ]
    if "max_error" in facts:
        text = f"{facts['max_error']:.1e} of the largest output"
        if "conditioning" in facts:
            text += f"; rounding the inputs moves the original by {facts['conditioning']:.1e}"
        rows.append(("difference from the original", text))
    return rows


def _kernels(model: Model) -> int:
    functions = model.manifest.functions
    return sum(bool(functions[step.function].about) for step in model.manifest.steps)


def document_of(model: Model, library: Path, seconds: float | None = None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "library": str(library),
        "target": model.target,
        "targets": [m.target for m in model.content.targets],
        "threads": model.threads,
        **_ports(model),
        "batch": model.batch,
        "steps": len(model.manifest.steps),
        "kernels": _kernels(model),
        "weight_bytes": model.weight_bytes,
        "arena_bytes": model.arena_bytes,
        "peak_bytes": model.peak_bytes,
        "facts": dict(model.facts),
    }
    if seconds is not None:
        document |= {
            "bytes": library.stat().st_size,
            "seconds": seconds,
            "problems": list(model.problems),
        }
    return document


def _ports(model: Model) -> dict[str, list[dict[str, Any]]]:
    return {
        kind: [
            {"name": p.name, "dtype": str(p.dtype), "shape": list(p.shape)} for p in ports.values()
        ]
        for kind, ports in (("inputs", model.inputs), ("outputs", model.outputs))
    }
