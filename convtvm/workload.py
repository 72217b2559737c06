"""One convolution problem, and its text form: oneDNN benchdnn's problem descriptor.

The grammar and the inference rules are benchdnn's (oneDNN, tests/benchdnn/doc/knobs_desc.md and
`conv::str2desc`): `mb1ic64ih56oc64oh56kh3ph1n"name*3"`. benchdnn writes dilation 0 for none, this
package writes 1; the two meet here and nowhere else.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from convtvm.errors import WorkloadError

# benchdnn's sizes are int64; its shape files have some above int32.
_MAX_SIZE = 2**63 - 1
LAYOUTS = ("NCHW", "NHWC")
# [n, channels / b, h, w, b]: the last block is filled up with channels that are written as zero
# and never read.
BLOCKED_LAYOUTS = ("NCHW4c", "NCHW8c", "NCHW16c")
_DTYPE_BYTES = {"float32": 4}

_FROM_ONE = ("n", "ic", "ih", "iw", "oc", "kh", "kw", "sh", "sw", "dh", "dw", "groups")
_FROM_ZERO = ("ph", "pw", "ph_r", "pw_r")

_TOKEN = re.compile(r"g|mb|ic|oc|[iokspd][dhw]")
_DIGITS = re.compile(r"[0-9]+")
_NAME = re.compile(r'"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+)|')
_MULTIPLICITY = re.compile(r"(?P<name>.*)\*(?P<times>[0-9]+)", re.DOTALL)
_SHOWN = 200  # characters of a descriptor in a message
_EXAMPLE = "mb1ic64ih56oc64oh56kh3ph1"


class _Axis(NamedTuple):
    """One spatial axis; dilation 1 = none."""

    size: int
    kernel: int
    stride: int
    before: int = 0
    after: int = 0
    dilation: int = 1


@dataclass(frozen=True, order=True)
class ConvWorkload:
    """A 2-D forward convolution: data [n, ic, ih, iw] * weight [oc, ic/groups, kh, kw].

    Sizes in oneDNN's letters; `ph`, `pw` pad top and left, `ph_r`, `pw_r` bottom and right;
    dilation 1 is none. A 1-D problem has height 1. Bottom and right padding that no output reads
    (stride > 1) is dropped, so that problems with the same result are equal; build a changed
    problem with `make`, not with `dataclasses.replace`, which would start from what is left.
    `name` and `multiplicity` (how often a network has it) say nothing about the problem and take
    no part in comparison.
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
        if self.dtype not in _DTYPE_BYTES:
            raise WorkloadError(
                f"dtype is {self.dtype!r}: expected one of {', '.join(sorted(_DTYPE_BYTES))}"
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
            return _inferred(*_scan(text.strip()))
        except WorkloadError as err:
            shown = text.strip()
            shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
            raise WorkloadError(f"workload {shown!r}: {err}") from None

    @property
    def oh(self) -> int:
        """Rows of the output."""
        return (self.ih + self.ph + self.ph_r - _extent(self.kh, self.dh)) // self.sh + 1

    @property
    def ow(self) -> int:
        """Columns of the output."""
        return (self.iw + self.pw + self.pw_r - _extent(self.kw, self.dw)) // self.sw + 1

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct algorithm, those that meet padding included."""
        return self.n * self.oc * self.oh * self.ow * (self.ic // self.groups) * self.kh * self.kw

    @property
    def flops(self) -> int:
        """Floating-point operations of the direct algorithm: two for each multiply-add."""
        return 2 * self.macs

    def data_shape(self, layout: str = "NCHW") -> tuple[int, ...]:
        """Shape of the input in `layout`, one of LAYOUTS or BLOCKED_LAYOUTS."""
        return _ordered(layout, self.n, self.ic, self.ih, self.iw)

    def out_shape(self, layout: str = "NCHW") -> tuple[int, ...]:
        """Shape of the output in `layout`, one of LAYOUTS or BLOCKED_LAYOUTS."""
        return _ordered(layout, self.n, self.oc, self.oh, self.ow)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight: [oc, ic/groups, kh, kw]."""
        return (self.oc, self.ic // self.groups, self.kh, self.kw)

    @property
    def data_bytes(self) -> int:
        return self.n * self.ic * self.ih * self.iw * _DTYPE_BYTES[self.dtype]

    @property
    def weight_bytes(self) -> int:
        return self.oc * (self.ic // self.groups) * self.kh * self.kw * _DTYPE_BYTES[self.dtype]

    @property
    def out_bytes(self) -> int:
        return self.n * self.oc * self.oh * self.ow * _DTYPE_BYTES[self.dtype]

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
        )

    def __str__(self) -> str:
        """The key with the name and multiplicity, if any, so that `parse` restores all of it."""
        # A name that itself ends in *k needs the explicit *1 after it.
        if self.multiplicity != 1 or _MULTIPLICITY.fullmatch(self.name):
            return f'{self.key}n"{self.name}*{self.multiplicity}"'
        return f'{self.key}n"{self.name}"' if self.name else self.key

    def _check_fit(self, axis: str) -> None:
        size, kernel, _, before, after, dilation = self._along(axis)
        padded, extent = size + before + after, _extent(kernel, dilation)
        if extent > padded:
            raise WorkloadError(
                f"k{axis} is {kernel} and spans {extent} with its dilation: expected at most the "
                f"padded input's {padded} (i{axis} {size} + padding {before} + {after})"
            )

    def _needed_padding(self, axis: str) -> int:
        """The least bottom or right padding that yields the same output size."""
        size, kernel, stride, before, _, dilation = self._along(axis)
        out = self.oh if axis == "h" else self.ow
        return max(0, (out - 1) * stride + _extent(kernel, dilation) - size - before)

    def _along(self, axis: str) -> _Axis:
        if axis == "h":
            return _Axis(self.ih, self.kh, self.sh, self.ph, self.ph_r, self.dh)
        return _Axis(self.iw, self.kw, self.sw, self.pw, self.pw_r, self.dw)


def _extent(kernel: int, dilation: int) -> int:
    """Input rows or columns that a dilated kernel (dilation 1 = none) spans."""
    return (kernel - 1) * dilation + 1


def _checked_int(name: str, value: object, low: int) -> int:
    """`value` as a plain int (NumPy's integers too) from `low` on; never a bool."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError by itself
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= _MAX_SIZE:
        raise WorkloadError(
            f"{name} is {value!r}: expected a whole number from {low} to {_MAX_SIZE}"
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
    """Channels that lie together in a blocked layout, 8 in NCHW8c; 0 for a plain one.

    Raises WorkloadError for an unknown layout.
    """
    if layout in LAYOUTS:
        return 0
    if layout not in BLOCKED_LAYOUTS:
        known = ", ".join((*LAYOUTS, *BLOCKED_LAYOUTS))
        raise WorkloadError(f"layout is {layout!r}: expected one of {known}")
    return int(layout[len("NCHW") : -1])


def _ordered(layout: str, n: int, c: int, h: int, w: int) -> tuple[int, ...]:
    block = channel_block(layout)
    if block:
        return (n, -(-c // block), h, w, block)
    if layout == "NCHW":
        return (n, c, h, w)
    return (n, h, w, c)


# The descriptor: text -> sizes as written -> fields.


def _scan(text: str) -> tuple[dict[str, int], str, int]:
    """The descriptor's sizes as written, its name and multiplicity; positions count from 1."""
    values: dict[str, int] = {}
    position = 0
    while position < len(text):
        if text[position] == "_":
            position += 1
        elif text[position] == "n":
            return (values, *_scan_name(text, position))
        else:
            token, value, end = _scan_size(text, position)
            if values.setdefault(token, value) != value:
                raise WorkloadError(
                    f"token '{token}{value}' at character {position + 1} contradicts "
                    f"'{token}{values[token]}' before it: give {token} once"
                )
            position = end
    return values, "", 1


def _scan_size(text: str, position: int) -> tuple[str, int, int]:
    """The token at `position`, its value and where it ends."""
    where = f"at character {position + 1}"
    match = _TOKEN.match(text, position)
    if match is None:
        found = re.split(r"[_\"\s]", text[position : position + 12])[0] or text[position]
        raise WorkloadError(
            f"unknown token {found!r} {where}: expected one of g, mb, ic, ih, iw, oc, oh, ow, "
            "kh, kw, sh, sw, ph, pw, dh, dw and a number, or n and a name"
        )
    token = match.group()
    digits = _DIGITS.match(text, match.end())
    if digits is None:
        found = text[match.end() : match.end() + 8]
        raise WorkloadError(
            f"token '{token}' {where} is followed by {found!r}: expected a number such as {token}3"
            if found
            else f"token '{token}' {where} ends the text: expected a number such as {token}3"
        )
    # int() of an endless string of digits would be slow, or raise an error of its own.
    significant = digits.group().lstrip("0") or "0"
    if len(significant) > len(str(_MAX_SIZE)) or int(significant) > _MAX_SIZE:
        raise WorkloadError(
            f"token '{token}' {where} is {significant[:24]}: expected at most {_MAX_SIZE}"
        )
    return token, int(significant), digits.end()


def _scan_name(text: str, position: int) -> tuple[str, int]:
    """Name and multiplicity from `n` at `position` to the end of the text."""
    match = _NAME.match(text, position + 1)
    assert match is not None  # the pattern's last alternative is empty
    if match.end() != len(text):
        rest, where = text[match.end() :], f"at character {match.end() + 1}"
        if rest.startswith('"') and '"' not in rest[1:]:
            raise WorkloadError(
                f'name {rest[:40]!r} {where} has no closing quote: expected n"name"'
            )
        raise WorkloadError(
            f'{rest[:40]!r} {where} follows the name: expected n"name" to come last'
        )
    name = match["quoted"] or match["bare"] or ""
    suffix = _MULTIPLICITY.fullmatch(name)
    if suffix is None:
        return name, 1
    if len(suffix["times"]) > len(str(_MAX_SIZE)):
        raise WorkloadError(f"name {name[:40]!r} ends in a multiplicity above {_MAX_SIZE}")
    return suffix["name"], int(suffix["times"])


def _inferred(values: dict[str, int], name: str, multiplicity: int) -> ConvWorkload:
    """The workload that the sizes as written mean, by benchdnn's rules."""
    if _is_given(values, "d"):
        depth = ", ".join(f"{token}{values[token]}" for token in values if token[1:] == "d")
        raise WorkloadError(f"is 3-D: it gives {depth}; 3-D problems are not supported yet")
    for token in ("ic", "oc"):
        if not values.get(token):
            raise WorkloadError(f"{token} is missing or 0: expected at least ic, oc, ih and kh")
    has_h, has_w = _is_given(values, "h"), _is_given(values, "w")
    if not has_h and not has_w:
        raise WorkloadError("has no spatial size: expected ih and kh, or iw and kw for 1-D")
    h = _axis(values, "h") if has_h else _Axis(size=1, kernel=1, stride=1)
    w = _axis(values, "w") if has_w else h
    sizes = (values.get("mb", 2), values["ic"], h.size, w.size, values["oc"], h.kernel, w.kernel)
    strides, dilations = (h.stride, w.stride), (h.dilation, w.dilation)
    rest = (*strides, h.before, w.before, h.after, w.after, *dilations, values.get("g", 1))
    return ConvWorkload(*sizes, *rest, name=name, multiplicity=multiplicity)


def _is_given(values: dict[str, int], axis: str) -> bool:
    """Whether the text has an axis at all: sizes that equal the defaults do not count."""
    return any(values.get(c + axis) for c in "iokpd") or values.get("s" + axis, 1) != 1


def _axis(values: dict[str, int], axis: str) -> _Axis:
    """One axis' sizes, paddings inferred from what the text gives."""
    size, out, kernel = (values.get(c + axis, 0) for c in "iok")
    stride, dilation = values.get("s" + axis, 1), values.get("d" + axis, 0) + 1
    for token, value in (("i" + axis, size), ("k" + axis, kernel)):
        if not value:
            given = " ".join(f"{t}{values[t]}" for t in values if t[1:] == axis)
            square = "; a square problem gives no width size at all" if axis == "w" else ""
            raise WorkloadError(f"{token} is missing or 0 beside {given}: expected it too{square}")
    if not stride:
        raise WorkloadError(f"s{axis} is 0: expected a whole number from 1 to {_MAX_SIZE}")
    extent = _extent(kernel, dilation)
    if not out:
        before = values.get("p" + axis, 0)
        return _Axis(size, kernel, stride, before, before, dilation)
    # benchdnn's compute_pad; less than none means input that no output reads.
    spread = max(0, (out - 1) * stride + extent - size) // 2
    before = values.get("p" + axis, spread)
    after = max(0, (out - 1) * stride + extent - size - before)
    reached = (size + before + after - extent) // stride + 1
    if reached != out:
        raise WorkloadError(
            f"o{axis} is {out}, but i{axis}{size} k{axis}{kernel} s{axis}{stride} p{axis}{before} "
            f"d{axis}{dilation - 1} give {reached} or more: write o{axis}{reached} or leave it out"
        )
    return _Axis(size, kernel, stride, before, after, dilation)
