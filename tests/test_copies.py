"""Copies of libraries, plans and models share what was loaded; libraries travel by pickle."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import LONG, ROOT, without_torch

from convtvm.dispatch import KernelLibrary, SlicedPlan
from convtvm.dispatch.runtime import Image
from convtvm.library.build import compile
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

W = ConvWorkload.parse("mb1ic4ih5oc4oh5kh3ph1")
DATA, WEIGHT, BIAS = random_inputs(W, 0, "NCHW", "integer")
EXPECTED = conv2d_reference(W, DATA, WEIGHT, BIAS, "NCHW")


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return compile(W, threads=1, logs=[], algorithms=["direct"])


def plans(library: KernelLibrary) -> list[Any]:
    """Of one kernel, and of one that runs in slices."""
    made = [library.plan(W, WEIGHT, BIAS), library.plan(replace(W, n=2), WEIGHT, BIAS)]
    assert isinstance(made[1], SlicedPlan)
    return made


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_compute_the_same(library: KernelLibrary, copied: Any) -> None:
    for n, plan in enumerate(plans(library), start=1):
        again = copied({"model": [plan, library]})["model"][0]
        assert np.array_equal(again(np.repeat(DATA, n, 0)), np.repeat(EXPECTED, n, 0))
    again = copied(library)
    assert np.array_equal(again.plan(W, WEIGHT, BIAS)(DATA), EXPECTED)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plans_do_not_travel(library: KernelLibrary, protocol: int) -> None:
    for made in (*plans(library), library._image):
        with pytest.raises(TypeError) as error:
            pickle.dumps([made], protocol)
        text = str(error.value)
        assert f"cannot pickle a {type(made).__name__}: it holds machine code" in text
        assert "there" in text and "\n" not in text
    gc.collect()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_libraries_travel(library: KernelLibrary, protocol: int) -> None:
    for opened in (False, True):
        if opened:
            library.open()
        again = pickle.loads(pickle.dumps(library, protocol))
        assert again.manifests == library.manifests and again.threads == 1
        assert np.array_equal(again.plan(W, WEIGHT, BIAS)(DATA), EXPECTED)


ELSEWHERE = """
import pickle, sys
import numpy as np
with open(sys.argv[1], "rb") as file:
    library, data, weight, bias, expected = pickle.load(file)
assert np.array_equal(library.plan(library.workloads[0], weight, bias)(data), expected)
assert "tvm" not in sys.modules
"""


def test_libraries_travel_to_another_process(library: KernelLibrary, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pickle.dumps((library, DATA, WEIGHT, BIAS, EXPECTED)))
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "x")]
    subprocess.run(command, check=True, timeout=LONG, env=without_torch(ROOT))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_said_of_what_was_never_loaded() -> None:
    Image.__new__(Image)
    gc.collect()
