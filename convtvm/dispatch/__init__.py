"""The run time: load a kernel library, choose a kernel within limits, run it.

Needs apache-tvm-ffi and libtvm_runtime.so only; imports no compiler, compute, schedule or tuner.

    library    load a file, refuse what is not for this machine; what it holds
    model      the same for whole networks: y = model(x)
    selection  candidates, and the choice among them with its reasons
    plan       a chosen kernel with its packed weight and epilogue: y = plan(x)
    tensors    numpy and DLPack arrays in and out
    runtime    libtvm_runtime.so, code in memory
    threads    what parallel loops run on
    ending     the end of the interpreter while threads compute
"""

from __future__ import annotations

from convtvm.dispatch.library import KernelLibrary, load
from convtvm.dispatch.model import Model, load_model
from convtvm.dispatch.plan import Plan, SlicedPlan
from convtvm.dispatch.selection import Candidate

__all__ = ["Candidate", "KernelLibrary", "Model", "Plan", "SlicedPlan", "load", "load_model"]
