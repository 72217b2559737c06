"""The text form of a convolution problem: oneDNN benchdnn's problem descriptor.

The grammar and the inference rules are benchdnn's (oneDNN, tests/benchdnn/doc/knobs_desc.md and
`conv::str2desc`): `mb1ic64ih56oc64oh56kh3ph1n"name*3"`. benchdnn writes dilation 0 for none, this
package writes 1; the two meet here and nowhere else. The words `f16` and `bf16` (benchdnn's
--dt=f16, --dt=bf16) make data, weight, bias and output float16 or bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from convtvm.errors import WorkloadError

# benchdnn's sizes are int64; its shape files have some above int32.
MAX_SIZE = 2**63 - 1

_WORDS = {"float16": "f16", "bfloat16": "bf16"}  # without one: float32

_TOKEN = re.compile(r"g|mb|ic|oc|[iokspd][dhw]")
_DIGITS = re.compile(r"[0-9]+")
_NAME = re.compile(r'"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+)|')
_MULTIPLICITY = re.compile(r"(?P<name>.*)\*(?P<times>[0-9]+)", re.DOTALL)


class Axis(NamedTuple):
    """One spatial axis; dilation 1 = none."""

    size: int
    kernel: int
    stride: int
    before: int = 0
    after: int = 0
    dilation: int = 1


def extent(kernel: int, dilation: int) -> int:
    """Input rows or columns that a dilated kernel (dilation 1 = none) spans."""
    return (kernel - 1) * dilation + 1


def fields(text: str) -> dict[str, Any]:
    """The fields of the ConvWorkload that a descriptor means.

    Raises WorkloadError, which does not repeat the text.
    """
    values, name, multiplicity = _scan(text)
    dtypes = [dtype for dtype, word in _WORDS.items() if values.pop(word, 0)]
    if len(dtypes) > 1:
        raise WorkloadError(f"gives {' and '.join(dtypes)}: expected one type")
    dtype = dtypes[0] if dtypes else "float32"
    return {**_inferred(values), "dtype": dtype, "name": name, "multiplicity": multiplicity}


def suffix(dtype: str) -> str:
    """What a descriptor says of the type, after the sizes."""
    return f"_{_WORDS[dtype]}" if dtype in _WORDS else ""


def ends_in_multiplicity(name: str) -> bool:
    """Whether the end of a name would be read as a multiplicity."""
    return _MULTIPLICITY.fullmatch(name) is not None


def _scan(text: str) -> tuple[dict[str, int], str, int]:
    """The descriptor's sizes as written, its name and multiplicity; positions count from 1."""
    values: dict[str, int] = {}
    position = 0
    while position < len(text):
        if text[position] == "_":
            position += 1
        elif text[position] == "n":
            return (values, *_scan_name(text, position))
        elif word := next((w for w in _WORDS.values() if text.startswith(w, position)), ""):
            values[word] = 1
            position += len(word)
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
            "kh, kw, sh, sw, ph, pw, dh, dw and a number, f16, bf16, or n and a name"
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
    if len(significant) > len(str(MAX_SIZE)) or int(significant) > MAX_SIZE:
        raise WorkloadError(
            f"token '{token}' {where} is {significant[:24]}: expected at most {MAX_SIZE}"
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
    if len(suffix["times"]) > len(str(MAX_SIZE)):
        raise WorkloadError(f"name {name[:40]!r} ends in a multiplicity above {MAX_SIZE}")
    return suffix["name"], int(suffix["times"])


def _inferred(values: Mapping[str, int]) -> dict[str, int]:
    """A workload's sizes from those in the text, by benchdnn's rules."""
    if _is_given(values, "d"):
        depth = ", ".join(f"{token}{values[token]}" for token in values if token[1:] == "d")
        raise WorkloadError(f"is 3-D: it gives {depth}; 3-D problems are not supported yet")
    for token in ("ic", "oc"):
        if not values.get(token):
            raise WorkloadError(f"{token} is missing or 0: expected at least ic, oc, ih and kh")
    has_h, has_w = _is_given(values, "h"), _is_given(values, "w")
    if not has_h and not has_w:
        raise WorkloadError("has no spatial size: expected ih and kh, or iw and kw for 1-D")
    h = _axis(values, "h") if has_h else Axis(size=1, kernel=1, stride=1)
    w = _axis(values, "w") if has_w else h
    channels = {"ic": values["ic"], "oc": values["oc"], "groups": values.get("g", 1)}
    return {"n": values.get("mb", 2), **channels, **_named(h, "h"), **_named(w, "w")}


def _named(along: Axis, axis: str) -> dict[str, int]:
    """An axis by the names of ConvWorkload's fields."""
    return {
        f"i{axis}": along.size,
        f"k{axis}": along.kernel,
        f"s{axis}": along.stride,
        f"p{axis}": along.before,
        f"p{axis}_r": along.after,
        f"d{axis}": along.dilation,
    }


def _is_given(values: Mapping[str, int], axis: str) -> bool:
    """Whether the text has an axis at all: sizes that equal the defaults do not count."""
    return any(values.get(c + axis) for c in "iokpd") or values.get("s" + axis, 1) != 1


def _axis(values: Mapping[str, int], axis: str) -> Axis:
    """One axis' sizes, paddings inferred from what the text gives."""
    size, out, kernel = (values.get(c + axis, 0) for c in "iok")
    stride, dilation = values.get("s" + axis, 1), values.get("d" + axis, 0) + 1
    for token, value in (("i" + axis, size), ("k" + axis, kernel)):
        if not value:
            given = " ".join(f"{t}{values[t]}" for t in values if t[1:] == axis)
            square = "; a square problem gives no width size at all" if axis == "w" else ""
            raise WorkloadError(f"{token} is missing or 0 beside {given}: expected it too{square}")
    if not stride:
        raise WorkloadError(f"s{axis} is 0: expected a whole number from 1 to {MAX_SIZE}")
    span = extent(kernel, dilation)
    if not out:
        before = values.get("p" + axis, 0)
        return Axis(size, kernel, stride, before, before, dilation)
    # benchdnn's compute_pad; less than none means input that no output reads.
    spread = max(0, (out - 1) * stride + span - size) // 2
    before = values.get("p" + axis, spread)
    after = max(0, (out - 1) * stride + span - size - before)
    reached = (size + before + after - span) // stride + 1
    if reached != out:
        raise WorkloadError(
            f"o{axis} is {out}, but i{axis}{size} k{axis}{kernel} s{axis}{stride} p{axis}{before} "
            f"d{axis}{dilation - 1} give {reached} or more: write o{axis}{reached} or leave it out"
        )
    return Axis(size, kernel, stride, before, after, dilation)
