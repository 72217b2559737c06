"""One convolution problem: its sizes, its shapes by layout, and its text form."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

from convtvm.errors import WorkloadError
from convtvm.problem import descriptor
from convtvm.problem.descriptor import MAX_SIZE, Axis, extent
from convtvm.problem.dtypes import BYTES

LAYOUTS = ("NCHW", "NHWC")
# [n, channels / b, h, w, b]: the last block is filled up with channels that are written as zero
# and never read.
BLOCKED_LAYOUTS = ("NCHW4c", "NCHW8c", "NCHW16c")
# Data in NCHW, output in blocks: for the first layer of a network.
ENTRY_LAYOUTS = ("NCHW-NCHW4c", "NCHW-NCHW8c", "NCHW-NCHW16c")

_FROM_ONE = ("n", "ic", "ih", "iw", "oc", "kh", "kw", "sh", "sw", "dh", "dw", "groups")
_FROM_ZERO = ("ph", "pw", "ph_r", "pw_r")

_SHOWN = 200  # characters of a descriptor in a message
_EXAMPLE = "mb1ic64ih56oc64oh56kh3ph1"


@dataclass(frozen=True, order=True)
class ConvWorkload:
    """A 2-D forward convolution: data [n, ic, ih, iw] * weight [oc, ic/groups, kh, kw].

    Sizes in oneDNN's letters; `ph`, `pw` pad top and left, `ph_r`, `pw_r` bottom and right;
    dilation 1 is none. A 1-D problem has height 1. Bottom and right padding that no output reads
    (stride > 1) is dropped, so that problems with the same result are equal; build a changed
    problem with `make`, not with `dataclasses.replace`, which would start from what is left.
    `dtype` is that of data, weight, bias and output; sums are float32. `name` and `multiplicity`
    (how often a network has it) say nothing about the problem and take no part in comparison.
    """

    n: int
    ic: int
    ih: int
    iw: int
    oc: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    ph_r: int
    pw_r: int
    dh: int
    dw: int
    groups: int
    dtype: str = "float32"
    name: str = field(default="", compare=False)
    multiplicity: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        for names, low in ((_FROM_ONE, 1), (_FROM_ZERO, 0), (("multiplicity",), 1)):
            for name in names:
                object.__setattr__(self, name, _checked_int(name, getattr(self, name), low))
        for channels in ("ic", "oc"):
            if getattr(self, channels) % self.groups:
                raise WorkloadError(
                    f"groups is {self.groups}: expected a divisor of "
                    f"{channels} = {getattr(self, channels)}"
                )
        if self.dtype not in BYTES:
            raise WorkloadError(
                f"dtype is {self.dtype!r}: expected one of {', '.join(sorted(BYTES))}"
            )
        # A quote would end the name early in its text form, a line break the line.
        if not isinstance(self.name, str) or '"' in self.name or not self.name.isprintable():
            raise WorkloadError(
                f"name is {self.name!r}: expected printable text without double quotes"
            )
        for axis in "hw":
            self._check_fit(axis)
            object.__setattr__(self, f"p{axis}_r", self._needed_padding(axis))

    @classmethod
    def make(
        cls,
        ic: int,
        oc: int,
        ih: int,
        iw: int | None = None,
        kh: int = 1,
        kw: int | None = None,
        n: int = 1,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        dtype: str = "float32",
        name: str = "",
        multiplicity: int = 1,
    ) -> ConvWorkload:
        """A workload from few words: `iw` defaults to `ih` and `kw` to `kh`.

        `stride` and `dilation` are one number or (height, width); `padding` is one number,
        (height, width) or (top, left, bottom, right), which is ONNX's and TVM's order.
        """
        sh, sw = _numbers("stride", stride, (2,))
        dh, dw = _numbers("dilation", dilation, (2,))
        pads = _numbers("padding", padding, (2, 4))
        ph, pw, ph_r, pw_r = pads if len(pads) == 4 else (*pads, *pads)
        iw = ih if iw is None else iw
        kw = kh if kw is None else kw
        sizes = (n, ic, ih, iw, oc, kh, kw, sh, sw, ph, pw, ph_r, pw_r, dh, dw, groups)
        return cls(*sizes, dtype=dtype, name=name, multiplicity=multiplicity)

    @classmethod
    def parse(cls, text: str) -> ConvWorkload:
        """The workload that benchdnn's problem descriptor `text` means.

        Sizes not given: mb 2, g 1, strides 1, dilation 0 (none); without any width sizes all of
        them are the height's; without any height sizes the problem is 1-D (height 1); without
        padding the least that yields the given output size, split evenly; without output size
        what the padding, 0 by default, yields.
        """
        if not isinstance(text, str):
            raise WorkloadError(f"workload is {text!r}: expected text such as {_EXAMPLE}")
        try:
            return cls(**descriptor.fields(text.strip()))
        except WorkloadError as err:
            shown = text.strip()
            shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
            raise WorkloadError(f"workload {shown!r}: {err}") from None

    @property
    def oh(self) -> int:
        """Rows of the output."""
        return (self.ih + self.ph + self.ph_r - extent(self.kh, self.dh)) // self.sh + 1

    @property
    def ow(self) -> int:
        """Columns of the output."""
        return (self.iw + self.pw + self.pw_r - extent(self.kw, self.dw)) // self.sw + 1

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct algorithm, those that meet padding included."""
        return self.n * self.oc * self.oh * self.ow * (self.ic // self.groups) * self.kh * self.kw

    @property
    def flops(self) -> int:
        """Floating-point operations of the direct algorithm: two for each multiply-add."""
        return 2 * self.macs

    def data_shape(self, layout: str = "NCHW") -> tuple[int, ...]:
        """Shape of the input in `layout`, one of LAYOUTS, BLOCKED_LAYOUTS or ENTRY_LAYOUTS."""
        return _ordered(layout.partition("-")[0], self.n, self.ic, self.ih, self.iw)

    def out_shape(self, layout: str = "NCHW") -> tuple[int, ...]:
        """Shape of the output in `layout`, one of LAYOUTS, BLOCKED_LAYOUTS or ENTRY_LAYOUTS."""
        return _ordered(layout.rpartition("-")[2], self.n, self.oc, self.oh, self.ow)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight: [oc, ic/groups, kh, kw]."""
        return (self.oc, self.ic // self.groups, self.kh, self.kw)

    @property
    def element_bytes(self) -> int:
        return BYTES[self.dtype]

    @property
    def data_bytes(self) -> int:
        return self.n * self.ic * self.ih * self.iw * self.element_bytes

    @property
    def weight_bytes(self) -> int:
        return self.oc * (self.ic // self.groups) * self.kh * self.kw * self.element_bytes

    @property
    def out_bytes(self) -> int:
        return self.n * self.oc * self.oh * self.ow * self.element_bytes

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel reads one input channel; oc may be a multiple of ic."""
        return self.groups == self.ic > 1

    @property
    def key(self) -> str:
        """The canonical descriptor, without name: equal workloads have equal keys, and back.

        oh and ow stand for the bottom and right padding, which the grammar cannot write.
        """
        return (
            f"g{self.groups}mb{self.n}ic{self.ic}ih{self.ih}iw{self.iw}"
            f"oc{self.oc}oh{self.oh}ow{self.ow}kh{self.kh}kw{self.kw}"
            f"sh{self.sh}sw{self.sw}ph{self.ph}pw{self.pw}dh{self.dh - 1}dw{self.dw - 1}"
            f"{descriptor.suffix(self.dtype)}"
        )

    def __str__(self) -> str:
        """The key with the name and multiplicity, if any, so that `parse` restores all of it."""
        # A name that itself ends in *k needs the explicit *1 after it.
        if self.multiplicity != 1 or descriptor.ends_in_multiplicity(self.name):
            return f'{self.key}n"{self.name}*{self.multiplicity}"'
        return f'{self.key}n"{self.name}"' if self.name else self.key

    def _check_fit(self, axis: str) -> None:
        size, kernel, _, before, after, dilation = self._along(axis)
        padded, span = size + before + after, extent(kernel, dilation)
        if span > padded:
            raise WorkloadError(
                f"k{axis} is {kernel} and spans {span} with its dilation: expected at most the "
                f"padded input's {padded} (i{axis} {size} + padding {before} + {after})"
            )

    def _needed_padding(self, axis: str) -> int:
        """The least bottom or right padding that yields the same output size."""
        size, kernel, stride, before, _, dilation = self._along(axis)
        out = self.oh if axis == "h" else self.ow
        return max(0, (out - 1) * stride + extent(kernel, dilation) - size - before)

    def _along(self, axis: str) -> Axis:
        if axis == "h":
            return Axis(self.ih, self.kh, self.sh, self.ph, self.ph_r, self.dh)
        return Axis(self.iw, self.kw, self.sw, self.pw, self.pw_r, self.dw)


def _checked_int(name: str, value: object, low: int) -> int:
    """`value` as a plain int (NumPy's integers too) from `low` on; never a bool."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError by itself
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= MAX_SIZE:
        raise WorkloadError(
            f"{name} is {value!r}: expected a whole number from {low} to {MAX_SIZE}"
        )
    return number


def _numbers(name: str, value: int | Sequence[int], counts: tuple[int, ...]) -> tuple[int, ...]:
    """`value` as a tuple of one of the lengths `counts`; a single number counts for both axes."""
    if not isinstance(value, Sequence):
        return (value, value)
    if isinstance(value, str) or len(value) not in counts:
        lengths = " or ".join(str(count) for count in counts)
        raise WorkloadError(f"{name} is {value!r}: expected a whole number or {lengths} of them")
    return tuple(value)


def channel_block(layout: str) -> int:
    """Channels that lie together in the output of a blocked layout, 8 in NCHW8c; 0 for a plain one.

    Raises WorkloadError for an unknown layout.
    """
    if layout in LAYOUTS:
        return 0
    if layout not in (*BLOCKED_LAYOUTS, *ENTRY_LAYOUTS):
        known = ", ".join((*LAYOUTS, *BLOCKED_LAYOUTS, *ENTRY_LAYOUTS))
        raise WorkloadError(f"layout is {layout!r}: expected one of {known}")
    return int(layout.rpartition("-")[2][len("NCHW") : -1])


def _ordered(layout: str, n: int, c: int, h: int, w: int) -> tuple[int, ...]:
    block = channel_block(layout)
    if block:
        return (n, -(-c // block), h, w, block)
    if layout == "NCHW":
        return (n, c, h, w)
    return (n, h, w, c)
