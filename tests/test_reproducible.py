"""The same input gives the same library, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import ROOT, without_torch

from convtvm.library.build import compile
from convtvm.problem.workload import ConvWorkload

TEXTS = ["mb1ic8ih6oc8kh3ph1", "mb1ic8ih5oc8kh1"]
ALGORITHMS = ["direct", "winograd:2"]
CODE = """
import sys
from convtvm.library.build import compile
from convtvm.problem.workload import ConvWorkload
out, algorithms, *texts = sys.argv[1:]
made = [ConvWorkload.parse(text) for text in texts]
compile(made, threads=1, logs=[], algorithms=algorithms.split(","), epilogues=["clip"]).export(out)
"""


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """In this process and in another with its own hash seed, from another folder."""
    other, here = tmp_path / "a.so", tmp_path / "b.so"
    command = [sys.executable, "-c", CODE, str(other), ",".join(ALGORITHMS), *TEXTS]
    env = {**without_torch(ROOT), "PYTHONHASHSEED": "7"}
    subprocess.run(command, check=True, cwd=tmp_path, env=env)
    made = [ConvWorkload.parse(text) for text in TEXTS]
    compile(made, threads=1, logs=[], algorithms=ALGORITHMS, epilogues=["clip"]).export(here)
    assert other.read_bytes() == here.read_bytes()
