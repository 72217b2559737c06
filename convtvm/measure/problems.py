"""The arrays that candidates are checked and timed on, with the right answer in float64.

The answer is computed once for a workload, every element of it, and every element of every
candidate's output is compared with it: a sample could miss a tail that one tile in many gets wrong.
What it costs, a second or so of a core, is spent where candidates are built, beside them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from convtvm.errors import EnvironmentProblem
from convtvm.measure.client import Zygote
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

Kind = Literal["normal", "integer"]


def problem_folder(
    workload: ConvWorkload, layout: str, place: Path, seed: int = 0, kind: Kind = "normal"
) -> Path:
    """Where `write_problem` puts the arrays."""
    return place / f"{workload.key}-{layout}-{seed}-{kind}"


def write_problem(
    workload: ConvWorkload, layout: str, zygote: Zygote, seed: int = 0, kind: Kind = "normal"
) -> Path:
    """A folder with the arrays that every kernel of `workload` is checked and timed on.

    data, weight, bias and the float64 reference, as .npy files, made once per zygote; `kind` is
    that of random_inputs.
    """
    folder = problem_folder(workload, layout, zygote.folder, seed, kind)
    if not folder.exists():
        make_problem(workload, layout, folder, seed, kind)
    return folder


def make_problem(
    workload: ConvWorkload, layout: str, folder: Path, seed: int = 0, kind: Kind = "normal"
) -> None:
    """Fill a folder, which is there once it is complete. Raises EnvironmentProblem."""
    data, weight, bias = random_inputs(workload, seed, layout, kind)
    reference = conv2d_reference(workload, data, weight, bias, layout)
    arrays = {"data": data, "weight": weight, "bias": bias, "reference": reference}
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        part.mkdir()
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if folder.exists():  # another process was faster
            return
        reason = error.strerror or str(error)  # NumPy's says only how much was written
        raise EnvironmentProblem(
            f"cannot write the arrays of {workload} to {folder.parent}: {reason}; set TMPDIR to a "
            "folder with more room"
        ) from None


def problem_bytes(workloads: Iterable[ConvWorkload]) -> int:
    """Bytes of the folders that `write_problem` makes of these; the reference is float64."""
    return sum(
        w.data_bytes + w.weight_bytes + w.out_bytes * 8 // w.element_bytes for w in workloads
    )
