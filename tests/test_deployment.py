"""The deployment folder: complete, small, and right from Python and from C++."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import programs
import pytest
import tvm_ffi
from support import ROOT, without_torch

from convtvm.cli import main
from convtvm.errors import ConvtvmError, LibraryError
from convtvm.library import deployment
from convtvm.library.build import compile
from convtvm.library.deployment import deploy
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

W = ConvWorkload.parse("mb1ic16ih40oc16oh40kh3ph1")  # one with a workspace


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy")
    compile([W], threads=1, logs=[], algorithms=["direct"]).export(folder / "x.so")
    assert main(["deploy", str(folder / "x.so"), "-o", str(folder / "out")]) == 0
    return folder / "out"


def test_a_deployment_is_small(deployed: Path) -> None:
    """docs/deploying.md: 9.6 MB besides the library."""
    files = [p for p in deployed.rglob("*") if p.is_file() and not p.is_symlink()]
    assert sum(p.stat().st_size for p in files if p.name != "x.so") < 10e6


@pytest.fixture(scope="module")
def numpy_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which only numpy can be imported."""
    folder = tmp_path_factory.mktemp("site")
    home = Path(np.__file__).parent
    (folder / "numpy").symlink_to(home)
    libraries = home.with_name("numpy.libs")
    if libraries.is_dir():
        (folder / "numpy.libs").symlink_to(libraries)
    return folder


def in_isolation(code: str, *paths: Path) -> str:
    """What `code` prints in a Python that sees no packages but those in `paths`."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": ":".join(map(str, paths)), "PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


RUN = """
import importlib.util, sys
assert importlib.util.find_spec("tvm") is None and importlib.util.find_spec("xgboost") is None
import numpy as np, convtvm
folder = sys.path[1]
library = convtvm.load(folder + "/x.so")
w = library.workloads[0]
arrays = np.load(folder + "/../arrays.npz")
for c in library.candidates(w):
    out = library.plan(w, arrays["weight"], arrays["bias"], algorithm=c.algorithm)(arrays["data"])
    assert np.array_equal(out, arrays["reference"]), c
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("tvm", "xgboost")))
"""


def test_runs_with_numpy_alone(deployed: Path, numpy_only: Path) -> None:
    data, weight, bias = random_inputs(W, 2, "NCHW", "integer")
    reference = conv2d_reference(W, data, weight, bias, "NCHW")
    path = deployed.parent / "arrays.npz"
    np.savez(path, data=data, weight=weight, bias=bias, reference=reference)
    assert in_isolation(RUN, deployed, numpy_only) == "[]"


def test_example_runs(deployed: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(deployed / "example.py")], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0 and f"{W}: out (1, 16, 40, 40)" in done.stdout, done.stderr


def test_size(deployed: Path, tmp_path: Path) -> None:
    """What is written, before Python adds its caches; links are not followed."""
    sizes = deploy(deployed / "x.so", tmp_path / "again")
    files = [p for p in (tmp_path / "again").rglob("*") if p.is_file() and not p.is_symlink()]
    assert sum(p.stat().st_size for p in files) == sum(sizes.values())
    assert sum(sizes.values()) - sizes["x.so"] < 10_000_000


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_everything_is_as_the_umask_has_it(deployed: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        deploy(deployed / "x.so", tmp_path / "new")
    finally:
        os.umask(before)
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*")):
        mode = 0o777 if path.is_dir() else 0o666
        assert path.is_symlink() or stat.S_IMODE(path.stat().st_mode) == mode & ~umask, path


def test_refusals(deployed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvtvmError, match="is not empty; deploy to a new folder"):
        deploy(deployed / "x.so", deployed)
    (tmp_path / "x.so").write_bytes(b"no library")
    with pytest.raises(LibraryError, match="is not a convtvm library"):
        deploy(tmp_path / "x.so", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConvtvmError, match="cannot write"):
        deploy(deployed / "x.so", deployed / "x.so" / "below")


NAMES = ['my "best".so', "it's.so", "a\tb.so", "a\nb.so", "x{y}.so", "$name.so", "%d.so", "-o.so"]
NAMES += [
    "\\.so",
    "ünïcode ☃.so",
    os.fsdecode(b"not-utf8-\xff.so"),
    "x",
    "n" * 252 + ".so",
    "x.py.so",
]


def example(folder: Path) -> subprocess.CompletedProcess[str]:
    """What it says, where there is no PyTorch; `test_example_runs` runs it as it is run."""
    return subprocess.run(
        [sys.executable, str(folder / "example.py")],
        env=without_torch(),
        capture_output=True,
        text=True,
        cwd="/",
        errors="replace",
    )


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_odd_names(
    deployed: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(deployed / "x.so", tmp_path / name)
    assert main(["deploy", str(tmp_path / name), "-o", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) == len(list((tmp_path / "out").iterdir())) + 5
    done = example(tmp_path / "out")
    assert done.returncode == 0 and "out (1, 16, 40, 40)" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        *("lib", "convtvm", "tvm_ffi", "kernels.tsv", "example.py", "typing_extensions.py"),
        *("numpy.so", "typing_extensions.so", "json.so", "math.so", "random.py", "time.pyc"),
        "numpy.cpython-311-x86_64-linux-gnu.so",
    ],
)
def test_names_that_the_folder_needs(deployed: Path, tmp_path: Path, name: str) -> None:
    shutil.copyfile(deployed / "x.so", tmp_path / name)
    with pytest.raises(ConvtvmError, match="give the library another name"):
        deploy(tmp_path / name, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("there", [False, True])
def test_all_or_nothing(
    deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Whatever fails at the end leaves an empty folder empty, and no new one."""
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "here")

    with monkeypatch.context() as patched:
        patched.setattr("convtvm.library.deployment._copy_package", full)
        with pytest.raises(ConvtvmError, match="cannot write here: No space left on device"):
            deploy(deployed / "x.so", folder)
    assert sorted(tmp_path.rglob("*")) == before
    deploy(deployed / "x.so", folder)
    assert not list(folder.glob(".*")) and example(folder).returncode == 0


def test_what_others_put_into_the_folder_stays(
    deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two deployments at once into one new folder: neither takes away what the other wrote."""
    folder, copy = tmp_path / "out", deployment._copy_package

    def meanwhile(into: Path) -> None:
        copy(into)
        (folder / "convtvm").mkdir()
        (folder / "convtvm" / "theirs").write_text("x", "utf8")
        (folder / "kernels.tsv").write_text("theirs", "utf8")

    with monkeypatch.context() as patched:
        patched.setattr(deployment, "_copy_package", meanwhile)
        with pytest.raises(ConvtvmError, match=r"something else writes .*; deploy to a new folder"):
            deploy(deployed / "x.so", folder)
    assert sorted(p.name for p in folder.iterdir()) == ["convtvm", "kernels.tsv"]
    assert (folder / "convtvm" / "theirs").is_file()
    assert (folder / "kernels.tsv").read_text("utf8") == "theirs"


def copied(deployed: Path, folder: Path, links: bool) -> Path:
    """The folder as a way brings it that loses links, or makes small text files of them."""
    shutil.copytree(deployed, folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [p for p in folder.rglob("*") if p.is_symlink()]:
        goal = os.readlink(path)
        path.unlink()
        if links:
            path.write_text(goal)
    return folder


@pytest.mark.parametrize("links", [False, True])
def test_without_links(deployed: Path, numpy_only: Path, tmp_path: Path, links: bool) -> None:
    folder = copied(deployed, tmp_path / "out", links)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    code = f"import sys; sys.argv = ['x']; exec(open({str(folder / 'example.py')!r}).read())"
    code = f"__file__ = {str(folder / 'example.py')!r}; {code}"
    assert "out (1, 16, 40, 40)" in in_isolation(code, folder, numpy_only)


def test_another_python(deployed: Path, tmp_path: Path) -> None:
    folder = copied(deployed, tmp_path / "out", links=False)
    (core,) = (folder / "tvm_ffi").glob("core.*.so")
    core.rename(core.with_name(core.name.replace("cpython-3", "cpython-97")))
    done = example(folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{folder} is for Python {sys.version_info[0]}.{sys.version_info[1]} on" in done.stderr
    told = subprocess.run(
        [sys.executable, "-c", "import convtvm"],
        env=dict(os.environ, PYTHONPATH=str(folder)),
        cwd="/",
        capture_output=True,
        text=True,
    )
    last = told.stderr.splitlines()[-1]
    assert "EnvironmentProblem" in last and f"{folder} is for cpython-97" in last


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("tvm_ffi/lib/libtvm_ffi.so", "libtvm_ffi.so is missing; copy the folder again"),
        ("x.so", "cannot read library"),
    ],
)
def test_what_was_lost_is_named(deployed: Path, tmp_path: Path, lost: str, words: str) -> None:
    folder = copied(deployed, tmp_path / "out", links=False)
    (folder / lost).unlink()
    done = example(folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr


def compiled_cpp(name: str, lib: Path, folder: Path) -> Path:
    """The program docs/cpp/NAME.cc with the libraries in `lib`."""
    include = Path(tvm_ffi.__file__).parent / "include"
    source, program = ROOT / "docs" / "cpp" / f"{name}.cc", folder / name
    command = ["g++", "-std=c++17", "-O1", str(source), "-o", str(program), f"-I{include}"]
    command += [f"-L{lib}", "-ltvm_ffi", "-ldl", f"-Wl,-rpath,{lib}"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_from_cpp(deployed: Path, tmp_path: Path) -> None:
    program = compiled_cpp("run_library", deployed / "lib", tmp_path)
    data, weight, bias = random_inputs(W, 2, "NCHW", "integer")
    files = []
    for name, array in (("data", data), ("weight", weight), ("bias", bias)):
        array.tofile(tmp_path / name)
        files.append(str(tmp_path / name))
    call = [str(program), str(deployed), "x.so"]
    done = subprocess.run([*call, W.key, *files, str(tmp_path / "out")], capture_output=True)
    assert done.returncode == 0, done.stderr
    out = np.fromfile(tmp_path / "out", np.float32).reshape(W.out_shape())
    assert np.array_equal(out, conv2d_reference(W, data, weight, bias, "NCHW"))
    table = deployed / "kernels.tsv"
    first, *rows = table.read_text().splitlines()
    assert first.endswith("target\tcpu_flags") and "fma" in rows[0].split("\t")[-1].split(",")
    other = [row.replace("\tconv_", "\tabsent_") + ",unheard-of" for row in rows]
    table.write_text("\n".join([first, *other, *rows]) + "\n")
    again = subprocess.run(
        [*call, W.key, *files, "o"], capture_output=True, text=True, cwd=tmp_path
    )
    table.write_text("\n".join([first, *other]) + "\n")
    refused = subprocess.run([*call, W.key, *files, "o"], capture_output=True, text=True)
    table.write_text("\n".join([first, *rows]) + "\n")
    assert again.returncode == 0, again.stderr  # the rows for another CPU are passed over
    assert refused.returncode == 1 and "this CPU lacks unheard-of" in refused.stderr
    wrong = subprocess.run([*call, "nothing", *files, "o"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "no kernel for nothing" in wrong.stderr


# ---- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deployed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed_model")
    programs.model().export(folder / "m.so")
    assert main(["deploy", str(folder / "m.so"), "-o", str(folder / "out")]) == 0
    return folder / "out"


RUN_MODEL = """
import importlib.util, sys
assert importlib.util.find_spec("tvm") is None
import numpy as np, convtvm
folder = sys.path[1]
arrays = np.load(folder + "/../arrays.npz")
model = convtvm.load_model(folder + "/m.so")
y, again = model(arrays["x"], arrays["r"])
print(np.array_equal(y, arrays["y"]) and np.array_equal(again.ravel(), y.ravel()))
"""


def test_a_model_runs_with_numpy_alone(deployed_model: Path, numpy_only: Path) -> None:
    x, r = programs.inputs()
    np.savez(deployed_model.parent / "arrays.npz", x=x, r=r, y=programs.expected(x, r))
    assert in_isolation(RUN_MODEL, deployed_model, numpy_only) == "True"
    done = example(deployed_model)
    assert done.returncode == 0 and "y: float32 1x7x9x9" in done.stdout, done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_model_from_cpp(deployed_model: Path, tmp_path: Path) -> None:
    program = compiled_cpp("run_model", deployed_model / "lib", tmp_path)
    x, r = programs.inputs()
    x.tofile(tmp_path / "x")
    r.tofile(tmp_path / "r")
    paths = [str(tmp_path / name) for name in ("x", "r", "y", "again")]
    call = [str(program), str(deployed_model), "m.so"]
    done = subprocess.run([*call, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in paths[2:]:
        np.testing.assert_array_equal(
            np.fromfile(path, np.float32), programs.expected(x, r).ravel()
        )
    done = subprocess.run([*call, *paths[:3]], capture_output=True, text=True)
    assert done.returncode == 1 and "a file for each input and output" in done.stderr
    table = deployed_model / "steps.tsv"
    fields = table.read_text(encoding="utf8").split("\t")
    table.write_text("\t".join([fields[0], fields[1], "no_such_flag", *fields[3:]]))
    # The other target's program is there still.
    done = subprocess.run([*call, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
