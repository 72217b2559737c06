"""Programs that start in no time: a process that has loaded everything forks one for each call.

python tests/warm.py serve SOCKET [MODULE...]
                                      loads the modules, by default what `convtvm` needs; waits, and
                                      ends with its standard input
python tests/warm.py SOCKET ARGS...   runs `convtvm ARGS...` there, with this folder, environment
                                      and files, and ends with its status
python tests/warm.py SOCKET --python PAGE
                                      runs blocks of Python there: (line, code) as JSON, one a line,
                                      in the namespace of one module; says `done` after each
python tests/warm.py SOCKET --code CODE ARGS...
                                      runs a program there as `python -c CODE ARGS...` does
"""

import array
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress


@contextmanager
def serving(path: str, *modules: str, environment: Mapping[str, str]) -> Iterator[list[str]]:
    """What a command begins with that runs in a process of that environment."""
    import subprocess

    here = [sys.executable, "-S", "-E", __file__, path]
    with subprocess.Popen(
        [sys.executable, __file__, "serve", path, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        yield here
        server.communicate()


def call(path: str, args: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        files = array.array("i", [0, 1, 2])
        one.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        asked = json.dumps([args, os.getcwd(), dict(os.environ)]).encode()
        one.sendall(len(asked).to_bytes(4, "big") + asked)
        return one.recv(1)[0]


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


def serve(path: str, modules: list[str]) -> None:
    import importlib
    import select

    for name in modules:
        importlib.import_module(name)
    if not modules:
        load()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([server, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            one = server.accept()[0]
            if not os.fork():  # calls may run at the same time
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
            _take(folder, environment, files)
            if args[:1] == ["--code"]:
                return _run_code(args[1:])
            _run(args)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        one.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))


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
    signal.alarm(600)  # whoever waits for it has given up by then
    sys.argv = ["-c", *args[1:]]
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    exec(compile(args[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    sys.exit()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
