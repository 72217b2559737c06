"""A folder that runs a kernel library where neither TVM's compiler nor convtvm is installed.

    NAME.so       the library, as it was
    kernels.tsv   its kernels for readers other than Python: see COLUMNS
    steps.tsv     of a model in its place: see `convtvm.library.model_table`
    lib/          libtvm_runtime.so, libtvm_ffi.so (a link): all that a C++ program needs
    convtvm/      load, plan, run
    tvm_ffi/      the Python side of libtvm_ffi.so, without headers and tools
    example.py    loads the library and runs its first workload

Python needs numpy beside it; the compiled parts are for the Python version that made the folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from convtvm.dispatch import container, model_file
from convtvm.dispatch import manifest as manifests
from convtvm.errors import ConvtvmError, EnvironmentProblem
from convtvm.library import model_table
from convtvm.machine.cpu import required_flags
from convtvm.problem.workload import ConvWorkload

COLUMNS = (
    "workload",
    "algorithm",
    "function",
    "pack",
    "data",
    "weight",
    "packed",
    "out",
    "workspace_bytes",
    "threads",
    "target",
    "cpu_flags",
)

_MODULES = (
    "__init__",
    "errors",
    "files",
    "machine/__init__",
    "machine/cpu",
    "machine/gpu",
    "machine/nvidia",
    "pins",
    "problem/__init__",
    "problem/activations",
    "problem/arguments",
    "problem/descriptor",
    "problem/dtypes",
    "problem/reference",
    "problem/similarity",
    "problem/workload",
)
# Of tvm_ffi, what no call of a kernel needs.
_LEFT_OUT = (
    "3rdparty",
    "cython",
    "include",
    "share",
    "src",
    "stub",
    "testing",
    "lib",
    "__pycache__",
    "*.pyi",
)

# What a deployment folder holds besides the library.
_TAKEN = (
    "kernels.tsv",
    "steps.tsv",
    "lib",
    "convtvm",
    "tvm_ffi",
    "typing_extensions.py",
    "example.py",
)
# Modules that the folder, first on Python's path, must not hide by a library of their name.
_IMPORTED = ("convtvm", "numpy", "tvm_ffi", "typing_extensions")

_EXAMPLE = '''\
"""Load the library beside this file and run it on random numbers."""

import os
import sys
import time
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

started = time.perf_counter()
name = $name
here = Path(__file__).resolve().parent
if not any((here / "tvm_ffi" / f"core{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
    version = "{}.{}".format(*sys.version_info)
    sys.exit(f"{here} is for $python, and this is Python {version}; use that one, or deploy again")
sys.path.insert(0, str(here))
try:
    import numpy as np

    import convtvm

    $load
except Exception as problem:
    sys.exit(f"cannot run {name!r}: {problem}")

$then'''

_LAYERS = """\
w = library.workloads[0]
random = np.random.default_rng(0)
weight = random.standard_normal(w.weight_shape, np.float32)
plan = library.plan(w, weight, np.zeros(w.oc, np.float32))
out = plan(random.standard_normal(w.data_shape(library.layout), np.float32))
print(plan.explain())
print(f"{w}: out {out.shape}, {time.perf_counter() - started:.3f} s since the start")
"""
_MODEL = """\
loaded = time.perf_counter()
outputs = model(model.random_inputs())
now = time.perf_counter()
print(f"loaded {loaded - started:.3f} s after the start, first result after {now - started:.3f} s")
for port in model.outputs.values():
    print(port)
"""


def deploy(library: str | Path, folder: str | Path) -> dict[str, int]:
    """Write the deployment folder of a library file; bytes by the names in it.

    `folder` must not exist or be empty; it is written whole or left as it was. Raises LibraryError
    for a file that is no library, ConvtvmError for a folder in use or a name that the folder needs
    itself, EnvironmentProblem where the run time is not installed.
    """
    library, folder = Path(library), Path(folder)
    name, table, example = _describe(library)
    _check_name(library.name)
    try:
        with _new_folder(folder) as partial:
            shutil.copyfile(library, partial / library.name)
            (partial / name).write_text(table, encoding="utf8")
            (partial / "example.py").write_text(example, encoding="utf8")
            _copy_run_time(partial)
            _copy_package(partial / "convtvm")
    except OSError as error:
        raise ConvtvmError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return {p.name: _bytes(p) for p in sorted(folder.iterdir())}


def _describe(library: Path) -> tuple[str, str, str]:
    """The name and the text of the table of what is in a library, and an example that runs it."""
    name = library.name
    if container.is_model_file(library):
        table = model_table.table(model_file.read(library))
        return "steps.tsv", table, _example(name, "model = convtvm.load_model(here / name)", _MODEL)
    _, targets = manifests.read(library)
    example = _example(name, "library = convtvm.load(here / name)", _LAYERS)
    return "kernels.tsv", _table(targets), example


def _check_name(name: str) -> None:
    """Raise ConvtvmError if a library of this name would take the place of something else."""
    module = name.partition(".")[0] if Path(name).suffix in (".so", ".py", ".pyc") else ""
    if name in _TAKEN:
        raise ConvtvmError(
            f"a deployment folder has a {name} of its own; give the library another name"
        )
    if module in (*_IMPORTED, *sys.stdlib_module_names):
        raise ConvtvmError(
            f"Python would take {name} for its module {module}; give the library another name"
        )


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose content becomes that of `folder` at the end; after an exception
    nothing is left of it, nor of parents that were made for it. What others have put there is
    theirs."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    partial = folder / f".convtvm-{secrets.token_hex(8)}"
    names: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConvtvmError(f"{folder} is not empty; deploy to a new folder")
        partial.mkdir()
        yield partial
        names = os.listdir(partial)
        for name in names:
            if os.path.lexists(folder / name):
                raise ConvtvmError(f"something else writes {folder / name}; deploy to a new folder")
            (partial / name).rename(folder / name)
        partial.rmdir()
    except BaseException:
        moved = [folder / name for name in names if not os.path.lexists(partial / name)]
        for path in (*moved, partial):
            _remove(path)
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _example(name: str, load: str, then: str) -> str:
    """The text of example.py, which loads the library and goes on; a name that is no UTF-8 is
    written by its bytes."""
    try:
        name.encode("utf8")
    except UnicodeEncodeError:
        literal = f"os.fsdecode({os.fsencode(name)!r})"
    else:
        literal = repr(name)
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {platform.machine()}"
    return Template(_EXAMPLE).substitute(name=literal, python=python, load=load, then=then)


def _table(targets: Sequence[manifests.Manifest]) -> str:
    """`COLUMNS` separated by tabs, a kernel a line, best target and kernel first; shapes as
    1x64x56x56, CPU flags with commas, as /proc/cpuinfo calls them."""
    lines = ["\t".join(COLUMNS)]
    for manifest in targets:
        flags = ",".join(required_flags(manifest.features))
        for kernel in manifest.kernels:
            w = ConvWorkload.parse(kernel.workload)
            data, out = w.data_shape(manifest.layout), w.out_shape(manifest.layout)
            shapes = (data, w.weight_shape, kernel.packed_shape, out)
            texts = ["x".join(map(str, shape)) for shape in shapes]
            names = [kernel.workload, kernel.algorithm, kernel.function, kernel.pack]
            ends = [str(kernel.workspace_bytes), str(manifest.threads), manifest.target, flags]
            lines.append("\t".join(names + texts + ends))
    return "\n".join(lines) + "\n"


def _copy_run_time(folder: Path) -> None:
    """libtvm_runtime.so to lib/, and tvm_ffi with its own libraries. lib/ has links to these, which
    only C++ needs: a way that loses links loses nothing for Python."""
    runtime, ffi = _home("tvm") / "lib" / "libtvm_runtime.so", _home("tvm_ffi")
    if not runtime.is_file():
        raise EnvironmentProblem(f"{runtime} is missing; install apache-tvm again")
    lib = folder / "lib"
    lib.mkdir()
    shutil.copyfile(runtime, lib / runtime.name)
    _copy_tree(ffi, folder / "tvm_ffi", _LEFT_OUT)
    (folder / "tvm_ffi" / "lib").mkdir()
    for path in ffi.glob("lib/*.so"):
        shutil.copyfile(path, folder / "tvm_ffi" / "lib" / path.name)
        (lib / path.name).symlink_to(Path("..") / "tvm_ffi" / "lib" / path.name)
    extensions = _home("typing_extensions", package=False)  # tvm_ffi imports it
    shutil.copyfile(extensions, folder / extensions.name)


def _copy_package(folder: Path) -> None:
    here = Path(__file__).parents[1]
    for room in ("machine", "problem"):
        (folder / room).mkdir(parents=True)
    for name in _MODULES:
        shutil.copyfile(here / f"{name}.py", folder / f"{name}.py")
    _copy_tree(here / "dispatch", folder / "dispatch", ["__pycache__"])


def _copy_tree(source: Path, folder: Path, left_out: Sequence[str]) -> None:
    """The files below a folder but those called `left_out`; all new ones, as the umask has them."""
    folder.mkdir()
    names = [path.name for path in source.iterdir()]
    for name in set(names) - shutil.ignore_patterns(*left_out)(str(source), names):
        path = source / name
        if path.is_dir():
            _copy_tree(path, folder / name, left_out)
        else:
            shutil.copyfile(path, folder / name)


def _home(name: str, package: bool = True) -> Path:
    """The folder or file of an installed module, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        raise EnvironmentProblem(f"{name} is not installed; install convtvm again")
    return Path(spec.origin).parent if package else Path(spec.origin)


def _bytes(path: Path) -> int:
    """Of a file or of all files below a folder; links count nothing."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return 0
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size
    return sum(_bytes(Path(entry.path)) for entry in os.scandir(path))
