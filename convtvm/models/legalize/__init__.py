"""Operators beside convolutions as tensor expressions, where TVM's own are slow or missing."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from convtvm.models.constants import op_name
from convtvm.models.legalize import bounds, extremes, hyperbolic, ordering, pooling


def _default(call: relax.Call) -> Callable[..., relax.Expr]:
    """TVM's own legalisation of an operator."""
    return call.op.get_attr("FLegalize")


def _pool(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    pool = pooling.Pool.of(call)
    if pool is None:
        return _default(call)(builder, call)
    name, counted = op_name(call).rpartition(".")[2], bool(call.attrs.count_include_pad)
    return pooling.emit(builder, name, call.args[0], pool, counted)


LEGALIZE = {
    "relax.nn.max_pool2d": _pool,
    "relax.nn.avg_pool2d": _pool,
    **bounds.LEGALIZE,
    **extremes.LEGALIZE,
    **hyperbolic.LEGALIZE,
    **ordering.LEGALIZE,
}
