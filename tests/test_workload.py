"""ConvWorkload: known values, every refusal, benchdnn's grammar and inference, round trips."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from convtvm.errors import ConvtvmError, UnknownWorkload, WorkloadError
from convtvm.problem.workload import ConvWorkload

RESNET = ConvWorkload.make(64, 64, 56, kh=3, padding=1)
STEM = ConvWorkload.make(3, 64, 224, kh=7, stride=2, padding=3)


@st.composite
def workloads(draw: st.DrawFn) -> ConvWorkload:
    """Any small valid workload: rectangular, strided, asymmetric, dilated, grouped."""
    size = st.integers(1, 12)
    small = st.integers(0, 4)
    groups = draw(st.integers(1, 4))
    padding = draw(st.tuples(small, small, small, small))
    kh, kw, dh, dw = draw(st.tuples(*[st.integers(1, 5)] * 4))
    ih, iw = draw(size), draw(size)
    assume((kh - 1) * dh < ih + padding[0] + padding[2])
    assume((kw - 1) * dw < iw + padding[1] + padding[3])
    return ConvWorkload.make(
        ic=groups * draw(st.integers(1, 3)),
        oc=groups * draw(st.integers(1, 3)),
        ih=ih,
        iw=iw,
        kh=kh,
        kw=kw,
        n=draw(st.integers(1, 3)),
        stride=draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        padding=padding,
        dilation=(dh, dw),
        groups=groups,
        name=draw(st.text(st.sampled_from("ab1*_.:/ n"), max_size=6)),
        multiplicity=draw(st.integers(1, 12)),
    )


# Known values.


def test_sizes_of_a_resnet_layer() -> None:
    w = RESNET
    assert (w.oh, w.ow) == (56, 56)
    assert w.macs == 64 * 64 * 9 * 56 * 56
    assert w.flops == 2 * w.macs == 231211008
    assert w.data_shape() == w.data_shape("NCHW") == (1, 64, 56, 56)
    assert w.out_shape("NHWC") == (1, 56, 56, 64)
    assert w.weight_shape == (64, 64, 3, 3)
    assert w.data_bytes == w.out_bytes == 4 * 64 * 56 * 56
    assert w.weight_bytes == 4 * 64 * 64 * 9
    assert not w.is_depthwise


def test_sizes_of_an_odd_problem() -> None:
    w = ConvWorkload.make(
        ic=6,
        oc=9,
        ih=11,
        iw=8,
        kh=3,
        kw=2,
        n=2,
        stride=(2, 3),
        padding=(0, 1, 2, 3),
        dilation=(2, 1),
        groups=3,
    )
    assert (w.ph, w.pw) == (0, 1)
    assert w.oh == (11 + 0 + 2 - 5) // 2 + 1 == 5
    assert w.ow == (8 + 1 + 3 - 2) // 3 + 1 == 4
    assert w.data_shape() == (2, 6, 11, 8)
    assert w.out_shape() == (2, 9, 5, 4)
    assert w.out_shape("NHWC") == (2, 5, 4, 9)
    assert w.weight_shape == (9, 2, 3, 2)
    assert w.macs == 2 * 9 * 5 * 4 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("ic", "oc", "groups", "expected"),
    [
        (32, 32, 32, True),
        (32, 64, 32, True),
        (32, 32, 16, False),
        (32, 32, 1, False),
        (1, 8, 1, False),
    ],
)
def test_depthwise(ic: int, oc: int, groups: int, expected: bool) -> None:
    assert ConvWorkload.make(ic, oc, 8, kh=3, groups=groups).is_depthwise is expected


def test_make_takes_numbers_or_tuples() -> None:
    one = ConvWorkload.make(8, 8, 9, 10, 3, 3, stride=2, padding=1, dilation=2)
    assert one == ConvWorkload.make(8, 8, 9, 10, 3, stride=(2, 2), padding=(1, 1), dilation=[2, 2])
    assert one == ConvWorkload.make(8, 8, 9, 10, 3, padding=(1, 1, 1, 1), stride=2, dilation=2)
    assert one.n == one.groups == 1
    asymmetric = ConvWorkload.make(8, 8, 9, kh=3, padding=(0, 1, 2, 3))
    assert (asymmetric.ph, asymmetric.pw, asymmetric.ph_r, asymmetric.pw_r) == (0, 1, 2, 3)


def test_numpy_integers_become_plain_ones() -> None:
    w = ConvWorkload.make(np.int64(8), np.int32(8), np.int16(9), kh=np.uint8(3))  # type: ignore[arg-type]
    assert w == ConvWorkload.make(8, 8, 9, kh=3)
    assert all(type(getattr(w, name)) is int for name in ("ic", "oc", "ih", "iw", "kh", "kw"))


def test_padding_that_no_output_reads_is_dropped() -> None:
    # 56 + 2 rows, 3x3, stride 2: the 28th output row ends on row 57, one before the last.
    w = ConvWorkload.make(64, 64, 56, kh=3, stride=2, padding=1)
    assert (w.oh, w.ph, w.ph_r, w.pw_r) == (28, 1, 0, 0)
    assert w == ConvWorkload.make(64, 64, 56, kh=3, stride=2, padding=(1, 1, 0, 0))
    assert RESNET.ph_r == 1
    # Rows of the input itself may stay unread too; that is no negative padding.
    assert ConvWorkload.make(8, 8, 12, stride=5).ph_r == 0


def test_frozen_hashable_ordered_and_name_is_not_compared() -> None:
    named = dataclasses.replace(RESNET, name="layer1.0.conv1", multiplicity=4)
    assert named == RESNET and hash(named) == hash(RESNET)
    assert {RESNET: "kept"}[named] == "kept"
    assert sorted([RESNET, STEM]) == [STEM, RESNET]
    assert pickle.loads(pickle.dumps(named)).multiplicity == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        RESNET.ic = 3  # type: ignore[misc]


# Refusals.


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ic": 0}, "ic is 0: expected a whole number from 1 to"),
        ({"oc": -8}, "oc is -8: expected a whole number from 1 to"),
        ({"n": 0}, "n is 0: expected"),
        ({"ih": 2.0}, "ih is 2.0: expected"),
        ({"iw": "8"}, "iw is '8': expected"),
        ({"kh": True}, "kh is True: expected"),
        ({"ic": 2**63}, "ic is 9223372036854775808: expected"),
        ({"stride": 0}, "sh is 0: expected"),
        ({"stride": (1, 0)}, "sw is 0: expected"),
        ({"dilation": 0}, "dh is 0: expected a whole number from 1 to"),
        ({"padding": -1}, "ph is -1: expected a whole number from 0 to"),
        ({"padding": (1, 1, 1, -1)}, "pw_r is -1: expected"),
        ({"padding": (1, 1, 1)}, "padding is (1, 1, 1): expected a whole number or 2 or 4 of them"),
        ({"padding": "same"}, "padding is 'same': expected"),
        ({"stride": (1, 1, 1)}, "stride is (1, 1, 1): expected a whole number or 2 of them"),
        ({"groups": 0}, "groups is 0: expected"),
        ({"groups": 3}, "groups is 3: expected a divisor of ic = 8"),
        ({"groups": 8, "oc": 12}, "groups is 8: expected a divisor of oc = 12"),
        ({"multiplicity": 0}, "multiplicity is 0: expected"),
        ({"dtype": "int8"}, "dtype is 'int8': expected one of bfloat16, float16, float32"),
        ({"name": 'a"b'}, "name is 'a\"b': expected printable text without double quotes"),
        ({"name": "a\nb"}, "name is 'a\\nb': expected printable text"),
        ({"kh": 9}, "kh is 9 and spans 9 with its dilation: expected at most the padded input's 8"),
        (
            {"kw": 3, "dilation": (1, 5), "padding": (0, 1, 0, 1)},
            "kw is 3 and spans 11 with its dilation: expected at most the padded input's 10 "
            "(iw 8 + padding 1 + 1)",
        ),
    ],
)
def test_refused_sizes(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        ConvWorkload.make(**{"ic": 8, "oc": 8, "ih": 8, **sizes})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_refused_layout() -> None:
    with pytest.raises(WorkloadError, match="layout is 'CHWN': expected one of NCHW, NHWC"):
        RESNET.data_shape("CHWN")


# The descriptor.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mb1ic64ih56oc64oh56kh3ph1", RESNET),
        ("ic64ih56oc64oh56kh3ph1", dataclasses.replace(RESNET, n=2)),
        ("mb1ic64ih56oc64kh3ph1", RESNET),
        ("mb1ic64ih56oc64oh56kh3", RESNET),
        ("mb1_ic64_ih56__oc64oh56_kh3ph1_", RESNET),
        ("kh3ph1oc64ih56ic64mb1g1", RESNET),
        ("  mb1ic64ih56oc64kh3ph1\n", RESNET),
        ("mb01ic064ih56oc64kh3ph1sh1dh0", RESNET),
        ("mb1ic64ih56oc64oh56kh3ph1ic64", RESNET),
        ("mb1ic3ih224oc64oh112kh7sh2ph3", STEM),
        (
            "mb1ic3ih224oc64oh112kh7sh2",
            ConvWorkload.make(3, 64, 224, kh=7, stride=2, padding=(2, 2, 3, 3)),
        ),
        # Without width sizes all of them are the height's; sizes that say nothing do not count.
        ("mb1ic3ih224oc64kh7sh2ph3pw0sw1", STEM),
        # With width sizes the others have defaults of their own, stride 1 and no padding.
        (
            "mb1ic8ih9iw10oc8kh3kw5sh2ph1",
            ConvWorkload.make(8, 8, 9, 10, 3, 5, stride=(2, 1), padding=(1, 0)),
        ),
        # Dilation: benchdnn's 0 is none.
        ("mb1ic8ih9oc8kh3dh1", ConvWorkload.make(8, 8, 9, kh=3, dilation=2)),
        ("mb1ic8ih9oc8oh9kh3dh2", ConvWorkload.make(8, 8, 9, kh=3, dilation=3, padding=3)),
        ("g8mb1ic8ih9oc16kh3", ConvWorkload.make(8, 16, 9, kh=3, groups=8)),
        # Inferred padding is split evenly, the odd row goes to the bottom.
        ("mb1ic8ih8oc8oh8kh4", ConvWorkload.make(8, 8, 8, kh=4, padding=(1, 1, 2, 2))),
        (
            "mb2ic3ih300oc32oh150kh3sh2",
            ConvWorkload.make(3, 32, 300, kh=3, n=2, stride=2, padding=(0, 0, 1, 1)),
        ),
        # More rows than the padding alone yields: asymmetric, also wider than the kernel.
        ("mb1ic8ih7oc8oh11kh3ph2", ConvWorkload.make(8, 8, 7, kh=3, padding=(2, 2, 4, 4))),
        ("mb1ic8ih1oc8oh16kh2ph1", ConvWorkload.make(8, 8, 1, kh=2, padding=(1, 1, 15, 15))),
        # Fewer: the last input rows are not read, the padding stays 0.
        ("mb1ic8ih56oc8oh28kh1sh2ph0", ConvWorkload.make(8, 8, 56, stride=2)),
        ("mb1ic8ih12oc8oh3kh1sh4", ConvWorkload.make(8, 8, 12, stride=4)),
        # 1-D: height 1.
        (
            "mb1ic8iw32oc8ow32kw3pw1",
            ConvWorkload.make(8, 8, 1, 32, 1, 3, padding=(0, 1)),
        ),
        (
            "mb1ic8iw32oc8kw3sw2dw1ph0",
            ConvWorkload.make(8, 8, 1, 32, 1, 3, stride=(1, 2), dilation=(1, 2)),
        ),
        # Depth sizes that say nothing leave the problem 2-D.
        ("mb1ic64ih56oc64kh3ph1sd1pd0dd0", RESNET),
    ],
)
def test_parse(text: str, expected: ConvWorkload) -> None:
    w = ConvWorkload.parse(text)
    assert w == expected
    assert (w.name, w.multiplicity) == ("", 1)


@pytest.mark.parametrize(
    ("suffix", "name", "multiplicity"),
    [
        ("", "", 1),
        ("n", "", 1),
        ('n""', "", 1),
        ('n"res2a_branch2b*3"', "res2a_branch2b", 3),
        ("_nconv1", "conv1", 1),
        ("nconv1*12", "conv1", 12),
        ('n"*2"', "", 2),
        ('n"a*b"', "a*b", 1),
        ('n"a*5&b"', "a*5&b", 1),
        ('n"a*2*3"', "a*2", 3),
        ('n"with space"', "with space", 1),
        ('n"yolov2:conv9*27"', "yolov2:conv9", 27),
    ],
)
def test_parse_name(suffix: str, name: str, multiplicity: int) -> None:
    w = ConvWorkload.parse("mb1ic64ih56oc64kh3ph1" + suffix)
    assert (w, w.name, w.multiplicity) == (RESNET, name, multiplicity)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ic is missing or 0: expected at least ic, oc, ih and kh"),
        ("mb1ih5oc3kh1", "ic is missing or 0"),
        ("ic3ih5oc0kh1", "oc is missing or 0"),
        ("ic3oc3", "has no spatial size: expected ih and kh, or iw and kw for 1-D"),
        ("ic3oc3kh3", "ih is missing or 0 beside kh3"),
        ("ic3oc3ih5oh5", "kh is missing or 0 beside ih5 oh5"),
        ("ic3ih5iw6oc3kh3", "kw is missing or 0 beside iw6: expected it too; a square problem"),
        ("ic3ih5oc3kh3kw2", "iw is missing or 0 beside kw2"),
        ("ic3iw5oc3kw3sh2", "ih is missing or 0 beside sh2"),
        ("ic3ih5oc3kh3sh0", "sh is 0: expected"),
        ("mb0ic3ih5oc3kh3", "n is 0: expected"),
        ("g0ic3ih5oc3kh3", "groups is 0: expected"),
        ("g2ic3ih5oc4kh3", "groups is 2: expected a divisor of ic = 3"),
        ("ic3ih5oc3kh7", "kh is 7 and spans 7 with its dilation: expected at most the padded"),
        ("ic3ih5oc3kh3dh2", "kh is 3 and spans 7"),
        # benchdnn's division rounds towards zero and would make this one output row.
        ("ic3ih3oc3kh4sh2", "kh is 4 and spans 4"),
        ("ic3ih9oc3oh5kh3ph0", "oh is 5, but"),
        ("ic3ih9oc3oh6kh3ph1", "oh is 6, but ih9 kh3 sh1 ph1 dh0 give 8 or more: write oh8"),
        ("ic3ih9iw9oc3kh3kw3ow1", "ow is 1, but iw9 kw3 sw1 pw0 dw0 give 7 or more"),
        ("ic3ihh5oc3kh3", "token 'ih' at character 4 is followed by 'h5oc3kh3': expected a number"),
        ("ic3ih5oc3kh", "token 'kh' at character 10 ends the text: expected a number such as kh3"),
        ("ic-3ih5oc3kh3", "token 'ic' at character 1 is followed by '-3ih5oc3'"),
        ("ic3ih5oc3kh3xx9", "unknown token 'xx9' at character 13: expected one of g, mb, ic"),
        ("ic3 ih5oc3kh3", "unknown token ' ' at character 4"),
        ("IC3ih5oc3kh3", "unknown token 'IC3ih5oc3kh3' at character 1"),
        (
            "ic3ih5oc3kh3ic4",
            "token 'ic4' at character 13 contradicts 'ic3' before it: give ic once",
        ),
        ("ic99999999999999999999ih5oc3kh3", "token 'ic' at character 1 is 99999999999999999999: "),
        ("ic" + "9" * 5000 + "ih5oc3kh3", "token 'ic' at character 1 is 999"),
        ('ic3ih5oc3kh3n"a', "name '\"a' at character 14 has no closing quote"),
        (
            'ic3ih5oc3kh3n"a"kw3',
            "'kw3' at character 17 follows the name: expected n\"name\" to come",
        ),
        ("ic3ih5oc3kh3na b", "' b' at character 15 follows the name"),
        ('ic3ih5oc3kh3n"a*0"', "multiplicity is 0: expected"),
        ('ic3ih5oc3kh3n"a*' + "9" * 5000 + '"', "name 'a*999"),
        ("ic3id5ih5oc3kd3kh3", "is 3-D: it gives id5, kd3; 3-D problems are not supported yet"),
        ("ic3id1ih5oc3kd1kh3", "is 3-D: it gives id1, kd1"),
        ("ic3ih5oc3kh3pd1", "is 3-D: it gives pd1"),
        ("ic3ih5oc3kh3sd2", "is 3-D: it gives sd2"),
    ],
)
def test_refused_descriptor(text: str, message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        ConvWorkload.parse(text)
    shown = text if len(text) <= 200 else text[:200] + "..."
    assert str(caught.value).startswith(f"workload {shown!r}: {message}")
    assert "\n" not in str(caught.value)


def test_parse_takes_text_only() -> None:
    with pytest.raises(WorkloadError, match="workload is 3: expected text such as mb1ic64"):
        ConvWorkload.parse(3)  # type: ignore[arg-type]


def test_key_is_explicit_and_nameless() -> None:
    w = ConvWorkload.parse('ic3ih224oc64oh112kh7sh2ph3n"stem*2"')
    key = "g1mb2ic3ih224iw224oc64oh112ow112kh7kw7sh2sw2ph3pw3dh0dw0"
    assert w.key == key
    assert str(w) == key + 'n"stem*2"'
    assert str(dataclasses.replace(w, multiplicity=1)) == key + 'n"stem"'
    assert str(dataclasses.replace(w, name="", multiplicity=1)) == key
    assert str(dataclasses.replace(w, name="a*2", multiplicity=1)) == key + 'n"a*2*1"'


# Properties.


@given(workloads())
def test_round_trip(w: ConvWorkload) -> None:
    assert ConvWorkload.parse(w.key) == w
    back = ConvWorkload.parse(str(w))
    assert (back, back.name, back.multiplicity) == (w, w.name, w.multiplicity)
    assert back.key == w.key


@given(workloads())
def test_bottom_padding_is_the_least(w: ConvWorkload) -> None:
    span = (w.kh - 1) * w.dh + 1
    assert w.oh == len(range(0, w.ih + w.ph + w.ph_r - span + 1, w.sh)) >= 1
    if w.ph_r:
        assert (w.ih + w.ph + w.ph_r - 1 - span) // w.sh + 1 < w.oh
    more = ConvWorkload.make(
        1, 1, w.ih, kh=w.kh, padding=(w.ph, 0, w.ph_r + w.sh, 0), kw=1, stride=w.sh, dilation=w.dh
    )
    assert more.oh == w.oh + 1


@given(workloads(), workloads())
def test_equal_exactly_when_keys_are(a: ConvWorkload, b: ConvWorkload) -> None:
    assert (a == b) == (a.key == b.key)


@given(st.text(st.sampled_from('gmbicohwkdsp_n"*0123 9'), max_size=40))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    try:
        w = ConvWorkload.parse(text)
    except WorkloadError as err:
        assert "\n" not in str(err) and str(err)
    else:
        assert ConvWorkload.parse(str(w)) == w


# The errors themselves.


def test_messages_are_one_plain_line() -> None:
    assert str(UnknownWorkload("library lacks 'x'; nearest: y")) == "library lacks 'x'; nearest: y"
    assert str(ConvtvmError("first\nsecond")) == "first second"
    assert issubclass(WorkloadError, ValueError) and issubclass(UnknownWorkload, KeyError)
