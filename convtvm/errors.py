"""The mistakes a user can make, each with its own class, and the check of numbers.

A message is one line: what was found, what was expected, and what to do about it.
"""

from __future__ import annotations

import errno
import math
import numbers
import os
from typing import Any


def printable(text: str) -> str:
    """`text` on one line: line breaks, tabs and whatever else does not print are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def encodable(text: str) -> str:
    """`text` with what UTF-8 lacks escaped: bytes of a file's name that are none, and what JSON may
    say for half a character."""
    return text.encode("utf8", errors="backslashreplace").decode("utf8")


class ConvtvmError(Exception):
    """Base of every mistake a user can make; the command line prints it and exits with 2."""

    def __str__(self) -> str:
        # One line whatever text of the user's the message quotes; KeyError's own str adds quotes.
        return " ".join(" ".join(str(arg) for arg in self.args).splitlines())


class WorkloadError(ConvtvmError, ValueError):
    """A convolution problem is malformed: a bad size, a bad descriptor, or not supported yet."""


class SourceError(ConvtvmError):
    """A SOURCE names no known network, file or workload, or its file cannot be read."""


class TargetError(ConvtvmError, ValueError):
    """A target or thread count is unknown, malformed or not supported by this installation."""


class LogError(ConvtvmError):
    """A tuning log cannot be read or written, or holds nothing that can be used."""


class LibraryError(ConvtvmError):
    """A kernel library cannot be loaded: not ours, another version, or CPU features missing."""


class ModelError(ConvtvmError, ValueError):
    """A model cannot be read or imported: damaged, a dynamic shape, an operator nobody computes."""


class UnknownWorkload(ConvtvmError, KeyError):
    """A kernel library lacks the workload asked for; the message names the nearest one it has."""


class NoCandidate(ConvtvmError):
    """No candidate meets the limits on algorithm, workspace or error; lists what each needs."""


class ArrayError(ConvtvmError, ValueError):
    """An array handed to a plan has the wrong shape, data type, layout or device."""


class NoMemory(ConvtvmError, MemoryError):
    """There is no memory for an array or for a kernel's workspace; the message names the bytes."""


class ReportError(ConvtvmError, ValueError):
    """A report has nothing to show, or a comparison to show in it cannot be read."""


class BuildError(ConvtvmError, RuntimeError):
    """A kernel or a library did not compile or link; holds the first line of the true error."""


class EnvironmentProblem(ConvtvmError, RuntimeError):
    """Something outside convtvm is missing or broken: a package, a compiler, a driver, a device."""


def check_number(
    name: str,
    value: Any,
    least: float = -math.inf,
    whole: bool = False,
    kind: type[ConvtvmError] = ConvtvmError,
) -> Any:
    """`value` as a plain int, or float unless it has to be `whole`; NumPy's numbers are numbers.

    Raises `kind` for text, True and False, NaN, and whatever is below `least`.
    """
    wanted = numbers.Integral if whole else numbers.Real
    if isinstance(value, wanted) and not isinstance(value, bool):
        plain = int(value) if isinstance(value, numbers.Integral) else float(value)
        if plain >= least:
            return plain
    expected = "a whole number" if whole else "a number"
    more = "" if math.isinf(least) else f" of {least:g} or more"
    raise kind(f"{name} is {value!r}, expected {expected}{more}")


# What the system says when it is at fault, whoever asked.
_LACKS = (
    "failed to map segment",
    "cannot open shared object file",
    "the build helper died",
    *map(
        os.strerror,
        (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.ENOMEM,
            errno.EAGAIN,
            errno.EMFILE,
            errno.ENFILE,
            errno.EROFS,
            errno.EIO,
        ),
    ),
)


def blames_environment(message: str) -> bool:
    """Whether the text of an error says that the machine lacked something: room, memory, files.

    Not what a program asked for in vain under a limit of its own.
    """
    return message.startswith("killed by SIGKILL") or any(text in message for text in _LACKS)
