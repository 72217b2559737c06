"""Arrays by name in .npz files, read and written."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from convtvm.cli.output import write_whole
from convtvm.errors import ArrayError

if TYPE_CHECKING:
    from convtvm.problem.reference import Array


def load_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file; anything else in it is refused, never executed."""
    import numpy as np

    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ArrayError(f"cannot read {path}: one array without a name, expected an .npz")
        with file:
            arrays = {name: file[name] for name in file.files}
    except ArrayError:
        raise
    except OSError as error:
        raise ArrayError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, KeyError, NotImplementedError, MemoryError) as error:
        raise ArrayError(f"cannot read {path}: {error}") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ArrayError(f"cannot read {path}, it is damaged: {error}") from None
    other = [name for name, found in arrays.items() if not isinstance(found, np.ndarray)]
    if other:  # NumPy hands out other members of the archive as bytes
        raise ArrayError(f"cannot read {path}: {other[0]!r} in it is no array")
    return arrays


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write the file whole or not at all. Any name will do, as np.savez would not have it."""
    import numpy as np

    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    write_whole(path, buffer.getvalue())
