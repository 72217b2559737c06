"""Packages: what a wheel and a source distribution hold and weigh, that the wheel works alone, that
extras bring what the code imports; what importing loads."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT

sys.path.append(str(ROOT / "scripts"))

import build_packages
import smoke

from convtvm import __version__
from convtvm.version import checked_out

MB = 10**6
WHEEL_BYTES, SDIST_BYTES = 1.1 * MB, 1.2 * MB  # 0.92 and 1.03, much of it tuning_logs/


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(source distribution, wheel) of the working tree."""
    if not checked_out(ROOT):
        pytest.skip("packages are built from a checkout")
    return build_packages.build_both(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(built[1]).extractall(folder)
    return folder


def test_the_wheel_holds_the_code_and_its_data(installed: Path) -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    packages = ("convtvm/", "schedules/", "tuning_logs/")
    expected = {name for name in tracked if name.startswith(packages) and (ROOT / name).exists()}
    expected -= {"tuning_logs/README.md"}
    found = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()}
    found = {name for name in found if ".dist-info/" not in name}
    assert found == expected | {"convtvm/COMMIT"}


def test_weights(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    assert wheel.stat().st_size < WHEEL_BYTES and sdist.stat().st_size < SDIST_BYTES


def test_the_source_distribution_knows_its_commit(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        (name,) = (n for n in archive.getnames() if n.endswith("convtvm/COMMIT"))
        content = archive.extractfile(name)
        assert content is not None and content.read().decode().strip() == checked_out(ROOT)


def test_metadata(installed: Path) -> None:
    (metadata,) = installed.glob("convtvm-*.dist-info/METADATA")
    text = metadata.read_text("utf8")
    assert f"\nVersion: {__version__}\n" in text
    assert set(re.findall(r"^Provides-Extra: (.+)$", text, re.M)) == set(extras())
    assert "convtvm = convtvm.cli:main" in (metadata.parent / "entry_points.txt").read_text()


@pytest.mark.parametrize("step", smoke.quick(), ids=lambda step: step[0].split()[1])
def test_the_wheel_works_alone(step: tuple[str, str], installed: Path) -> None:
    """From its own folder, with this environment's packages; all of scripts/smoke.py runs in new
    environments by scripts/check_packages."""
    (installed / "bin").mkdir(exist_ok=True)
    script = installed / "bin" / "convtvm"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m convtvm "$@"\n')
    if sys.version_info < (3, 11):
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m convtvm "$@"\n')
    script.chmod(0o755)
    smoke.run(step, installed / "bin", installed / "bin", PYTHONPATH=str(installed))


# ---- the commit ----------------------------------------------------------------------------------


def test_commits_of_checkouts(tmp_path: Path) -> None:
    assert checked_out(tmp_path) == ""

    def git(*args: str) -> str:
        settings = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *settings, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "--short", "HEAD")
    assert checked_out(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert checked_out(tmp_path) == f"{commit}-dirty"
    (tmp_path / "inner").mkdir()
    assert checked_out(tmp_path / "inner") == "", "a folder in somebody else's checkout"


# ---- extras --------------------------------------------------------------------------------------

DISTRIBUTIONS = {
    "tvm": "apache-tvm",
    "tvm_ffi": "apache-tvm-ffi",
    "vl_convert": "vl-convert-python",
}
# Which extra brings what a room imports beyond the dependencies of all.
EXTRA_OF = {"compare": "bench", "models": "models", "torch": "models", "report": "report"}
# Brought although no line of ours imports them, and why.
UNIMPORTED = {
    "psutil": "MetaSchedule imports it",
    "cloudpickle": "MetaSchedule imports it",
    "xgboost": "xgboost-cpu for other machines",
    "xgboost-cpu": "xgboost",
    "tornado": "TVM's tracker and servers import it",
    "nvidia-cuda-nvrtc": "found as files",
    "nvidia-nvfatbin": "found as files",
    "nvidia-cuda-runtime": "found as files",
    "nvidia-cuda-crt": "headers",
}
INDIRECT = {
    "google": "onnx brings protobuf",
    "ml_dtypes": "apache-tvm brings it",
    "nvidia": "the extra `cuda`, looked for as files",
}


@cache
def project() -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:
        tomllib = pytest.importorskip("tomli")
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    return found


def named(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in requirements}


def extras() -> dict[str, set[str]]:
    return {k: named(v) for k, v in project()["optional-dependencies"].items()}


def imported() -> dict[str, set[str]]:
    """Package from outside -> the rooms that import it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in [*(ROOT / "convtvm").rglob("*.py"), *(ROOT / "schedules").rglob("*.py")]:
        room = path.relative_to(ROOT).parts[1]
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for top in {name.partition(".")[0] for name in names}:
                if top not in {*sys.stdlib_module_names, "convtvm", "schedules", *INDIRECT}:
                    found[DISTRIBUTIONS.get(top, top).lower()].add(room)
    return found


def test_extras_bring_what_the_code_imports() -> None:
    base = named(project()["dependencies"])
    base |= {"xgboost"} if "xgboost-cpu" in base else set()
    absent = [
        f"{room} imports {package}, which [{EXTRA_OF.get(room)}] lacks"
        for package, rooms in imported().items()
        for room in rooms
        if package not in base and package not in extras().get(EXTRA_OF.get(room, ""), set())
    ]
    assert absent == []


def test_what_is_brought_is_imported() -> None:
    used = {*imported(), *UNIMPORTED}
    brought = named(project()["dependencies"]).union(
        *(names for extra, names in extras().items() if extra not in ("test", "docs"))
    )
    assert brought <= used, brought - used


def test_extras_that_messages_name_exist() -> None:
    named_by_us = {
        extra
        for path in [
            *(ROOT / "convtvm").rglob("*.py"),
            *ROOT.glob("*.md"),
            *(ROOT / "docs").glob("*.md"),
        ]
        for extra in re.findall(r"convtvm\[(\w+)\]", path.read_text("utf8"))
    }
    assert named_by_us and named_by_us <= set(extras())


def test_pytorch_of_the_extras_is_one_that_is_taken() -> None:
    source = (ROOT / "convtvm" / "torch" / "__init__.py").read_text("utf8")
    oldest = re.search(r"_OLDEST = \((\d+), (\d+)\)", source)
    assert oldest
    (line,) = (r for r in project()["optional-dependencies"]["models"] if r.startswith("torch"))
    assert line == f"torch>={oldest[1]}.{oldest[2]}"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-test.lock"])
def test_locks_name_what_is_required(lock: str) -> None:
    lines = (ROOT / lock).read_text("utf8").splitlines()
    pinned = {re.split(r"==|;", line)[0].strip() for line in lines if "==" in line}
    if lock == "requirements.lock":
        assert named(project()["dependencies"]) <= pinned
    else:
        base = (ROOT / "requirements.lock").read_text("utf8")
        wanted = extras()["test"] | extras()["docs"]
        assert {n for n in wanted if f"{n}==" not in base} <= pinned


# ---- what importing loads ------------------------------------------------------------------------

# Modules that a process has after `code` and had not before it; a budget is a tenth above what it
# was. Seconds differ from machine to machine, these numbers hardly. PyTorch, which tvm_ffi would
# import where it is installed, is none of ours.
BUDGETS = {
    "import convtvm": 98,
    "from convtvm.cli import main; main(['--help'])": 182,
    "from convtvm.cli import main; main(['tune', '--help'])": 182,
    "import convtvm; convtvm.load": 310,
}


@pytest.mark.parametrize("code", BUDGETS)
def test_imports_within_their_budget(code: str) -> None:
    counted = (
        "import sys; sys.modules['torch'] = None; before = set(sys.modules)\n"
        f"{code}\n"
        "print(len(set(sys.modules) - before), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", counted], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stderr.split()[-1]) <= BUDGETS[code]
