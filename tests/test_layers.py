"""The rooms of the house: which folder may import which, read from the source, never run.

ROOMS is the rule, and the map in CONTRIBUTING.md is the same table. Every import counts, also one
inside a function or under TYPE_CHECKING, and `import_module("a.literal")`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("convtvm", "schedules")
ALL_ABOVE = ("all above",)


@dataclass(frozen=True)
class Room:
    """A folder, its one sentence, the rooms above it that it may import, and the packages from
    outside besides the standard library; None for any."""

    folder: str
    sentence: str
    imports: tuple[str, ...] = ()
    outside: tuple[str, ...] | None = ()


# From the ground up: a room imports from those above it in this table.
ROOMS = [
    Room("schedules/", "how a kernel is computed: templates and their knobs", (), ("TVM",)),
    Room(
        "convtvm/problem/",
        "what is computed: workload, its grammar, where workloads come from, the float64 answer, "
        "how similar two are, the order of a kernel's arguments, activations",
        (),
        ("numpy",),
    ),
    Room(
        "convtvm/machine/",
        "what it is computed on: targets, this CPU, this GPU, NVIDIA's libraries",
        ("problem",),
    ),
    Room(
        "convtvm/dispatch/",
        "the run time: manifest, library, selection, plan, tensors; no compiler",
        ("problem", "machine"),
        ("numpy", "tvm_ffi"),
    ),
    Room(
        "convtvm/compute/",
        "what an algorithm computes, as tensor expressions",
        ("problem",),
        ("numpy", "TVM"),
    ),
    Room(
        "convtvm/kernels/",
        "an algorithm joined with its template and lowered to machine code, for CPUs and GPUs",
        ("schedules", "problem", "machine", "compute"),
        ("numpy", "TVM"),
    ),
    Room(
        "convtvm/measure/",
        "candidates built, checked, timed and raced in processes that may die of them; the "
        "machine's peak",
        ("problem", "machine", "dispatch", "kernels"),
        None,
    ),
    Room(
        "convtvm/logs/",
        "what was measured, and what that says of what was not",
        ("problem", "machine", "kernels"),
        None,
    ),
    Room(
        "convtvm/library/",
        "from records to one file: choices, build, deployment folder",
        ("problem", "machine", "dispatch", "compute", "kernels", "measure", "logs"),
        None,
    ),
    Room(
        "convtvm/tuning/",
        "what to measure next, when to stop, the last word",
        ("schedules", "problem", "machine", "kernels", "measure", "logs", "library"),
        None,
    ),
    Room(
        "convtvm/models/",
        "whole networks: ONNX or exported PyTorch in, one tuned library out",
        ALL_ABOVE,
        None,
    ),
    Room(
        "convtvm/torch/",
        "PyTorch's door: convolutions of a live model by plans",
        ALL_ABOVE,
        None,
    ),
    Room("convtvm/compare/", "other libraries beside ours", ALL_ABOVE, None),
    Room(
        "convtvm/report/",
        "pages and pictures of what was tuned, chosen and compared",
        ALL_ABOVE,
        None,
    ),
    Room("convtvm/cli/", "what a person types", ALL_ABOVE, None),
]

# Loose modules that anyone in convtvm may import; among themselves in this order.
LOOSE = ("errors", "files", "pins", "version")

# A module whose packages from outside are not those of its room.
OUTSIDE = {
    "convtvm.machine.targets": ("TVM",),
    "convtvm.compute.winograd_matrices": ("numpy",),  # exact rationals, no TVM
    "convtvm.problem.dtypes": ("numpy", "ml_dtypes"),
}

# What `TVM` stands for.
TVM = {"tvm", "tvm_ffi"}

# A room may not import these, though it may import their room.
CLOSED = {"dispatch": {"convtvm.machine.targets"}}

# Importing these must not import tvm, not even by way of another module.
WITHOUT_TVM = ("convtvm", "convtvm.dispatch", "convtvm.cli")


@dataclass(frozen=True)
class Import:
    """One imported module, `names` taken from it, and whether importing the file runs it."""

    module: str
    names: tuple[str, ...]
    line: int
    eager: bool


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in `source`, relative ones resolved against `module`."""

    def visit(node: ast.AST, eager: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno, eager)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            yield Import(base, tuple(alias.name for alias in node.names), node.lineno, eager)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0] if node.args else None
            if (
                called in ("import_module", "__import__")
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                yield Import(first.value, (), node.lineno, eager)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            eager = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            eager = False
        for child in ast.iter_child_nodes(node):
            yield from visit(child, eager)

    return visit(ast.parse(source), eager=True)


def modules_meant(imported: Import, known: set[str]) -> list[str]:
    """`from package import module` means the module; any other name means where it is defined."""
    if not imported.names:
        return [imported.module]
    deeper = [f"{imported.module}.{name}" for name in imported.names]
    return sorted({name if name in known else imported.module for name in deeper})


def room_of(module: str) -> str:
    """The room of a module: `schedules`, its folder under convtvm/, or a loose module's name."""
    parts = module.split(".")
    return parts[0] if parts[0] != "convtvm" or len(parts) == 1 else parts[1]


def name_of(room: Room) -> str:
    return room.folder.strip("/").split("/")[-1]


def allowed_rooms(room: str) -> set[str]:
    """The rooms that `room` may import, itself and the loose modules among them."""
    names = [name_of(r) for r in ROOMS]
    imports = ROOMS[names.index(room)].imports
    above = names[: names.index(room)] if imports == ALL_ABOVE else imports
    return {room, *above, *(LOOSE if room != "schedules" else ())}


def complaint_about(module: str, imported: Import, target: str) -> str | None:
    """What is wrong with `module` importing `target`, or None."""
    room, other = room_of(module), room_of(target)
    if target.split(".")[0] not in PACKAGES:
        return _complaint_about_package(module, imported, target.split(".")[0])
    if module in ("convtvm", "convtvm.__main__"):
        eager = {*LOOSE, "problem", "dispatch"} | ({"cli"} if module != "convtvm" else set())
        if not imported.eager or other in eager:
            return None
        return f"imports {target} eagerly; move it into a function"
    if target == "convtvm":
        if "__version__" in imported.names and room not in LOOSE:
            return None
        return "imports from convtvm itself; import from the module that defines the name"
    if room in LOOSE:
        allowed = set(LOOSE[: LOOSE.index(room)])
    elif room in map(name_of, ROOMS):
        allowed = allowed_rooms(room)
    else:
        return None  # said once for the file
    if other not in allowed or target in CLOSED.get(room, set()):
        return f"may not import {target}: {room} imports {', '.join(sorted(allowed - {room}))}"
    return None


def _complaint_about_package(module: str, imported: Import, package: str) -> str | None:
    room = next((r for r in ROOMS if name_of(r) == room_of(module)), None)
    named = OUTSIDE.get(module, room.outside if room else ())
    if module in ("convtvm", "convtvm.__main__") and not imported.eager:
        return None
    if named is None or package in sys.stdlib_module_names:
        return None
    allowed = {p for name in named for p in (TVM if name == "TVM" else {name})}
    if package in allowed:
        return None
    names = ", ".join(["the standard library", *named])
    return f"imports {package}, and from outside may import only {names}"


def modules_under(root: Path) -> dict[str, Path]:
    """Module name -> file, of both packages."""
    files: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports_in(module: str, path: Path) -> Iterator[Import]:
    return imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")


def violations(root: Path) -> list[str]:
    """Every breach of the rules in the packages under `root`, as `file:line: module complaint`."""
    files = modules_under(root)
    known = {*map(name_of, ROOMS), *LOOSE, "convtvm", "__main__"}
    found = []
    for module, path in files.items():
        place = path.relative_to(root).as_posix()
        if room_of(module) not in known:
            found.append(f"{place}:1: {module} stands in no room: move it, or add one to ROOMS")
        for imported in imports_in(module, path):
            for target in modules_meant(imported, set(files)):
                complaint = complaint_about(module, imported, target)
                if complaint:
                    found.append(f"{place}:{imported.line}: {module} {complaint}")
    return found


def circles(root: Path) -> list[list[str]]:
    """Modules that import each other, however long the way; imports within functions count."""
    files = modules_under(root)
    arrows = {
        module: {
            target
            for imported in imports_in(module, path)
            for target in modules_meant(imported, set(files))
            if target in files and target != module
        }
        for module, path in files.items()
    }
    reach: Mapping[str, set[str]] = {module: _reached(module, arrows) for module in arrows}
    together = {frozenset(b for b in reach[a] if a in reach[b]) for a in arrows if a in reach[a]}
    return sorted(sorted(circle) for circle in together)


def _reached(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    """The modules at the end of any way along `arrows` that begins at `start`."""
    found: set[str] = set()
    queue = [start]
    while queue:
        for target in arrows[queue.pop()] - found:
            found.add(target)
            queue.append(target)
    return found


def way_to_tvm(start: str, files: dict[str, Path]) -> list[str]:
    """The chain of eager imports by which importing `start` imports tvm; empty if it does not."""
    ways = {start: [start]}
    queue = [start]
    while queue:
        module = queue.pop(0)
        for imported in imports_in(module, files[module]):
            for target in modules_meant(imported, set(files)) if imported.eager else []:
                if target.split(".")[0] == "tvm":
                    return [*ways[module], target]
                if target in files and target not in ways:
                    ways[target] = [*ways[module], target]
                    queue.append(target)
    return []


def map_of_the_house() -> list[str]:
    """ROOMS as the rows of a Markdown table."""
    rows = []
    for room in ROOMS:
        names = [n if n == "all above" else f"`{n}`" for n in room.imports]
        outside = ["anything" if room.outside is None else ", ".join(room.outside)]
        cells = (f"`{room.folder}`", room.sentence, ", ".join(names), *outside)
        rows.append("| " + " | ".join(cell or "–" for cell in cells) + " |")
    return rows


def test_imports_point_downward() -> None:
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_nothing_goes_in_circles() -> None:
    found = circles(ROOT)
    assert not found, "\n" + "\n".join(" <-> ".join(circle) for circle in found)


def test_contributing_has_the_same_map() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text("utf8").splitlines()
    heading = lines.index("## A map of the house")
    table = [line for line in lines[heading:] if line.startswith("| `")][: len(ROOMS)]
    assert table == map_of_the_house()


def test_every_room_exists_and_says_its_sentence() -> None:
    for room in ROOMS:
        source = (ROOT / room.folder / "__init__.py").read_text("utf8")
        assert ast.get_docstring(ast.parse(source)), f"{room.folder} has no docstring"


@pytest.mark.parametrize("module", WITHOUT_TVM)
def test_import_stays_without_the_compiler(module: str) -> None:
    files = modules_under(ROOT)
    way = way_to_tvm(module, files) if module in files else []
    assert not way, f"import {module} imports tvm (1.1 s): " + " -> ".join(way)


# path of the planted file, its source, and a part of the complaint
BREACHES = [
    ("convtvm/problem/workload.py", "import tvm", "may import only the standard library, numpy"),
    (
        "convtvm/problem/workload.py",
        "from convtvm.dispatch.manifest import x",
        "may not import convtvm.dispatch.manifest",
    ),
    ("convtvm/errors.py", "from convtvm.problem.workload import x", "may not import"),
    ("convtvm/errors.py", "import convtvm.files", "may not import convtvm.files"),
    ("convtvm/errors.py", "import numpy", "may import only the standard library"),
    ("convtvm/files.py", "from convtvm import __version__", "convtvm itself"),
    ("convtvm/machine/cpu.py", "import tvm", "may import only the standard library"),
    (
        "convtvm/compute/direct.py",
        "from convtvm.kernels import algorithms",
        "may not import convtvm.kernels",
    ),
    ("convtvm/compute/direct.py", "from ..logs.records import best", "convtvm.logs.records"),
    ("convtvm/compute/direct.py", "import schedules.cpu", "may not import schedules.cpu"),
    ("convtvm/compute/winograd_matrices.py", "import tvm", "imports tvm"),
    ("schedules/cpu/direct.py", "import convtvm.errors", "may not import convtvm.errors"),
    ("schedules/cpu/direct.py", "import numpy", "may import only the standard library, TVM"),
    ("convtvm/kernels/task.py", "import convtvm.logs.records", "convtvm.logs.records"),
    ("convtvm/kernels/codegen.py", "import convtvm.measure.zygote", "convtvm.measure.zygote"),
    ("convtvm/logs/records.py", "import convtvm.measure.workbench", "convtvm.measure.workbench"),
    ("convtvm/measure/workbench.py", "from convtvm.compute import x", "convtvm.compute"),
    ("convtvm/library/build.py", "import convtvm.tuning.tuner", "convtvm.tuning.tuner"),
    ("convtvm/logs/prediction.py", "import convtvm.tuning.tuner", "convtvm.tuning.tuner"),
    ("convtvm/models/graph.py", "import convtvm.compare.bench", "convtvm.compare.bench"),
    ("convtvm/dispatch/library.py", "def f():\n    import tvm.runtime", "imports tvm"),
    ("convtvm/dispatch/library.py", "import_module('tvm')", "imports tvm"),
    (
        "convtvm/dispatch/library.py",
        "def f():\n    from convtvm.machine import targets",
        "may not import convtvm.machine.targets",
    ),
    (
        "convtvm/dispatch/library.py",
        "from convtvm.kernels.algorithms import TABLE",
        "convtvm.kernels.algorithms",
    ),
    ("convtvm/dispatch/library.py", "from convtvm import ConvWorkload", "convtvm itself"),
    ("convtvm/__init__.py", "from convtvm.tuning.tuner import tune", "eagerly"),
    ("convtvm/__init__.py", "import tvm", "imports tvm"),
    ("convtvm/novelty.py", "import os", "stands in no room"),
    ("convtvm/novelties/new.py", "import os", "stands in no room"),
]

KEEPING = [
    ("convtvm/problem/workload.py", "import json\nimport numpy\nfrom convtvm.errors import x"),
    ("convtvm/pins.py", "from convtvm.errors import x"),
    ("convtvm/machine/targets.py", "import tvm\nfrom convtvm.problem.workload import x"),
    ("convtvm/compute/direct.py", "from . import stages\nfrom ..problem.workload import x"),
    ("schedules/cpu/direct.py", "import tvm\nfrom schedules import knobs"),
    ("convtvm/kernels/algorithms.py", "import tvm\nimport schedules.cpu.direct, convtvm.compute"),
    ("convtvm/measure/workbench.py", "import psutil\nfrom convtvm.kernels import codegen, task"),
    ("convtvm/logs/records.py", "from convtvm import __version__\nimport convtvm.kernels.task"),
    ("convtvm/tuning/new.py", "import xgboost\nfrom convtvm.tuning import search"),
    ("convtvm/dispatch/library.py", "import tvm_ffi\nfrom convtvm.machine import cpu"),
    ("convtvm/models/graph.py", "import convtvm.tuning.tuner, convtvm.compute.direct"),
    ("convtvm/cli/new.py", "import click\nimport convtvm.compare.bench, convtvm.models"),
    ("convtvm/__init__.py", "from convtvm.dispatch import load\ndef f():\n    import tvm"),
    ("convtvm/__init__.py", "if TYPE_CHECKING:\n    from convtvm.tuning.tuner import tune"),
]


def plant(root: Path, *files: tuple[str, str]) -> list[str]:
    """The complaints about a tree of empty rooms with these files, (path, source)."""
    for folder in (room.folder for room in ROOMS):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "__init__.py").touch()
    for path, source in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(source, encoding="utf-8")
    return violations(root)


@pytest.mark.parametrize(("path", "source", "part"), BREACHES)
def test_checker_finds_a_planted_breach(tmp_path: Path, path: str, source: str, part: str) -> None:
    targets = [("convtvm/machine/targets.py", "import tvm")]
    found = plant(tmp_path, *targets, (path, source))
    assert len(found) == 1, found
    assert found[0].startswith(f"{path}:") and part in found[0]


@pytest.mark.parametrize(("path", "source"), KEEPING)
def test_checker_lets_the_house_be(tmp_path: Path, path: str, source: str) -> None:
    assert plant(tmp_path, (path, source)) == []


def test_checker_follows_imports_to_tvm(tmp_path: Path) -> None:
    plant(
        tmp_path,
        ("convtvm/machine/targets.py", "import tvm.target"),
        ("convtvm/dispatch/__init__.py", "def f():\n    import convtvm.machine.targets"),
    )
    assert way_to_tvm("convtvm.dispatch", modules_under(tmp_path)) == []
    plant(
        tmp_path,
        ("convtvm/machine/cpu.py", "from convtvm.machine import targets"),
        ("convtvm/dispatch/__init__.py", "import convtvm.machine.cpu"),
    )
    assert way_to_tvm("convtvm.dispatch", modules_under(tmp_path)) == [
        "convtvm.dispatch",
        "convtvm.machine.cpu",
        "convtvm.machine.targets",
        "tvm.target",
    ]


def test_checker_finds_circles(tmp_path: Path) -> None:
    plant(
        tmp_path,
        ("convtvm/cli/a.py", "from convtvm.cli import b"),
        ("convtvm/cli/b.py", "import convtvm.cli.c"),
    )
    assert circles(tmp_path) == []
    plant(tmp_path, ("convtvm/cli/c.py", "def f():\n    from convtvm.cli.a import x"))
    assert circles(tmp_path) == [["convtvm.cli.a", "convtvm.cli.b", "convtvm.cli.c"]]
