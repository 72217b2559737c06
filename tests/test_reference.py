"""The float64 reference against seven plain loops, and the helpers around it."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convtvm.problem.reference import (
    ALIGNMENT,
    aligned_empty,
    conv2d_reference,
    random_inputs,
    relative_error,
)
from convtvm.problem.workload import ConvWorkload

LAYOUTS = ("NCHW", "NHWC")
make = ConvWorkload.make

WORKLOADS = {
    "pointwise": make(3, 5, 4, 7),
    "pointwise stride": make(3, 2, 7, 6, stride=2),
    "3x3": make(3, 4, 5, 7, 3, padding=1),
    "no padding": make(2, 3, 5, 5, 3),
    "batch": make(2, 3, 5, 4, 3, n=2, padding=1),
    "asymmetric padding": make(2, 3, 5, 6, 3, padding=(2, 0, 1, 3)),
    "asymmetric all": make(2, 3, 8, 9, 3, 2, stride=(3, 2), padding=(0, 1, 2, 1), dilation=(2, 3)),
    "dilation": make(2, 2, 9, 8, 3, padding=2, dilation=(2, 3)),
    "stride leaves rows over": make(2, 3, 8, 7, 3, stride=(3, 2), padding=1),
    "stride beyond the kernel": make(2, 3, 11, 10, 2, stride=4),
    "groups": make(6, 4, 5, 5, 3, padding=1, groups=2, n=2),
    "groups of one output": make(6, 3, 5, 4, 3, groups=3, padding=1),
    "depthwise": make(5, 5, 6, 5, 3, padding=1, groups=5, n=2),
    "depthwise multiplier": make(3, 6, 5, 5, 3, stride=2, padding=1, groups=3),
    "depthwise dilation": make(4, 4, 9, 7, 3, dilation=2, padding=(2, 1, 0, 2), groups=4),
    "1-D": make(4, 3, 1, 13, 1, 5, stride=(1, 2), padding=(0, 2)),
    "column": make(2, 3, 9, 1, 3, 1, padding=(1, 0)),
    "kernel as large as the input": make(3, 4, 4, 5, 4, 5),
    "windows of padding only": make(2, 2, 1, 1, 3, stride=2, padding=(5, 4, 5, 4)),
    "window ends in the padding": make(1, 1, 1, 1, 3, stride=20, padding=5),
    "7x7 stride 2": make(3, 4, 11, 9, 7, stride=2, padding=3),
    "from benchdnn": ConvWorkload.parse("g2mb3ic4ih5oc6oh5kh3ph1"),
}

any_workload = pytest.mark.parametrize("w", WORKLOADS.values(), ids=WORKLOADS.keys())
any_layout = pytest.mark.parametrize("layout", LAYOUTS)


def seven_loops(w: ConvWorkload, data, weight, bias) -> np.ndarray:
    """Data and output in NCHW."""
    out = np.zeros((w.n, w.oc, w.oh, w.ow))
    icg, ocg = w.ic // w.groups, w.oc // w.groups
    for n, o, y, x in np.ndindex(out.shape):
        total = 0.0 if bias is None else float(bias[o])
        for i, a, b in np.ndindex(icg, w.kh, w.kw):
            row, column = y * w.sh - w.ph + a * w.dh, x * w.sw - w.pw + b * w.dw
            if 0 <= row < w.ih and 0 <= column < w.iw:
                pixel = data[n, o // ocg * icg + i, row, column]
                total += float(pixel) * float(weight[o, i, a, b])
        out[n, o, y, x] = total
    return out


def nchw(array: np.ndarray, layout: str) -> np.ndarray:
    return array if layout == "NCHW" else array.transpose(0, 3, 1, 2)


@any_layout
@any_workload
def test_equals_seven_loops_exactly_on_integers(w, layout):
    data, weight, bias = random_inputs(w, 1, layout, "integer")
    out = conv2d_reference(w, data, weight, bias, layout)
    assert out.dtype == np.float64 and out.shape == w.out_shape(layout)
    np.testing.assert_array_equal(
        nchw(out, layout), seven_loops(w, nchw(data, layout), weight, bias)
    )


@any_workload
def test_equals_seven_loops_on_normal_numbers(w):
    data, weight, _ = random_inputs(w, 2)
    expected = seven_loops(w, data, weight, None)
    np.testing.assert_allclose(conv2d_reference(w, data, weight), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("elements", [1, 100])
@any_workload
def test_strips_of_rows_change_nothing(w, elements, monkeypatch):
    inputs = random_inputs(w, 2, kind="integer")
    whole = conv2d_reference(w, *inputs)
    monkeypatch.setattr("convtvm.problem.reference._BLOCK_ELEMENTS", elements)
    np.testing.assert_array_equal(conv2d_reference(w, *inputs), whole)


@st.composite
def workloads(draw: st.DrawFn) -> ConvWorkload:
    small = st.integers(1, 3)
    kh, kw, dh, dw, groups = (draw(small) for _ in range(5))
    ih, iw = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    need_h, need_w = max(0, (kh - 1) * dh + 1 - ih), max(0, (kw - 1) * dw + 1 - iw)
    pads = [draw(st.integers(0, 3)) for _ in range(4)]
    return make(
        ic=groups * draw(small), oc=groups * draw(small), ih=ih, iw=iw, kh=kh, kw=kw,
        n=draw(st.integers(1, 2)), stride=(draw(small), draw(small)), dilation=(dh, dw),
        padding=(pads[0], pads[1], pads[2] + need_h, pads[3] + need_w), groups=groups,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(workloads(), st.sampled_from(LAYOUTS))
def test_equals_seven_loops_on_any_small_workload(w, layout):
    data, weight, bias = random_inputs(w, 3, layout, "integer")
    out = conv2d_reference(w, data, weight, bias, layout)
    expected = seven_loops(w, nchw(data, layout), weight, bias)
    np.testing.assert_array_equal(nchw(out, layout), expected)


def test_accumulates_in_float64():
    w = make(2, 1, 1)
    data = np.array([2.0**30, 1.0], np.float32).reshape(1, 2, 1, 1)
    out = conv2d_reference(w, data, np.ones((1, 2, 1, 1), np.float32))
    assert out.item() == 2.0**30 + 1


def test_leaves_its_inputs_alone_and_takes_any_strides():
    w = WORKLOADS["3x3"]
    data, weight, bias = random_inputs(w, 4)
    expected = conv2d_reference(w, data, weight, bias)
    copies = data.copy(), weight.copy(), bias.copy()
    backwards = data[:, :, ::-1].copy()[:, :, ::-1]
    out = conv2d_reference(w, backwards, np.asfortranarray(weight), bias.astype(np.float64))
    np.testing.assert_array_equal(out, expected)
    for array, copy in zip((data, weight, bias), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_never_holds_the_column_matrix():
    w = make(16, 16, 32, kh=5, padding=2, n=4)
    data, weight, bias = random_inputs(w, 5)
    columns = 8 * w.ic * w.kh * w.kw * w.oh * w.ow  # bytes, one image
    tracemalloc.start()
    conv2d_reference(w, data, weight, bias)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < columns / 2


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("data", [(1, 5, 7, 3), (4, 3, 3, 3), (4,)]),
        ("weight", [(1, 3, 5, 7), (3, 4, 3, 3), (4,)]),
        ("bias", [(1, 3, 5, 7), (4, 3, 3, 3), (1,)]),
    ],
)
def test_wrong_shapes_are_refused(name, shapes):
    with pytest.raises(ValueError, match=f"{name} has shape .*: expected"):
        conv2d_reference(WORKLOADS["3x3"], *(np.zeros(shape) for shape in shapes))


def test_unknown_layout_and_kind_are_refused():
    w = WORKLOADS["3x3"]
    data, weight, _ = random_inputs(w, 0)
    with pytest.raises(ValueError, match="layout is 'CHWN': expected one of NCHW, NHWC"):
        conv2d_reference(w, data, weight, layout="CHWN")
    with pytest.raises(ValueError, match="layout is 'CHWN'"):
        random_inputs(w, 0, "CHWN")
    with pytest.raises(ValueError, match="kind is 'uniform': expected 'normal' or 'integer'"):
        random_inputs(w, 0, kind="uniform")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["normal", "integer"])
@any_layout
def test_random_inputs_are_float32_aligned_and_reproducible(layout, kind):
    w = WORKLOADS["groups"]
    arrays = random_inputs(w, 6, layout, kind)
    assert [a.shape for a in arrays] == [w.data_shape(layout), w.weight_shape, (w.oc,)]
    for array, again, other in zip(
        arrays, random_inputs(w, 6, layout, kind), random_inputs(w, 7, layout, kind), strict=True
    ):
        assert array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable
        assert array.ctypes.data % ALIGNMENT == 0
        np.testing.assert_array_equal(array, again)
        assert not np.array_equal(array, other)
    np.testing.assert_array_equal(nchw(arrays[0], layout), random_inputs(w, 6, kind=kind)[0])


def test_normal_inputs_give_outputs_of_unit_size():
    w = make(64, 64, 12, kh=3)
    out = conv2d_reference(w, *random_inputs(w, 8))
    assert out.std() == pytest.approx(math.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    "w",
    [make(1, 1, 1), make(64, 8, 8, kh=3), make(512, 4, 7, kh=7), make(2**20, 1, 1)],
    ids=["1 term", "576 terms", "25088 terms", "2**20 terms"],
)
def test_integer_sums_are_exact_in_float32(w):
    data, weight, bias = random_inputs(w, 9, kind="integer")
    largest = max(int(np.abs(array).max()) for array in (data, weight, bias))
    terms = w.ic * w.kh * w.kw
    assert terms * largest**2 + largest < 2**24
    for array in (data, weight):
        np.testing.assert_array_equal(array, np.rint(array))
        assert np.count_nonzero(array) >= array.size // 2
    out = conv2d_reference(w, data, weight, bias)
    single = np.sum(data[0, :, : w.kh, : w.kw] * weight[0], dtype=np.float32) + bias[0]
    assert single == out[0, 0, 0, 0]


def test_too_many_terms_for_exact_sums_are_refused():
    with pytest.raises(ValueError, match="too many for exact float32 sums"):
        random_inputs(make(2**24, 1, 1), 0, kind="integer")


def test_relative_error():
    reference = np.array([1.0, -4.0, 2.0])
    assert relative_error(reference.copy(), reference) == 0.0
    assert relative_error(np.array([1.5, -4.0, 2.0], np.float32), reference) == 0.125
    assert relative_error(np.array([1.0, 4.0, 2.0]), reference) == 2.0
    assert relative_error(np.array([1, -4, 3]), np.array([1, -4, 2])) == 0.25


def test_relative_error_of_a_zero_reference_is_absolute():
    assert relative_error(np.array([0.0, -0.5]), np.zeros(2)) == 0.5
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reference", [np.ones(3), np.zeros(3)])
def test_relative_error_of_what_is_not_finite_is_infinite(bad, reference):
    assert relative_error(np.array([1.0, bad, 1.0], np.float32), reference) == math.inf


RIGHT = np.array([math.nan, math.inf, -math.inf, 1e39, 4.0, 2.0])


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ([math.nan, math.inf, -math.inf, math.inf, 4.0, 2.0], 0.0),
        ([math.nan, math.inf, -math.inf, math.inf, 5.0, 2.0], 0.25),
        ([0.0, math.inf, -math.inf, math.inf, 4.0, 2.0], math.inf),
        ([math.nan, math.nan, -math.inf, math.inf, 4.0, 2.0], math.inf),
        ([math.nan, -math.inf, -math.inf, math.inf, 4.0, 2.0], math.inf),
        ([math.nan, math.inf, 3e38, math.inf, 4.0, 2.0], math.inf),
        ([math.nan, math.inf, -math.inf, 3e38, 4.0, 2.0], math.inf),
        ([math.nan, math.inf, -math.inf, math.inf, math.nan, 2.0], math.inf),
        ([math.nan, math.inf, -math.inf, math.inf, math.inf, 2.0], math.inf),
    ],
)
@pytest.mark.filterwarnings("error")
def test_relative_error_where_the_right_answer_is_not_finite(out, error):
    """The same is right there, infinity for what float32 cannot hold; the rest is compared."""
    assert relative_error(np.array(out, np.float32), RIGHT) == error
    nothing = np.full(3, math.nan)
    assert relative_error(nothing.astype(np.float32), nothing) == 0.0


@pytest.mark.filterwarnings("error")
def test_reference_of_what_is_not_finite():
    w = make(2, 4, 3)
    data, weight, bias = random_inputs(w, 0)
    data[0, 0, 0, 0], data[0, 1, 2, 2] = math.nan, math.inf
    reference = conv2d_reference(w, data, weight, bias)
    assert np.isnan(reference).any() and np.isfinite(reference).any()
    assert relative_error(reference.astype(np.float32), reference) < 1e-6


def test_relative_error_compares_equal_shapes_only():
    with pytest.raises(ValueError, match=r"out has shape \(1,\): expected \(3,\)"):
        relative_error(np.ones(1), np.ones(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "int8"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 3, 5, 7)])
def test_aligned_empty(shape, dtype):
    arrays = [aligned_empty(shape, dtype) for _ in range(8)]
    for array in arrays:
        assert array.shape == shape and array.dtype == np.dtype(dtype)
        assert array.flags.c_contiguous and array.flags.writeable
        # NumPy has no address of its own for an array without elements.
        assert array.size == 0 or array.ctypes.data % ALIGNMENT == 0
