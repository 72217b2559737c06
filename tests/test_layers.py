"""The layers of the house: which module may import which, read from the source, never run.

The rules are the tables below; CONTRIBUTING.md has the same in words. Every import counts,
also one inside a function or under TYPE_CHECKING, and `import_module("a.literal")`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("convtvm", "schedules")

# Module -> layer; `name.*` stands for a package with all that is in it.
LAYERS = {
    "convtvm.errors": 0,
    "convtvm.files": 0,
    "convtvm.pins": 0,
    "convtvm.descriptor": 0,
    "convtvm.workload": 0,
    "convtvm.cpu": 0,
    "convtvm.arguments": 0,
    "convtvm.cuda": 0,
    "convtvm.cuda.gpu": 0,
    "convtvm.cuda.nvidia": 0,
    "convtvm.sources": 0,
    "convtvm.targets": 0,
    "convtvm.manifest": 0,
    "convtvm.reference": 0,
    "convtvm.similarity": 0,
    "convtvm.compute.*": 1,
    "schedules.*": 1,
    "convtvm.algorithms": 2,
    "convtvm.cuda.algorithms": 2,
    "convtvm.cuda.instructions": 3,
    "convtvm.cuda.nvrtc": 3,
    "convtvm.cuda.cubin": 3,
    "convtvm.cuda.device_code": 3,
    "convtvm.lowering": 3,
    "convtvm.lowering.*": 3,
    "convtvm.codegen": 3,
    "convtvm.cuda.codegen": 3,
    "convtvm.task": 3,
    "convtvm.measure.*": 3,
    "convtvm.records": 3,
    "convtvm.verify": 4,
    "convtvm.cuda.verify": 4,
    "convtvm.peak": 4,
    "convtvm.tuning.*": 4,
    "convtvm.prediction": 4,
    "convtvm.choices": 4,
    "convtvm.build": 4,
    "convtvm.dispatch.*": 5,
    "convtvm.cli.*": 6,
    "convtvm.deployment": 6,
    "convtvm.torch": 6,
    "convtvm.peers": 6,
    "convtvm.bench": 6,
    "convtvm.__main__": 6,
}

# Layer -> the lower layers it may import.
BELOW: dict[int, set[int]] = {
    0: set(),
    1: {0},
    2: {0, 1},
    3: {0, 2},
    4: {0, 2, 3},
    5: {0},
    6: {0, 1, 2, 3, 4, 5},
}

# Module or row -> what it may import besides: of its own layer (within a package of one layer
# anything goes anyway), or the templates' vocabulary, which the layers above otherwise leave to
# `algorithms`.
ALSO = {
    "convtvm.descriptor": {"convtvm.errors"},
    "convtvm.workload": {"convtvm.errors", "convtvm.descriptor"},
    "convtvm.sources": {"convtvm.errors", "convtvm.workload"},
    "convtvm.pins": {"convtvm.errors"},
    "convtvm.targets": {"convtvm.errors", "convtvm.workload", "convtvm.cpu", "convtvm.cuda.gpu"},
    "convtvm.cuda.algorithms": {"convtvm.algorithms"},
    "convtvm.cuda.cubin": {"convtvm.cuda.nvrtc"},
    "convtvm.lowering": {"convtvm.lowering.pipeline"},
    "convtvm.lowering.*": {"schedules.cpu.registers"},
    "convtvm.codegen": {"convtvm.cuda.device_code", "convtvm.lowering"},
    "convtvm.cuda.instructions": {"schedules.cuda.mma"},
    "convtvm.cuda.codegen": {
        "convtvm.codegen",
        "convtvm.cuda.cubin",
        "convtvm.cuda.device_code",
        "convtvm.cuda.instructions",
    },
    "convtvm.manifest": {"convtvm.errors", "convtvm.workload"},
    "convtvm.reference": {"convtvm.errors", "convtvm.workload"},
    "convtvm.similarity": {"convtvm.workload"},
    "convtvm.task": {
        "convtvm.codegen",
        "convtvm.compute.epilogue",
        "schedules.knobs",
        "schedules.cpu.registers",
        "schedules.cuda.model",
    },
    "convtvm.measure.*": {
        "convtvm.codegen",
        "convtvm.cuda.codegen",
        "convtvm.lowering",
        "convtvm.task",
    },
    # A winner is measured again as a plan calls it.
    "convtvm.measure.race": {
        "convtvm.dispatch",
        "convtvm.dispatch.plan",
        "convtvm.dispatch.selection",
    },
    "convtvm.records": {"convtvm.task"},
    "convtvm.tuning.search": {"schedules.knobs"},
    "convtvm.tuning.confirm": {"convtvm.build", "convtvm.choices"},
    "convtvm.tuning.tuner": {"convtvm.choices"},
    # `compile` returns the library that it made, opened by the run time as in any later process.
    "convtvm.build": {
        "convtvm.compute.epilogue",
        "convtvm.dispatch",
        "convtvm.dispatch.library",
        "convtvm.choices",
    },
    "convtvm.choices": {"convtvm.prediction"},
}

# Module or layer -> the packages from outside it may import, besides the standard library.
# The first of (module, its row in LAYERS, layer) that has an entry counts; no entry: any package.
OUTSIDE: dict[str | int, set[str]] = {
    0: {"numpy"},
    "convtvm.targets": {"numpy", "tvm"},
    "convtvm.compute.*": {"numpy", "tvm"},
    "convtvm.compute.epilogue": {"tvm", "tvm_ffi"},
    "convtvm.compute.cuda.gemm": {"tvm", "tvm_ffi"},
    "convtvm.compute.winograd_matrices": {"numpy"},  # exact rationals, no TVM
    "schedules.*": {"tvm"},
    5: {"numpy", "tvm_ffi"},  # the run time: no compiler
}

# `import convtvm` pays for what its __init__ imports eagerly; within functions it is free.
EAGER_IN_INIT = {0, 5}

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


def row_of(module: str) -> str | None:
    """The row of LAYERS that `module` falls under."""
    if module in LAYERS:
        return module
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        row = ".".join(parts[:length]) + ".*"
        if row in LAYERS:
            return row
    return None


def modules_meant(imported: Import, known: set[str]) -> list[str]:
    """`from package import module` means the module; any other name means where it is defined."""
    if not imported.names:
        return [imported.module]
    deeper = [f"{imported.module}.{name}" for name in imported.names]
    return sorted({name if name in known else imported.module for name in deeper})


def complaint_about(module: str, imported: Import, target: str) -> str | None:
    """What is wrong with `module` importing `target`, or None."""
    top = target.split(".")[0]
    if module == "convtvm":
        if not imported.eager:
            return None
        if top in PACKAGES:
            row = row_of(target)
            if row is None or LAYERS[row] in EAGER_IN_INIT:
                return None
            return f"imports {target} (layer {LAYERS[row]}) eagerly; move it into a function"
        return "imports tvm eagerly; move it into a function" if top == "tvm" else None

    row = row_of(module)
    if row is None:
        return None  # said once for the file
    layer = LAYERS[row]
    if top not in PACKAGES:
        allowed = next((OUTSIDE[key] for key in (module, row, layer) if key in OUTSIDE), None)
        if allowed is None or top in allowed or top in sys.stdlib_module_names:
            return None
        names = ", ".join(["the standard library", *sorted(allowed)])
        return f"imports {target}, and its layer ({layer}) may import only {names} from outside"
    if row == "schedules.*":
        return None if top == "schedules" else f"imports {target}: schedules never imports convtvm"
    if target == "convtvm":
        if layer == 6 or "__version__" in imported.names:
            return None
        return "imports from convtvm itself; import from the module that defines the name"
    other = row_of(target)
    if other is None:
        return f"imports {target}, which has no layer: give it a layer in LAYERS"
    if layer == 6 or LAYERS[other] in BELOW[layer]:
        return None
    if row == other or target in ALSO.get(module, set()) | ALSO.get(row, set()):
        return None
    return f"(layer {layer}) may not import {target} (layer {LAYERS[other]})"


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
    found = []
    for module, path in files.items():
        place = path.relative_to(root).as_posix()
        if module != "convtvm" and row_of(module) is None:
            found.append(f"{place}:1: {module} is new: give it a layer in LAYERS")
        for imported in imports_in(module, path):
            for target in modules_meant(imported, set(files)):
                complaint = complaint_about(module, imported, target)
                if complaint:
                    found.append(f"{place}:{imported.line}: {module} {complaint}")
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


def test_imports_point_downward() -> None:
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_packages_are_where_the_checker_looks() -> None:
    for package in PACKAGES:
        assert list((ROOT / package).rglob("*.py")), f"no module under {package}/"


@pytest.mark.parametrize("module", WITHOUT_TVM)
def test_import_stays_without_the_compiler(module: str) -> None:
    files = modules_under(ROOT)
    way = way_to_tvm(module, files) if module in files else []
    assert not way, f"import {module} imports tvm (1.1 s): " + " -> ".join(way)


# path of the planted file, its source, and a part of the complaint
BREACHES = [
    ("convtvm/workload.py", "import tvm", "may import only the standard library, numpy"),
    ("convtvm/workload.py", "from convtvm.manifest import x", "(layer 0) may not import"),
    ("convtvm/errors.py", "from convtvm.workload import x", "(layer 0) may not import"),
    (
        "convtvm/errors.py",
        "import convtvm.tuning.tuner",
        "may not import convtvm.tuning.tuner (layer 4)",
    ),
    ("convtvm/compute/direct.py", "from convtvm import algorithms", "convtvm.algorithms (layer 2)"),
    ("convtvm/compute/direct.py", "from ..records import best", "convtvm.records (layer 3)"),
    ("convtvm/compute/direct.py", "import schedules.cpu", "may not import schedules.cpu (layer 1)"),
    ("convtvm/compute/winograd_matrices.py", "import tvm", "imports tvm"),
    ("schedules/cpu/direct.py", "import convtvm.errors", "schedules never imports convtvm"),
    ("schedules/cpu/direct.py", "import numpy", "may import only the standard library, tvm"),
    ("convtvm/algorithms.py", "import convtvm.records", "convtvm.records (layer 3)"),
    (
        "convtvm/records.py",
        "import convtvm.measure.workbench",
        "convtvm.measure.workbench (layer 3)",
    ),
    ("convtvm/codegen.py", "from convtvm.task import Task", "convtvm.task (layer 3)"),
    (
        "convtvm/codegen.py",
        "from convtvm.measure.zygote import x",
        "convtvm.measure.zygote (layer 3)",
    ),
    (
        "convtvm/measure/workbench.py",
        "from convtvm.compute import x",
        "convtvm.compute (layer 1)",
    ),
    ("convtvm/build.py", "import convtvm.tuning.tuner", "convtvm.tuning.tuner (layer 4)"),
    ("convtvm/prediction.py", "import convtvm.tuning.tuner", "convtvm.tuning.tuner (layer 4)"),
    ("convtvm/dispatch/library.py", "def f():\n    import tvm.runtime", "imports tvm.runtime"),
    ("convtvm/dispatch/library.py", "import_module('tvm')", "imports tvm"),
    (
        "convtvm/dispatch/library.py",
        "from convtvm.algorithms import TABLE",
        "convtvm.algorithms (layer 2)",
    ),
    ("convtvm/dispatch/library.py", "from convtvm import ConvWorkload", "convtvm itself"),
    ("convtvm/__init__.py", "from convtvm.tuning.tuner import tune", "eagerly"),
    ("convtvm/__init__.py", "import tvm", "eagerly"),
    ("convtvm/novelty.py", "import os", "give it a layer"),
    ("convtvm/tuning/tuner.py", "import convtvm.novelty", "give it a layer"),
]

KEEPING = [
    ("convtvm/workload.py", "import json\nimport numpy as np\nfrom convtvm.errors import Misuse"),
    ("convtvm/targets.py", "import tvm\nfrom convtvm.errors import Misuse"),
    ("convtvm/compute/direct.py", "from tvm import te\nfrom convtvm.compute import stages"),
    ("convtvm/compute/direct.py", "from . import stages\nfrom ..workload import ConvWorkload"),
    ("schedules/cpu/direct.py", "import tvm\nfrom schedules import common"),
    ("convtvm/algorithms.py", "import tvm\nimport schedules.cpu\nimport convtvm.compute.direct"),
    ("convtvm/task.py", "from convtvm import codegen\nfrom schedules.knobs import Space"),
    ("convtvm/measure/workbench.py", "import psutil\nfrom convtvm import codegen, task"),
    ("convtvm/measure/zygote.py", "from convtvm.codegen import compile_one"),
    ("convtvm/records.py", "from convtvm import __version__\nfrom convtvm.workload import x"),
    (
        "convtvm/tuning/tuner.py",
        "import convtvm.measure.client, convtvm.algorithms",
    ),
    (
        "convtvm/dispatch/library.py",
        "import tvm_ffi\nfrom convtvm import manifest\nfind_spec('tvm')",
    ),
    (
        "convtvm/cli.py",
        "import click\nimport convtvm.bench\ndef f():\n    import convtvm.tuning.tuner",
    ),
    (
        "convtvm/__init__.py",
        "from convtvm.dispatch import load\ndef f():\n    import convtvm.tuning.tuner",
    ),
    ("convtvm/__init__.py", "if TYPE_CHECKING:\n    from convtvm.tuning.tuner import tune"),
    ("convtvm/tuning/new.py", "import xgboost\nfrom convtvm.tuning import search"),
]


def plant(root: Path, path: str, source: str) -> list[str]:
    """The complaints about a tree with one file for every row of LAYERS and the planted one."""
    for row in LAYERS:
        name = row.replace(".*", ".__init__").replace(".", "/") + ".py"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source, encoding="utf-8")
    return violations(root)


@pytest.mark.parametrize(("path", "source", "part"), BREACHES)
def test_checker_finds_a_planted_breach(tmp_path: Path, path: str, source: str, part: str) -> None:
    found = plant(tmp_path, path, source)
    assert len(found) == 1, found
    assert found[0].startswith(f"{path}:") and part in found[0]


@pytest.mark.parametrize(("path", "source"), KEEPING)
def test_checker_lets_the_house_be(tmp_path: Path, path: str, source: str) -> None:
    assert plant(tmp_path, path, source) == []


def test_checker_follows_imports_to_tvm(tmp_path: Path) -> None:
    plant(tmp_path, "convtvm/targets.py", "import tvm.target")
    plant(tmp_path, "convtvm/dispatch/__init__.py", "def f():\n    import convtvm.targets")
    assert way_to_tvm("convtvm.dispatch", modules_under(tmp_path)) == []
    plant(tmp_path, "convtvm/manifest.py", "from convtvm import targets")
    plant(tmp_path, "convtvm/dispatch/__init__.py", "import convtvm.manifest")
    assert way_to_tvm("convtvm.dispatch", modules_under(tmp_path)) == [
        "convtvm.dispatch",
        "convtvm.manifest",
        "convtvm.targets",
        "tvm.target",
    ]
