"""How Inductor's code calls the operator: as a function that writes memory which Inductor plans, as
it does for matrix products. PyTorch's dispatcher would take longer than small convolutions do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from convtvm.torch.operator import conv, into, recipe_of

_NAME = "convtvm_conv"


@cache
def make_known() -> None:
    """Before Inductor compiles a graph with the operator, or runs one that it has kept."""
    from torch._inductor import ir
    from torch._inductor.lowering import register_lowering
    from torch._inductor.select_algorithm import extern_kernels
    from torch._inductor.virtualized import V

    setattr(extern_kernels, _NAME, into)

    def lower(x: Any, weights: Sequence[Any], residual: Any, recipe: str) -> Any:
        known, kernel = recipe_of(recipe), ir.ExternKernel
        last = known.wide or known.need.rows
        laid_out = kernel.require_channels_last if last else kernel.require_contiguous
        inputs = [laid_out(t) for t in (x, residual) if t is not None]
        inputs += [kernel.realize_input(w) for w in weights]
        made = V.graph.current_node.meta["val"]
        size, stride = map(_expressions, (made.shape, made.stride()))
        layout = ir.FixedLayout(made.device, made.dtype, size, stride)
        called = ir.ExternKernelOut(
            layout, inputs, (recipe,), python_kernel_name=f"extern_kernels.{_NAME}"
        )
        return ir.TensorBox.create(called)

    register_lowering(conv, type_promotion_kind=None)(lower)


def _expressions(sizes: Sequence[Any]) -> list[Any]:
    return [s.node.expr if isinstance(s, torch.SymInt) else s for s in sizes]
