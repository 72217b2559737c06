"""Overlap of what a call reads and writes is refused or harmless; `out` is what may be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Array

from convtvm.dispatch import KernelLibrary, Plan, SlicedPlan
from convtvm.dispatch.tensors import objection_to_writing
from convtvm.errors import ArrayError
from convtvm.library.build import compile
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

ONE = ConvWorkload.parse("mb1ic4ih5oc4oh5kh3ph1")
THREE = replace(ONE, n=3)
IMAGE = 4 * 5 * 5  # elements, of data and output
ROOM = 8 * IMAGE
DATA, WEIGHT, BIAS = random_inputs(ONE, 0, "NCHW", "integer")
EXPECTED = conv2d_reference(ONE, DATA, WEIGHT, BIAS, "NCHW")


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    """One kernel, with the epilogue of bounds only: a residual is added after it."""
    return compile([ONE], threads=1, logs=[], algorithms=["direct"], epilogues=["clip"])


@pytest.fixture(scope="module")
def plans(library: KernelLibrary) -> Mapping[tuple[str, int], Plan | SlicedPlan]:
    """By how it ends and its batch size, of which three runs in slices."""
    fused = compile([ONE], threads=1, logs=[], algorithms=["direct"], epilogues=["add"])
    endings: dict[str, tuple[KernelLibrary, dict[str, Any]]] = {
        "plain": (library, {}),
        "clip": (library, {"activation": (-9.0, 9.0)}),
        "residual after": (library, {"residual": True}),
        "residual inside": (fused, {"residual": True}),
    }
    return {
        (name, w.n): made.plan(w, WEIGHT, BIAS, **options)
        for name, (made, options) in endings.items()
        for w in (ONE, THREE)
    }


# ---- overlap -------------------------------------------------------------------------------------

# How a tensor lies in memory: elements from one to the next, negative for backwards.
steps = st.sampled_from([1, 1, 1, -1, 2, -3])
# Somewhere, or whole images apart, which slices of a batch could mistake for apart.
places = st.integers(0, ROOM // 2) | st.integers(0, 5).map(lambda images: images * IMAGE)


def lay(memory: Array, place: int, step: int, shape: tuple[int, ...]) -> Array:
    """A view of `memory` whose elements are `step` apart."""
    size = int(np.prod(shape))
    span = memory[place : place + (size - 1) * abs(step) + 1]
    flat = span[:: abs(step)][:: 1 if step > 0 else -1]
    view = np.lib.stride_tricks.as_strided(flat, shape, [4 * step * s for s in strides(shape)])
    assert view.size == size
    return view


def strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]


def overlaps(a: int, b: int, size: int) -> bool:
    return abs(a - b) < size


@pytest.mark.parametrize("n", [1, 3], ids=["one kernel", "slices"])
@pytest.mark.parametrize("ending", ["plain", "clip", "residual after", "residual inside"])
@settings(max_examples=150, deadline=None)
@given(where=st.tuples(places, places, places), data_step=steps, residual_step=steps)
def test_as_if_everything_was_copied_first(
    plans: Mapping[tuple[str, int], Plan | SlicedPlan],
    ending: str,
    n: int,
    where: tuple[int, int, int],
    data_step: int,
    residual_step: int,
) -> None:
    """Refused exactly where `out` lies over something that is read in place, and then nothing is
    written; else right, and nothing but `out` is written."""
    plan, shape, size = plans[ending, n], (n, *ONE.data_shape()[1:]), n * IMAGE
    memory = np.random.default_rng(1).integers(-4, 5, 3 * ROOM).astype(np.float32)
    before = memory.copy()
    data = lay(memory, where[0], data_step, shape)
    out = lay(memory, where[1], 1, shape)
    options: dict[str, Any] = {}
    if "residual" in ending:
        options["residual"] = lay(memory, where[2], residual_step, shape)
    clashes = data_step == 1 and overlaps(where[0], where[1], size)
    clashes |= bool(options) and residual_step == 1 and overlaps(where[2], where[1], size)
    if clashes:
        with pytest.raises(ArrayError, match=r"out overlaps (data|residual), expected memory of"):
            plan(data, out=out, **options)
        assert np.array_equal(memory, before)
        return
    w = replace(ONE, n=n)
    expected = conv2d_reference(w, data, WEIGHT, BIAS, "NCHW")
    expected = expected + options.get("residual", 0.0)
    if ending == "clip":
        expected = expected.clip(-9, 9)
    assert plan(data, out=out, **options) is out and np.array_equal(out, expected)
    lay(before, where[1], 1, shape)[...] = expected
    assert np.array_equal(memory, before)


def test_a_residual_that_is_the_output_is_refused(
    plans: Mapping[tuple[str, int], Plan | SlicedPlan],
) -> None:
    """The kernel is free to write an element before it has read all of the residual."""
    for (ending, n), plan in plans.items():
        if "residual" in ending:
            out = np.ones((n, *EXPECTED.shape[1:]), np.float32)
            data = np.zeros_like(out)
            with pytest.raises(ArrayError, match="out overlaps residual"):
                plan(data, out=out, residual=out)
            assert np.all(out == 1)


def test_one_image_apart(plans: Mapping[tuple[str, int], Plan | SlicedPlan]) -> None:
    """Each slice lies apart from the residual of its own images only."""
    memory = np.ones((4, *EXPECTED.shape[1:]), np.float32)
    data = np.ones_like(memory[:3])
    for ending in ("residual after", "residual inside"):
        with pytest.raises(ArrayError, match="out overlaps residual"):
            plans[ending, 3](data, out=memory[1:], residual=memory[:3])


def test_weight_and_bias_may_be_overwritten(library: KernelLibrary) -> None:
    """A plan holds copies."""
    memory = np.zeros(2 * IMAGE + WEIGHT.size, np.float32)
    weight = memory[: WEIGHT.size].reshape(WEIGHT.shape)
    bias = memory[WEIGHT.size : WEIGHT.size + 4]
    weight[...], bias[...] = WEIGHT, BIAS
    plan = library.plan(ONE, weight, bias)
    out = memory[WEIGHT.size - 50 :][:IMAGE].reshape(EXPECTED.shape)
    for _ in range(2):
        assert np.array_equal(plan(DATA, out=out), EXPECTED)


# ---- what may be written -------------------------------------------------------------------------


class Plain(np.ndarray):
    """A subclass that adds nothing."""


def empty() -> Array:
    return np.full(EXPECTED.shape, np.nan, np.float32)


@pytest.mark.parametrize("mode", ["r+", "w+", "c"])
def test_memory_maps(plans: Any, tmp_path: Path, mode: Any) -> None:
    file = tmp_path / "out"
    file.write_bytes(bytes(4 * IMAGE))
    out = np.memmap(file, np.float32, mode, shape=EXPECTED.shape)
    assert plans["plain", 1](DATA, out=out) is out and np.array_equal(out, EXPECTED)
    out.flush()
    kept = np.fromfile(file, np.float32).reshape(EXPECTED.shape)
    assert np.array_equal(kept, 0 * EXPECTED if mode == "c" else EXPECTED)
    with pytest.raises(ArrayError, match="out is read-only, expected a writable"):
        plans["plain", 1](DATA, out=np.memmap(file, np.float32, "r", shape=EXPECTED.shape))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", [Plain, np.recarray, np.memmap])
def test_subclasses(plans: Any, n: int, kind: Any) -> None:
    data, expected = np.repeat(DATA, n, 0), np.repeat(EXPECTED, n, 0)
    out = np.empty(expected.shape, np.float32).view(kind)
    assert plans["plain", n](data.view(kind), out=out) is out
    assert type(out) is kind and np.array_equal(np.asarray(out), expected)
    added = plans["residual after", n](data, residual=expected.astype(np.float32).view(kind))
    assert type(added) is np.ndarray and np.array_equal(added, 2 * expected)


def at(array: Array, offset: int) -> Array:
    """A copy that starts `offset` bytes after a multiple of 64."""
    raw = np.empty(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


class Interface:
    """An array by numpy's protocol only."""

    def __init__(self, array: Array) -> None:
        self.array, self.__array_interface__ = array, array.__array_interface__


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "read-only": (lambda: read_only(empty()), "is read-only"),
    "unaligned": (lambda: at(empty(), 1), r"starts within an element \(unaligned\)"),
    "strided": (lambda: np.repeat(empty(), 2, -1)[..., ::2], r"has strides \(.*\), expected a"),
    "backwards": (lambda: empty()[:, ::-1], "has strides"),
    "broadcast": (lambda: np.broadcast_to(np.float32(0), EXPECTED.shape), "has strides"),
    "float64": (lambda: empty().astype(np.float64), "has dtype float64, expected a writable"),
    "big-endian": (lambda: empty().astype(">f4"), "has dtype >f4"),
    "matrix": (lambda: np.matrix(empty()[0, 0]), r"has shape \(5, 5\), expected \(1, 4"),
    "masked": (lambda: np.ma.masked_array(empty(), False), "is a masked array.*pass .data"),
    "interface": (lambda: Interface(empty()), "is a Interface, expected.*; pass np.asarray of it"),
    "scalar": (lambda: np.float32(1), "is a float32, expected an array"),
    "bytes": (lambda: bytes(4 * IMAGE), "is a bytes, expected an array"),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_written_is_named(plans: Any, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArrayError, match=f"^out {message}") as caught:
        plans["plain", 1](DATA, out=make())
    assert "\n" not in str(caught.value)


def test_masked_arrays_are_not_read(library: KernelLibrary, plans: Any) -> None:
    masked = np.ma.masked_array(DATA, DATA > 0)
    with pytest.raises(ArrayError, match="data is a masked array"):
        plans["plain", 1](masked)
    with pytest.raises(ArrayError, match="residual is a masked array"):
        plans["residual inside", 1](DATA, residual=np.ma.masked_array(EXPECTED, False))
    with pytest.raises(ArrayError, match="weight is a masked array"):
        library.plan(ONE, np.ma.masked_array(WEIGHT, False))
    assert np.array_equal(plans["plain", 1](masked.data), EXPECTED)


# ---- other libraries -----------------------------------------------------------------------------


class Foreign:
    """A tensor of a library that only speaks DLPack, of before or since version 1.0."""

    def __init__(self, array: Array, legacy: bool = False) -> None:
        self.array, self.shape, self.legacy = array, array.shape, legacy

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**({} if self.legacy else options))

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Immutable(Foreign):
    """As JAX's arrays: exported without flags, and item assignment raises."""

    def __init__(self, array: Array) -> None:
        super().__init__(array, legacy=True)

    def __array_namespace__(self) -> Any:
        return Immutable

    @staticmethod
    def from_dlpack(array: Array) -> Immutable:
        return Immutable(array.copy())


def test_outputs_of_libraries_that_do_not_say(plans: Any) -> None:
    plan = plans["plain", 1]
    out = empty()
    for legacy in (Foreign(out, legacy=True), Immutable(out)):
        with pytest.raises(ArrayError, match=r"out is a .* does not say whether it may be written"):
            plan(DATA, out=legacy)
        assert np.isnan(out).all()
    told = Foreign(out)
    assert plan(DATA, out=told) is told and np.array_equal(out, EXPECTED)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="exports no flags")
def test_outputs_that_are_read_only_by_dlpack(plans: Any) -> None:
    out = read_only(empty())
    with pytest.raises(ArrayError, match="out is a Foreign that is read-only; pass a numpy array"):
        plans["plain", 1](DATA, out=Foreign(out))
    assert np.isnan(out).all()


@pytest.mark.parametrize("n", [1, 3])
def test_immutable_arrays_come_back_as_their_kind(plans: Any, n: int) -> None:
    data, expected = np.repeat(DATA, n, 0), np.repeat(EXPECTED, n, 0)
    out = plans["plain", n](Immutable(data))
    assert type(out) is Immutable and np.array_equal(out.array, expected)


def test_strided_exports(library: KernelLibrary, plans: Any) -> None:
    """Read by a copy; never written through."""
    strided = np.repeat(DATA, 2, -1)[..., ::2]
    assert np.array_equal(plans["plain", 1](Foreign(strided), out=empty()), EXPECTED)
    assert np.array_equal(plans["plain", 1](Foreign(at(DATA, 2)), out=empty()), EXPECTED)
    with pytest.raises(ArrayError, match="out is not contiguous"):
        plans["plain", 1](DATA, out=Foreign(np.repeat(empty(), 2, -1)[..., ::2]))
    tensor = tvm_ffi.from_dlpack(np.repeat(empty(), 2, -1)[..., ::2])
    with pytest.raises(ArrayError, match="out is not contiguous"):
        plans["plain", 1](DATA, out=tensor)


def test_who_may_be_written() -> None:
    torch = pytest.importorskip("torch")
    for made in (torch.zeros(2), torch.nn.Parameter(torch.zeros(2)), np.zeros(2)):
        assert objection_to_writing(made) == ""
    assert objection_to_writing(tvm_ffi.from_dlpack(np.zeros(2))) == ""


def test_jax(library: KernelLibrary, plans: Any) -> None:
    numpy = pytest.importorskip("jax.numpy")
    data, out = numpy.asarray(DATA), numpy.zeros(EXPECTED.shape, numpy.float32)
    result = plans["plain", 1](data)
    assert type(result) is type(data) and np.array_equal(np.asarray(result), EXPECTED)
    with pytest.raises(ArrayError, match="does not say whether it may be written"):
        plans["plain", 1](data, out=out)
    assert not np.asarray(out).any()


def test_negative_torch_tensors(library: KernelLibrary, plans: Any) -> None:
    """PyTorch negates some views by a bit that DLPack does not carry."""
    torch = pytest.importorskip("torch")
    plan, data = plans["plain", 1], torch.from_numpy(DATA.copy())
    expected = conv2d_reference(ONE, -DATA, WEIGHT, BIAS, "NCHW")
    negative = torch._neg_view(data)
    imaginary = torch.imag(torch.complex(torch.zeros_like(data), data).conj())
    for view in (negative, imaginary):
        assert view.is_neg() and np.array_equal(plan(view).numpy(), expected)
    flipped = library.plan(ONE, torch._neg_view(torch.from_numpy(WEIGHT.copy())))
    assert np.array_equal(flipped(DATA), BIAS.reshape(1, -1, 1, 1) - EXPECTED)
    with pytest.raises(ArrayError, match="out is a negative view"):
        plan(data, out=torch._neg_view(torch.zeros(EXPECTED.shape)))
