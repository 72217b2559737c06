"""PyTorch models with tuned convolutions.

compiled = torch.compile(model, backend="convtvm")
handle = convtvm.torch.optimize(model, example)

options     what a user can ask
team        PyTorch's own threads, which kernels compute on
kernels     libraries, compiled when a graph needs them
operator    convtvm::conv, one convolution with its norm, residual and activation
contest     whether PyTorch computes a linear or transposed layer faster than a kernel
watching    whether tensors have changed
graph       which convolutions a graph has, and what goes with each
nodes       new ones of a graph
transposed  what follows a transposed convolution that is computed by phases
rewriting   the operator in their place
products    linear layers as 1x1 convolutions, and back
layouts     which of them compute in blocks of channels or channels-last
lowering    how Inductor's code calls it
remembering what graphs became, for later processes
backend     for TorchDynamo: a graph rewritten, the rest by Inductor
optimizing  the same in an explicit form
"""

import torch

from convtvm.errors import EnvironmentProblem

# It touches Inductor's and AOTAutograd's internals: tried with 2.11 and 2.13.
_OLDEST = (2, 11)

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST:
    raise EnvironmentProblem(
        f"convtvm.torch needs PyTorch {'.'.join(map(str, _OLDEST))} or newer, found "
        f"{torch.__version__}; pip install --upgrade torch"
    )

from convtvm.torch.backend import Backend, Site, convtvm, make_known  # noqa: E402
from convtvm.torch.optimizing import Optimized, optimize  # noqa: E402

__all__ = ["Backend", "Optimized", "Site", "convtvm", "optimize"]

make_known()
