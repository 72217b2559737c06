"""Programs that start in no time: a process that has loaded everything forks one for each call.

python tests/warm.py serve SOCKET [MODULE...]
                                      loads the modules, by default what `convtvm` needs; waits, and
                                      ends with its standard input
python tests/warm.py serve SOCKET --helpers
                                      loads what helper processes of convtvm do, as they do, and the
                                      rest of it without PyTorch
python tests/warm.py SOCKET ARGS...   runs `convtvm ARGS...` there, with this folder, environment
                                      and files, and ends with its status
python tests/warm.py SOCKET --python PAGE
                                      runs blocks of Python there: (line, code) as JSON, one a line,
                                      in the namespace of one module; says `done` after each
python tests/warm.py SOCKET --code CODE ARGS...
                                      runs a program there as `python -c CODE ARGS...` does
"""

import array
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

HELPERS = "--helpers"
# What the loader looks at once, when a process starts.
LIBRARIES = "LD_LIBRARY_PATH"


@contextmanager
def serving(
    path: str, *modules: str, environment: Mapping[str, str], begin: Sequence[str] = ()
) -> Iterator[list[str]]:
    """What a command begins with that runs in a process of that environment, whose server is
    started by a command that begins with `begin`."""
    import subprocess

    with subprocess.Popen(
        [*begin, sys.executable, __file__, "serve", path, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Processes fork from it, so it must have no threads.
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
    ) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        yield beginning(path)


def beginning(path: str) -> list[str]:
    """What a command begins with that the server at `path` forks."""
    return [sys.executable, "-S", "-E", __file__, path]


def ask(
    path: str, args: list[str], environment: Mapping[str, str], files: Sequence[int] = (0, 1, 2)
) -> tuple[socket.socket, int]:
    """The process that the server forks for these arguments: a socket that brings its exit status
    and whose end is its end, and its number."""
    one = socket.socket(socket.AF_UNIX)
    one.connect(path)
    one.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
    asked = json.dumps([args, os.getcwd(), dict(environment)]).encode()
    one.sendall(len(asked).to_bytes(4, "big") + asked)
    return one, int.from_bytes(one.recv(4, socket.MSG_WAITALL), "big")


def call(path: str, args: list[str]) -> int:
    one, _ = ask(path, args, os.environ)
    with one:
        return ending(one) & 0xFF


def ending(one: socket.socket) -> int:
    """The exit status, a signal's number less than zero; as if killed where the server is."""
    said = one.recv(4, socket.MSG_WAITALL)
    return int.from_bytes(said, "big", signed=True) if said else -signal.SIGKILL


class Forked:
    """A process of a server, with what its owner would have of `subprocess.Popen`."""

    def __init__(self, path: str, args: list[str], environment: Mapping[str, str]) -> None:
        (reads, writes), (gets, puts) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(writes, "wb", 0), os.fdopen(gets, "rb", 0)
        self._socket, self.pid = ask(path, args, environment, (reads, puts, 2))
        self.returncode: int | None = None
        os.close(reads)
        os.close(puts)

    def wait(self, timeout: float | None = None) -> int:
        import subprocess

        if self.returncode is None:
            if not select.select([self._socket], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self.returncode = ending(self._socket)
            self._socket.close()
        return self.returncode

    def poll(self) -> int | None:
        import subprocess

        with suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def helper(path: str, folder: str) -> Forked:
    """A helper process of convtvm for `folder`, forked from the server at `path`: to start one
    takes longer than most of what it does."""
    from convtvm.measure import client

    code = f"import os\nos.setsid()\n{client._SERVE}"
    return Forked(path, ["--code", code, folder], {**os.environ, "OMP_NUM_THREADS": "1"})


def load() -> None:
    """What commands and the pages about them need."""
    import tvm  # noqa: F401
    import xgboost  # noqa: F401
    from rich import table  # noqa: F401

    import convtvm.compare.bench
    import convtvm.library.build
    import convtvm.report.building
    import convtvm.tuning.tuner  # noqa: F401

    with suppress(ImportError):  # where there is PyTorch, pages about it need these
        import torch._inductor.compile_fx
        import torch.onnx  # noqa: F401


def load_helpers() -> None:
    """As zygote.serve does, in that order."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    from convtvm.machine import nvidia

    nvidia.load("libcudart.so.13")
    from convtvm.measure import building, trial, verify, zygote  # noqa: F401

    zygote._warm_up()
    load()


def fork_helpers(path: str) -> None:
    """Have helpers of this process and of those that fork from it forked too."""
    from convtvm.measure.client import Zygote

    start, libraries = Zygote._spawn, os.environ.get(LIBRARIES)

    def spawn(zygote: Zygote) -> object:
        fits = os.environ.get(LIBRARIES) == libraries
        return helper(path, str(zygote.folder)) if fits else start(zygote)

    Zygote._spawn = spawn  # type: ignore[assignment, method-assign]


def serve(path: str, modules: list[str]) -> None:
    import importlib

    if modules == [HELPERS]:
        load_helpers()
    elif not modules:
        load()
    else:
        for name in modules:
            importlib.import_module(name)
    if "convtvm.measure.client" in sys.modules:
        fork_helpers(path)
    gc.collect()
    gc.freeze()  # what is forked need not look at all this, and touch it
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([server, sys.stdin], [], [])
            with suppress(ChildProcessError):  # who has answered; so its time counts as ours
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if sys.stdin in ready:
                return
            one = server.accept()[0]
            if not os.fork():  # calls may run at the same time
                _answer(one)
                os._exit(0)
            one.close()


def _answer(one: socket.socket) -> None:
    with one:
        _, passed, _, _ = one.recvmsg(1, socket.CMSG_SPACE(12))
        files = array.array("i", passed[0][2])
        size = int.from_bytes(one.recv(4, socket.MSG_WAITALL), "big")
        args, folder, environment = json.loads(one.recv(size, socket.MSG_WAITALL))
        child = os.fork()
        if not child:
            one.close()
            _take(folder, environment, files)
            if args[:1] == ["--code"]:
                return _run_code(args[1:])
            _run(args)
        for file in files:
            os.close(file)
        with suppress(BrokenPipeError):
            one.sendall(child.to_bytes(4, "big"))
        ends = os.pidfd_open(child)
        if ends not in select.select([one, ends], [], [])[0]:  # whoever asked is gone
            os.kill(child, signal.SIGTERM)
            if not select.select([ends], [], [], 5.0)[0]:
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with suppress(BrokenPipeError):
            one.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))


def _take(folder: str, environment: dict[str, str], files: array.array) -> None:
    """The caller's folder, environment and files for one's own."""
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(place, mode, encoding="utf8", closefd=False)  # noqa: SIM115
        for place, mode in enumerate(("r", "w", "w"))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # it may have another one in its environment


def _run(args: list[str]) -> None:
    status = 1
    try:
        if args[:1] == ["--python"]:
            _run_blocks(args[1])
            status = 0
        else:
            from convtvm.cli import main

            status = main(args)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_blocks(page: str) -> None:
    import ast
    import types

    module = types.ModuleType(f"blocks of {page}")
    sys.modules[module.__name__] = module  # where dataclasses look
    for asked in sys.stdin:
        line, code = json.loads(asked)
        tree = ast.increment_lineno(ast.parse(code, page), line)
        exec(compile(tree, page, "exec"), vars(module))
        print("\ndone", flush=True)


def _run_code(args: list[str]) -> None:
    """The program of `args`, and the end of the interpreter."""
    sys.argv = ["-c", *args[1:]]
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    exec(compile(args[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    sys.exit()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
