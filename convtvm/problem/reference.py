"""The answer every kernel is checked against, in NumPy and float64, and inputs to check with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from convtvm.errors import NoMemory
from convtvm.problem.dtypes import numpy_dtype
from convtvm.problem.workload import ENTRY_LAYOUTS, channel_block

if TYPE_CHECKING:
    from convtvm.problem.workload import ConvWorkload

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

# Every whole number up to here is a float32, so sums that stay below it are exact in any order.
_EXACT_FLOAT32 = 2**24
_BLOCK_ELEMENTS = 2**18  # of input and output at a time: 2 MB of float64 stay in a cache

_LARGEST_INTEGER = 8  # keeps one input in 17 at zero; whole in every dtype


def conv2d_reference(
    w: ConvWorkload, data: Array, weight: Array, bias: Array | None = None, layout: str = "NCHW"
) -> Float64:
    """`data` (in `layout`) convolved by `weight` [oc, ic/groups, kh, kw], plus `bias` [oc].

    out[n, g, o, y, x] = sum_{i, a, b} weight[g, o, i, a, b]
                         * data[n, g, i, y * sh - ph + a * dh, x * sw - pw + b * dw]

    with zeros outside of `data`; the result is in `layout`. Works on one kernel tap
    of some output rows of one image at a time: besides the result it holds one padded image, the
    weight in float64 and a few MB.
    """
    _check_shape("data", data, w.data_shape(layout))
    if block := channel_block(layout):
        images = data if layout in ENTRY_LAYOUTS else _unblocked(data, w.ic)
        plain = conv2d_reference(w, images, weight, bias)
        return _blocked(plain, block)
    _check_shape("weight", weight, (w.oc, w.ic // w.groups, w.kh, w.kw))
    if bias is not None:
        _check_shape("bias", bias, (w.oc,))
    taps = _weight_by_tap(w, weight)
    out = np.empty(w.out_shape(layout))
    padded = _Padded(w)
    with np.errstate(invalid="ignore", over="ignore"):  # of NaN and infinite inputs
        for image, result in zip(_as_nchw(data, layout), _as_nchw(out, layout), strict=True):
            _conv_image(w, padded.holding(image), taps, result)
    if bias is not None:
        _as_nchw(out, layout)[...] += bias[:, None, None]
    return out


def rounded_reference(w: ConvWorkload, reference: Float64) -> Float64:
    """The right answer of a kernel whose sums are exact: `reference` as the output's dtype has
    it."""
    if w.dtype == "float32":
        return reference
    return reference.astype(numpy_dtype(w.dtype)).astype(np.float64)


def relative_error(out: Array, reference: Array) -> float:
    """max |out - reference| / max |reference|; not divided where the reference is all zero.

    Where the right answer is NaN or infinite, or too large for the dtype of `out`, only the same
    is right, and it does not count. Infinite as soon as one element of `out` is not finite where
    it should be, or finite where it should not.
    """
    _check_shape("out", out, reference.shape)
    if not reference.size:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.subtract(out, reference, dtype=np.float64)
        error = float(np.max(np.abs(difference, out=difference)))
        if not math.isfinite(error):
            right = reference.astype(out.dtype)
            same = (out == right) | (np.isnan(out) & np.isnan(right))
            finite = np.isfinite(right)
            if not (np.isfinite(out) & finite | same & ~finite).all():
                return math.inf
            out, reference = out[finite], reference[finite]
            return relative_error(out, reference) if finite.any() else 0.0
    scale = max(float(np.max(reference)), -float(np.min(reference)))
    return error / scale if scale > 0 else error


def random_inputs(
    w: ConvWorkload,
    seed: int,
    layout: str = "NCHW",
    kind: Literal["normal", "integer"] = "normal",
) -> tuple[Array, Array, Array]:
    """Aligned (data in `layout`, weight [oc, ic/groups, kh, kw], bias [oc]) of the dtype of `w`.

    "normal": N(0, 1), the weight scaled such that outputs are N(0, 2) with the bias' part as large
    as the rest. "integer": whole numbers so small that every partial sum is exact in float32, in
    any order. The same seed means the same numbers in both layouts, and but for rounding in all
    dtypes.
    """
    rng = np.random.default_rng(seed)
    terms = w.ic // w.groups * w.kh * w.kw
    data, weight, bias = (
        aligned_empty(shape, np.float32)
        for shape in ((w.n, w.ic, w.ih, w.iw), (w.oc, w.ic // w.groups, w.kh, w.kw), (w.oc,))
    )
    if kind == "normal":
        for array in (data, weight, bias):
            rng.standard_normal(dtype=np.float32, out=array)
        weight /= np.float32(math.sqrt(terms))
    elif kind == "integer":
        limit = _integer_limit(terms)
        for array in (data, weight, bias):
            array[...] = rng.integers(-limit, limit, array.shape, dtype=np.int8, endpoint=True)
    else:
        raise ValueError(f"kind is {kind!r}: expected 'normal' or 'integer'")
    if w.dtype != "float32":
        data, weight, bias = (_aligned(array, w.dtype) for array in (data, weight, bias))
    if layout == "NCHW" or layout in ENTRY_LAYOUTS:
        return data, weight, bias
    block = channel_block(layout)
    ordered = _blocked(data, block) if block else data.transpose(0, 2, 3, 1)
    return _aligned(ordered, w.dtype), weight, bias


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An uninitialised C-contiguous array that starts at a multiple of `ALIGNMENT` bytes.

    np.empty promises 16 bytes only, and so timings would vary from one array to the next. Raises
    NoMemory.
    """
    kind = numpy_dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    try:
        raw = np.empty(size + ALIGNMENT - 1, np.uint8)
    except (MemoryError, ValueError):  # more than there is; more than there can be
        raise NoMemory(f"no memory for an array {shape} of {size:,} bytes") from None
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(shape)


def _aligned(array: Array, dtype: npt.DTypeLike) -> Array:
    copied = aligned_empty(array.shape, dtype)
    copied[...] = array
    return copied


class _Padded:
    """A float64 buffer [ic, rows, cols] for one zero-padded image, as far as windows reach."""

    def __init__(self, w: ConvWorkload) -> None:
        rows = (w.oh - 1) * w.sh + (w.kh - 1) * w.dh + 1
        cols = (w.ow - 1) * w.sw + (w.kw - 1) * w.dw + 1
        self._buffer = np.zeros((w.ic, rows, cols))
        # A window may end before the image does, and even before the padding does.
        self._height = max(0, min(w.ih, rows - w.ph))
        self._width = max(0, min(w.iw, cols - w.pw))
        self._inside = self._buffer[:, w.ph :, w.pw :][:, : self._height, : self._width]

    def holding(self, image: Array) -> Float64:
        """The buffer with `image` [ic, ih, iw] in it."""
        self._inside[...] = image[:, : self._height, : self._width]
        return self._buffer


def _conv_image(w: ConvWorkload, padded: Float64, taps: Float64, out: Float64) -> None:
    """One padded image convolved into `out` [oc, oh, ow]; `taps` as from `_weight_by_tap`."""
    step = max(1, _BLOCK_ELEMENTS // ((w.ic + w.oc) * w.ow))
    for top in range(0, w.oh, step):
        strip = out[:, top : top + step]
        strip[...] = _conv_rows(w, padded[:, top * w.sh :], taps, strip.shape[1])


def _conv_rows(w: ConvWorkload, padded: Float64, taps: Float64, rows: int) -> Float64:
    """[oc, rows, ow]: as many output rows, of which the first reads from the top of `padded`."""
    ocg, icg = taps.shape[-2:]
    total = np.zeros((w.groups, ocg, rows * w.ow))
    term = np.empty_like(total)
    for a, b in np.ndindex(w.kh, w.kw):
        window = padded[:, a * w.dh :: w.sh, b * w.dw :: w.sw][:, :rows, : w.ow]
        x = window.reshape(w.groups, icg, rows * w.ow)
        # With one channel to sum over, a matrix product is an outer one: far faster as such.
        (np.multiply if icg == 1 else np.matmul)(taps[a, b], x, out=term)
        total += term
    return total.reshape(w.oc, rows, w.ow)


def _weight_by_tap(w: ConvWorkload, weight: Array) -> Float64:
    """weight [oc, ic/groups, kh, kw] -> [kh, kw, groups, oc/groups, ic/groups] in float64."""
    grouped = weight.reshape(w.groups, w.oc // w.groups, w.ic // w.groups, w.kh, w.kw)
    return np.ascontiguousarray(grouped.transpose(3, 4, 0, 1, 2), dtype=np.float64)


def _integer_limit(terms: int) -> int:
    """The largest L up to 8 such that `terms` products of |numbers| <= L, plus L, stay exact."""
    limit = min(_LARGEST_INTEGER, math.isqrt((_EXACT_FLOAT32 - 1 - _LARGEST_INTEGER) // terms))
    if limit < 1:
        raise ValueError(f"{terms} products to sum are too many for exact float32 sums")
    return limit


def _blocked(array: Array, block: int) -> Array:
    """[n, c, h, w] -> [n, ceil(c / block), h, w, block], the surplus channels zero."""
    n, c, h, w = array.shape
    chunks = -(-c // block)
    filled = np.zeros((n, chunks * block, h, w), array.dtype)
    filled[:, :c] = array
    return np.ascontiguousarray(filled.reshape(n, chunks, block, h, w).transpose(0, 1, 3, 4, 2))


def _unblocked(array: Array, channels: int) -> Array:
    """The inverse of `_blocked`."""
    n, chunks, h, w, block = array.shape
    return array.transpose(0, 1, 4, 2, 3).reshape(n, chunks * block, h, w)[:, :channels]


def _as_nchw(array: Array, layout: str) -> Array:
    """A view of `array` with its axes in the order n, c, h, w."""
    return array if layout == "NCHW" else array.transpose(0, 3, 1, 2)


def _check_shape(name: str, array: Array, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}: expected {expected}")
