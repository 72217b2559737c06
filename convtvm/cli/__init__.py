"""The command `convtvm`: its groups, its help, and what becomes of an error.

Importing this package must stay fast: commands import TVM, numpy and rich when they run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import click

from convtvm import __version__
from convtvm.cli import streams
from convtvm.cli.benching import bench
from convtvm.cli.caching import cache
from convtvm.cli.deploying import deploy
from convtvm.cli.environment import info
from convtvm.cli.libraries import compile_
from convtvm.cli.logs import log
from convtvm.cli.options import Group
from convtvm.cli.reporting import report
from convtvm.cli.running import run
from convtvm.cli.tuning import tune
from convtvm.errors import ConvtvmError, blames_environment, printable

MISUSE = 2
INTERRUPTED = 130

# Top-level module -> the package that has it, where the names differ.
_PACKAGES = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "xgboost": "xgboost-cpu"}
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}
_EPILOG = (
    "SOURCE is a network (resnet18, resnet50, vgg16, mobilenet_v2, cv1_12), a model (.onnx, "
    ".pt2), a file of workloads"
)


def _show_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from convtvm.version import with_commit

        click.echo(f"convtvm, version {with_commit(__version__)}")
        ctx.exit()


@click.group(
    cls=Group,
    context_settings=_SETTINGS,
    invoke_without_command=True,
    epilog=f"{_EPILOG}, or one workload such as mb1ic64ih56oc64oh56kh3ph1.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and its commit, and exit.",
)
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Tune convolutions for this machine and run the winners from one library."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(MISUSE)


for _command in (tune, compile_, run, deploy, bench, report, log, cache, info):
    commands.add_command(_command)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status.

    0 is success, 1 a finding (`log check`, `run --check`), 2 misuse with one line on stderr, 130 an
    interrupt, 141 output into a pipe that was closed. An exception that is no mistake of the user's
    is ours, and comes out whole.
    """
    try:
        with streams.guarded():
            return _run(args)
    except streams.OutputLost as error:
        if error.is_closed_pipe:
            return streams.CLOSED_PIPE
        return _refuse(f"cannot write to standard output: {error}")


def _run(args: Sequence[str] | None) -> int:
    try:
        status = commands.main(args=args, prog_name="convtvm", standalone_mode=False)
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):
            raise  # nothing here reads the terminal
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        help_of = ctx.command_path if ctx else "convtvm"
        message = " ".join(error.format_message().split()).rstrip(".")
        return _refuse(f"{message} (see `{help_of} --help`)")
    except ConvtvmError as error:
        return _refuse(str(error))
    except OSError as error:
        if not blames_environment(str(error)):
            raise
        return _refuse(": ".join(filter(None, (str(error.filename or ""), error.strerror))))
    except MemoryError as error:
        return _refuse(f"not enough memory: {error}".rstrip(": "))
    except ModuleNotFoundError as error:
        top = (error.name or "convtvm").partition(".")[0]
        if top in ("convtvm", "schedules"):
            raise
        return _refuse(f"{error}: pip install {_PACKAGES.get(top, top)}, or all of convtvm again")
    return status if isinstance(status, int) else 0


def _refuse(message: str) -> int:
    with contextlib.suppress(OSError):  # stderr is full or closed too: the status has to do
        click.echo(f"convtvm: error: {printable(message)}", err=True)
    return MISUSE
