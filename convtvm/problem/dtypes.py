"""The types that convolutions are computed in, and bfloat16 where NumPy does not know it.

NumPy gets bfloat16 from the package ml_dtypes, which is imported only where somebody asks for it.
Its own files and DLPack leave the type out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtvm.errors import EnvironmentProblem

if TYPE_CHECKING:  # `convtvm --help` knows the names, and does without NumPy
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

# Name -> bytes of an element.
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
BFLOAT16 = "bfloat16"
# How far the nearest number of the type can be off, relative to the number itself.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, BFLOAT16: 2.0**-8}
# Tensor cores multiply them; they are for GPUs.
HALVES = ("float16", BFLOAT16)


def numpy_dtype(dtype: npt.DTypeLike) -> np.dtype:
    """NumPy's dtype of a name. Raises EnvironmentProblem where bfloat16 needs ml_dtypes."""
    import numpy as np

    if not isinstance(dtype, str) or dtype != BFLOAT16:
        return np.dtype(dtype)
    try:
        import ml_dtypes
    except ImportError:
        raise EnvironmentProblem(
            "NumPy has bfloat16 from the package ml_dtypes, which is not installed: "
            "`pip install ml_dtypes`"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


def is_float(dtype: np.dtype) -> bool:
    """Whether it is a floating-point type; NumPy calls bfloat16 a type without a kind."""
    return dtype.kind == "f" or dtype.name == BFLOAT16


def load(path: str | Path) -> Array:
    """The array of a .npy file."""
    import numpy as np

    return restored(np.load(path))


def restored(array: Array) -> Array:
    """An array from a file of NumPy, where bfloat16 is two bytes without a meaning."""
    return array.view(numpy_dtype(BFLOAT16)) if array.dtype.str == "|V2" else array


def storable(array: Array) -> Array:
    """An array as a file of NumPy can describe it: bfloat16 as float32, which loses nothing."""
    return array.astype("float32") if array.dtype.name == BFLOAT16 else array
