"""Commands in hostile surroundings: foreign files beside them, output that nobody takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support import LONG, without_torch
from warm import HELPERS, beginning, serving

from convtvm.cli.events import Events
from convtvm.errors import LogError
from convtvm.logs import records

ROOT = Path(__file__).resolve().parents[1]
LINE = "mb1ic8ih6oc8oh6kh3ph1"
ENV = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path[1:]]))
CONVTVM = [sys.executable, "-m", "convtvm"]
TUNE = ["tune", LINE, "--threads", "1", "--algorithms", "direct", "--trials", "1"]
COMPILE = ["compile", LINE, "--threads", "1", "--algorithms", "direct", "-o", "x.so"]

Done = subprocess.CompletedProcess[str]


def convtvm(folder: Path, *args: str, begin: Sequence[str] = CONVTVM, **settings: object) -> Done:
    """A command line in a process of its own."""
    options = {"env": ENV, "capture_output": True, "text": True, "timeout": LONG, **settings}
    return subprocess.run([*begin, *args], cwd=folder, **options)  # type: ignore[call-overload]


PROGRAM = "import sys; from convtvm.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def warm(servers: Callable[[], str]) -> list[str]:
    """What command lines begin with that need not load TVM first."""
    return [*beginning(servers()), "--code", PROGRAM]


def one_line(done: Done) -> str:
    """The error of a command that was refused."""
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("convtvm: error: "), done
    return done.stderr


# ---- the current folder --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for every module that might be imported, each of which tells its name.

    Python itself imports some before `python -m convtvm` begins; those are left out.
    """
    folder = tmp_path_factory.mktemp("trap")
    code = "import runpy, sys; print(*sys.modules)"
    early = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = {"numpy", "tvm", "tvm_ffi", "schedules", "tuning_logs", "psutil", "click", "rich"}
    foreign |= {"cloudpickle", "xgboost", "typing_extensions", "ml_dtypes", "tornado", "scipy"}
    for name in (set(sys.stdlib_module_names) | foreign) - set(early.stdout.split()):
        tells = f"import builtins\nopen({str(folder / 'caught')!r}, 'a').write({name!r} + ' ')\n"
        (folder / f"{name}.py").write_text(tells + "raise SystemExit(9)\n", encoding="utf8")
    return folder


@pytest.mark.parametrize("args", [["info"], TUNE, COMPILE, ["run", "x.so"]], ids=lambda a: a[0])
def test_nothing_is_imported_from_the_current_folder(trap: Path, args: list[str]) -> None:
    done = convtvm(trap, *args)
    caught = trap / "caught"
    assert not caught.exists(), caught.read_text(encoding="utf8")
    assert done.returncode == 0, done.stderr


# ---- memory file systems -------------------------------------------------------------------------

DOCKER = "mount -t tmpfs -o nosuid,nodev,noexec,size=64m shm /dev/shm"
SMALL = "mount -t tmpfs -o size=1m shm /dev/shm"


def may_mount() -> bool:
    """Whether this user may have a namespace with mounts of its own."""
    try:
        return subprocess.run(["unshare", "-rm", "sh", "-c", DOCKER], timeout=LONG).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


needs_mounts = pytest.mark.skipif(not may_mount(), reason="unshare -rm is not permitted here")


def mounted(mounts: str) -> list[str]:
    """What a command begins with that has these."""
    return ["unshare", "-rm", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


@needs_mounts
@pytest.mark.parametrize("mounts", [DOCKER, SMALL], ids=["noexec", "1 MiB"])
def test_where_shared_memory_is_not_fit(tmp_path: Path, mounts: str) -> None:
    """As in a container: commands end well, and what they record are times."""
    environment = {**without_torch(ROOT), "CONVTVM_CACHE": "off"}
    place, begin = str(tmp_path / "socket"), mounted(mounts)
    with serving(place, HELPERS, begin=begin, environment=environment) as command:
        for args in ([*TUNE, "--log", "x.jsonl"], COMPILE, ["run", "x.so", "--check"]):
            done = convtvm(tmp_path, *args, begin=command, env=environment)
            assert done.returncode == 0, done
    found, problems = records.load([tmp_path / "x.jsonl"])
    assert found and not problems and all(r.run_secs for r in found)


@needs_mounts
@pytest.mark.skipif(
    any(Path(f).is_relative_to(t) for f in (sys.prefix, ROOT) for t in ("/tmp", "/var/tmp")),
    reason="Python or this checkout lies in the folder that would be hidden",
)
def test_where_no_place_is_fit() -> None:
    """One line that says what is wrong with each; /tmp is hidden, so nothing of it is needed."""
    noexec = "mount -t tmpfs -o noexec a"
    mounts = f"{noexec} /tmp && {noexec} /var/tmp && mount -t tmpfs -o size=1m b /dev/shm"
    env = {**ENV, "CONVTVM_CACHE": "off", "TMPDIR": "/tmp", "XDG_CACHE_HOME": "/var/tmp"}
    begin = [*mounted(mounts), *CONVTVM]
    said = one_line(convtvm(Path("/"), *TUNE, "--log", "/tmp/x.jsonl", begin=begin, env=env))
    for part in ("/dev/shm: 1 MiB of room", "/tmp: no code can run there", "set TMPDIR"):
        assert part in said, said


# ---- standard output -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(warm: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library and a log."""
    folder = tmp_path_factory.mktemp("made")
    for args in (COMPILE, [*TUNE, "--log", "x.jsonl"]):
        assert convtvm(folder, *args, begin=warm).returncode == 0
    return folder


COMMANDS = [
    ["--help"],
    ["tune", "--help"],
    ["--version"],
    ["info"],
    ["info", "--json"],
    ["run", "x.so"],
    ["run", "x.so", "--json"],
    ["log", "list", "x.jsonl"],
    ["log", "best", "x.jsonl"],
    ["log", "check", "x.jsonl"],
    [*TUNE, "--log", "x.jsonl"],
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("unbuffered", "args"), [*(("", args) for args in COMMANDS), ("1", ["info"]), ("1", ["--help"])]
)
def test_output_that_cannot_be_written(
    made: Path, warm: list[str], unbuffered: str, args: list[str]
) -> None:
    begin, env = (CONVTVM, {**ENV, "PYTHONUNBUFFERED": "1"}) if unbuffered else (warm, ENV)
    with open("/dev/full", "wb") as full:
        given = {"begin": begin, "capture_output": False, "env": env}
        done = convtvm(made, *args, stdout=full, stderr=subprocess.PIPE, **given)  # type: ignore[arg-type]
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done
    assert last == "convtvm: error: cannot write to standard output: No space left on device"


@pytest.mark.parametrize("args", COMMANDS[2:8], ids=" ".join)
def test_output_into_a_closed_pipe(made: Path, warm: list[str], args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    given = {"begin": warm, "capture_output": False, "stdout": writer}
    done = convtvm(made, *args, stderr=subprocess.PIPE, **given)  # type: ignore[arg-type]
    os.close(writer)
    assert done.returncode == 141 and done.stderr == "", done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_messages_that_cannot_be_written_end_nothing(tmp_path: Path, warm: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        given = {"begin": warm, "capture_output": False, "stdout": -1, "stderr": full}
        done = convtvm(tmp_path, *TUNE, "--log", "x.jsonl", **given)  # type: ignore[arg-type]
        assert done.returncode == 0 and "direct" in done.stdout
        done = convtvm(tmp_path, "run", "no.so", **given)  # type: ignore[arg-type]
        assert done.returncode == 2 and done.stdout == ""
    events = Events(Path("/dev/full"))
    with pytest.raises(LogError, match="cannot write events to /dev/full: No space left"):
        events.summary({})
    events.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_closed_from_the_start(made: Path, closed: str) -> None:
    for args, status in ((["run", "x.so"], 0), (["run", "no.so"], 2)):
        line = f'exec "$@" {closed}'
        done = subprocess.run(["sh", "-c", line, "sh", *CONVTVM, *args], cwd=made, env=ENV)
        assert done.returncode == status
