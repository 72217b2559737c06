"""Pooling in NCHW and in blocks of channels, [n, c / b, h, w, b], without a padded copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx

from convtvm.models.legalize import extremes


@dataclass(frozen=True)
class Pool:
    """Windows of a pooling operator: kernel, stride, dilation, padding (top, left, bottom, right)
    and rows and columns of the output."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, call: relax.Call) -> Pool | None:
        """The windows of `nn.max_pool2d` or `nn.avg_pool2d` in NCHW."""
        attrs = call.attrs
        if str(attrs.layout) != "NCHW" or str(attrs.out_layout or "NCHW") != "NCHW":
            return None
        parts = (
            attrs.pool_size,
            attrs.strides,
            attrs.dilation,
            attrs.padding,
            tuple(call.ty.shape)[2:],
        )
        return cls(*(tuple(int(v) for v in part) for part in parts))  # type: ignore[arg-type]

    def read(self, data: te.Tensor, empty: Any) -> Callable[..., Any]:
        """Element ky, kx of the window of y, x; `empty` outside of the image."""
        high, wide = (int(e) for e in data.shape[2:4])
        (sh, sw), (dh, dw), (ph, pw) = self.stride, self.dilation, self.padding[:2]

        def element(n, c, y, x, ky, kx, *lane):
            row, col = y * sh + ky * dh - ph, x * sw + kx * dw - pw
            terms = self._outside(high, wide, row, col)
            if not terms:
                return data[(n, c, row, col, *lane)]
            inside = tirx.all(*terms)
            return te.if_then_else(inside, data[(n, c, row, col, *lane)], empty)

        return element

    def _outside(self, high: int, wide: int, row: Any, col: Any) -> list[Any]:
        """The tests that some window needs."""
        ends = [
            (size - 1) * stride + (kernel - 1) * dilation - before
            for size, stride, kernel, dilation, before in zip(
                self.size, self.stride, self.kernel, self.dilation, self.padding, strict=False
            )
        ]
        terms = [(self.padding[0], row >= 0), (self.padding[1], col >= 0)]
        terms += [(ends[0] >= high, row < high), (ends[1] >= wide, col < wide)]
        return [term for needed, term in terms if needed]


def max_pool(data: te.Tensor, pool: Pool) -> te.Tensor:
    """The largest element of each window."""
    ky, kx = te.reduce_axis((0, pool.kernel[0]), "ky"), te.reduce_axis((0, pool.kernel[1]), "kx")
    read = pool.read(data, extremes.lowest(data.dtype))

    def element(n, c, y, x, *lane):
        return extremes.LARGEST(read(n, c, y, x, ky, kx, *lane), axis=[ky, kx])

    return te.compute((*data.shape[:2], *pool.size, *data.shape[4:]), element, name="pool")


def avg_pool(data: te.Tensor, pool: Pool, count_padding: bool) -> te.Tensor:
    """The mean of each window, over what of it is inside the image, or the padding as well."""
    ky, kx = te.reduce_axis((0, pool.kernel[0]), "ky"), te.reduce_axis((0, pool.kernel[1]), "kx")
    read, (high, wide) = (
        pool.read(data, tirx.const(0, data.dtype)),
        (int(e) for e in data.shape[2:4]),
    )

    def total(n, c, y, x, *lane):
        return te.sum(read(n, c, y, x, ky, kx, *lane), axis=[ky, kx])

    shape = (*data.shape[:2], *pool.size, *data.shape[4:])
    summed = te.compute(shape, total, name="pool")

    def share(n, c, y, x, *lane):
        rows = _counted(pool, 0, y, high, count_padding)
        cols = _counted(pool, 1, x, wide, count_padding)
        return summed[(n, c, y, x, *lane)] / (rows * cols).astype(data.dtype)

    return te.compute(shape, share, name="mean")


def _counted(pool: Pool, axis: int, i: Any, extent: int, count_padding: bool) -> Any:
    """How many rows or columns of window `i` count."""
    kernel, stride, dilation = pool.kernel[axis], pool.stride[axis], pool.dilation[axis]
    before, after = pool.padding[axis], pool.padding[axis + 2]
    last = (pool.size[axis] - 1) * stride - before + (kernel - 1) * dilation
    low, high = (-before, extent + after) if count_padding else (0, extent)
    start = i * stride - before
    if (count_padding or not before) and last < high:
        return tirx.const(kernel, "int32")
    skipped = tirx.max(low - start + dilation - 1, 0) // dilation
    reached = tirx.min((high - 1 - start) // dilation + 1, kernel)
    return reached - skipped


def global_reduce(data: te.Tensor, name: str) -> te.Tensor:
    """`mean`, `sum` or `max` of each channel's image, in images of one pixel."""
    rows, cols = (int(e) for e in data.shape[2:4])
    y, x = te.reduce_axis((0, rows), "y"), te.reduce_axis((0, cols), "x")
    reduce = extremes.LARGEST if name == "max" else te.sum

    def element(n, c, _y, _x, *lane):
        return reduce(data[(n, c, y, x, *lane)], axis=[y, x])

    shape = (*data.shape[:2], 1, 1, *data.shape[4:])
    reduced = te.compute(shape, element, name="reduce")
    if name != "mean":
        return reduced
    scale = tirx.const(1 / (rows * cols), data.dtype)
    return te.compute(shape, lambda *i: reduced[i] * scale, name="mean")


def emit(
    builder: relax.BlockBuilder, name: str, x: relax.Expr, pool: Pool, count_padding: bool
) -> relax.Expr:
    """A call of `max_pool2d` or `avg_pool2d` of `x` in either layout."""

    def compute(data: te.Tensor) -> te.Tensor:
        is_max = name == "max_pool2d"
        return max_pool(data, pool) if is_max else avg_pool(data, pool, count_padding)

    return builder.call_te(compute, x, primfunc_name_hint=name)


def emit_global(builder: relax.BlockBuilder, name: str, x: relax.Expr) -> relax.Expr:
    """A call of `global_reduce`."""
    return builder.call_te(
        lambda data: global_reduce(data, name), x, primfunc_name_hint=f"global_{name}"
    )
