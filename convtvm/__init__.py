"""convtvm: the fastest convolution on the machine at hand, chosen by measurement.

    w = convtvm.ConvWorkload.parse("mb1ic64ih56oc64oh56kh3ph1")
    convtvm.tune([w], threads=1, trials=64, log="x.jsonl")
    lib = convtvm.compile([w], threads=1, logs=["x.jsonl"])
    y = lib.plan(w, weight)(x)

Importing this package imports no compiler: `tune` and `compile` load TVM when they are first used.
"""

from __future__ import annotations

import os
import sys


def _leave_current_folder() -> None:
    """`python -m convtvm` has put it first on the path, where any random.py would be imported."""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    try:
        here = os.getcwd()
    except FileNotFoundError:  # then Python has not put it there either
        return
    as_module = sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False)
    if as_module and sys.path[0] == here != home:
        del sys.path[0]


_leave_current_folder()

import importlib
from typing import Any

from convtvm.errors import ConvtvmError, EnvironmentProblem, NoCandidate, UnknownWorkload
from convtvm.pins import check_pins_or_exit
from convtvm.problem.workload import ConvWorkload

check_pins_or_exit()

__version__ = "0.1.0"

_LAZY = {
    "tune": "convtvm.tuning.tuner",
    "compile": "convtvm.library.remembered",
    "compile_model": "convtvm.models.remembered",
    "load": "convtvm.dispatch",
    "load_model": "convtvm.dispatch",
    "Model": "convtvm.dispatch",
    "KernelLibrary": "convtvm.dispatch",
    "torch": "convtvm.torch",  # the module itself; needs PyTorch
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'convtvm' has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise EnvironmentProblem("convtvm.torch needs PyTorch: pip install torch") from None
    value = module if name == "torch" else getattr(module, name)
    globals()[name] = value
    return value


__all__ = [
    "ConvWorkload",
    "ConvtvmError",
    "EnvironmentProblem",
    "KernelLibrary",
    "Model",
    "NoCandidate",
    "UnknownWorkload",
    "__version__",
    "compile",
    "compile_model",
    "load",
    "load_model",
    "tune",
]
