"""bfloat16 where NumPy does not know it: in files, in DLPack, in arrays and tensors of callers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from convtvm.dispatch import runtime, tensors
from convtvm.dispatch.tensors import Port
from convtvm.errors import ArrayError, EnvironmentProblem
from convtvm.problem import dtypes
from convtvm.problem.dtypes import BFLOAT16, numpy_dtype
from convtvm.problem.reference import aligned_empty

NUMBERS = np.array([[0.0, -1.5, 3.0], [2.0**100, np.inf, 2.0**-100]], np.float32)


@pytest.fixture(autouse=True)
def libraries() -> None:
    """What a library that is loaded has loaded."""
    runtime.start()


def numbers() -> np.ndarray:
    array = aligned_empty(NUMBERS.shape, BFLOAT16)
    array[...] = NUMBERS
    return array


def seen(tensor: object, port: Port) -> np.ndarray:
    """What a kernel would read."""
    return tensors.over(tensor, port).astype(np.float32)


PORT = ("x", NUMBERS.shape, BFLOAT16)


@pytest.mark.parametrize("dtype", dtypes.BYTES)
def test_sizes_and_rounding(dtype: str) -> None:
    made = numpy_dtype(dtype)
    assert made.itemsize == dtypes.BYTES[dtype] and dtypes.is_float(made)
    just_above = np.array([1 + 1.01 * dtypes.ROUNDING[dtype]]).astype(made).astype(np.float64)
    just_below = np.array([1 + 0.99 * dtypes.ROUNDING[dtype]]).astype(made).astype(np.float64)
    assert just_above > 1 == just_below


def test_what_is_no_float() -> None:
    assert not any(map(dtypes.is_float, map(np.dtype, ("int16", "uint16", "bool", "V2", "c8"))))


def test_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert numpy_dtype("float16") == np.float16
    with pytest.raises(EnvironmentProblem, match="ml_dtypes, which is not installed: `pip install"):
        numpy_dtype(BFLOAT16)
    with pytest.raises(EnvironmentProblem):
        Port(*PORT)


@pytest.mark.parametrize("dtype", [*dtypes.BYTES, "float64"])
def test_files_keep_the_type(dtype: str, tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3).astype(numpy_dtype(dtype))
    np.save(tmp_path / "x.npy", array)
    loaded = dtypes.load(tmp_path / "x.npy")
    assert loaded.dtype == array.dtype and np.array_equal(loaded, array)
    np.savez(tmp_path / "x.npz", x=dtypes.storable(array))
    with np.load(tmp_path / "x.npz") as found:
        assert np.array_equal(found["x"].astype(np.float64), array.astype(np.float64))


def test_an_array_goes_in_as_it_is() -> None:
    port, array = Port(*PORT), numbers()
    for tensor in (port.read(array), port.write(array)):
        assert str(tensor.dtype) == BFLOAT16 and tuple(tensor.shape) == array.shape
        assert tensor.data_ptr() == array.ctypes.data
        assert np.array_equal(seen(tensor, port), NUMBERS)
    made = port.empty_like(array)
    assert made.dtype == array.dtype and made.shape == array.shape


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_other_floats_are_rounded(dtype: str) -> None:
    port = Port(*PORT)
    with np.errstate(over="ignore"):
        given = NUMBERS.astype(dtype)
    found = seen(port.read(given), port)
    assert np.array_equal(found, given.astype(numpy_dtype(BFLOAT16)).astype(np.float32))
    with pytest.raises(ArrayError, match=f"x has dtype {dtype}, expected a writable, C-contiguous"):
        port.write(given)


def test_arrays_in_any_order_are_read_and_not_written() -> None:
    port, array = Port(*PORT), np.asfortranarray(numbers())
    assert np.array_equal(seen(port.read(array), port), NUMBERS)
    with pytest.raises(ArrayError, match="x has strides"):
        port.write(array)
    fixed = numbers()
    fixed.flags.writeable = False
    assert np.array_equal(seen(port.read(fixed), port), NUMBERS)


@pytest.mark.parametrize("dtype", ["int32", "uint16", "bool"])
def test_what_is_no_number_with_a_fraction_is_refused(dtype: str) -> None:
    with pytest.raises(ArrayError, match=f"x has dtype {dtype}, expected bfloat16"):
        Port(*PORT).read(np.zeros(NUMBERS.shape, dtype))


def test_bfloat16_for_other_ports_is_widened() -> None:
    port = Port("x", NUMBERS.shape, "float32")
    assert np.array_equal(seen(port.read(numbers()), port), NUMBERS)


def test_tensors_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    port, tensor = Port(*PORT), torch.from_numpy(NUMBERS).bfloat16()
    for made in (port.read(tensor), port.write(tensor)):
        assert made.data_ptr() == tensor.data_ptr()
        assert np.array_equal(seen(made, port), NUMBERS)
    across = tensor.t().contiguous().t()
    parameter = torch.nn.Parameter(tensor)
    for given in (across, parameter, tensor.clone()):
        assert np.array_equal(seen(port.read(given), port), NUMBERS)
        weight = tensors.as_array(given, NUMBERS.shape, "weight", BFLOAT16)
        assert weight.dtype.name == BFLOAT16 and np.array_equal(weight.astype("f4"), NUMBERS)
    wide = tensors.as_array(tensor, NUMBERS.shape, "weight", "float32")
    assert wide.dtype == np.float32 and np.array_equal(wide, NUMBERS)
    assert port.empty_like(tensor).dtype is torch.bfloat16
    for wrong in (torch.float16, torch.float32):
        with pytest.raises(ArrayError, match="expected bfloat16"):
            port.read(tensor.to(wrong))
    with pytest.raises(ArrayError, match="x is not contiguous"):
        port.write(across)


def test_watched_weights_of_pytorch() -> None:
    """A change behind PyTorch's count is seen in numbers that NumPy cannot show."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from convtvm.torch.operator import Watched

    for size in (12, 1 << 14):
        weight = torch.ones(size, dtype=torch.bfloat16)
        watched = Watched([weight], None)
        assert watched.are([weight])
        weight.data[0] = 2
        assert not watched.are([weight])
