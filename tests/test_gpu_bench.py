"""`convtvm bench` on a GPU: PyTorch's contestants on the CPU, the table on the emulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from emulator import environment, python

from convtvm.cli import main
from convtvm.compare import cudnn, peers
from convtvm.compare.bench import BenchRow, Measured
from convtvm.errors import EnvironmentProblem
from convtvm.machine import gpu
from convtvm.problem.dtypes import BYTES, ROUNDING
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.sources import read_source
from convtvm.problem.workload import ConvWorkload

make = ConvWorkload.make
NAMES = ("torch", "torch-nhwc", "torch-tf32", "torch-nhwc-tf32")

# What is padded: workload -> whether symmetric padding has the same output.
PADDINGS = {
    "none": (make(3, 4, 7, kh=3), True),
    "symmetric": (make(3, 4, 7, kh=3, padding=1), True),
    "last row and column never read": (ConvWorkload.parse("mb2ic3ih8oc4oh4kh3sh2ph1"), True),
    "more below": (make(3, 4, 7, kh=3, padding=(0, 0, 1, 1)), False),
    "more above": (make(3, 4, 7, kh=3, padding=(1, 1, 0, 0)), False),
    "one axis": (make(3, 4, 7, 9, 3, 3, padding=(1, 0, 0, 0)), False),
    "TensorFlow's SAME": (make(3, 4, 8, kh=3, stride=2, padding=(0, 0, 1, 1)), False),
    "read in one axis, not in the other": (
        make(3, 4, 8, 7, 3, 3, stride=2, padding=(1, 1, 0, 0)),
        False,
    ),
    "dilation, groups": (make(4, 6, 11, kh=3, dilation=2, padding=2, groups=2), True),
    "dilation, stride": (make(4, 6, 12, kh=3, stride=2, dilation=2, padding=(2, 2, 1, 1)), True),
}


@pytest.mark.parametrize("case", PADDINGS)
@pytest.mark.parametrize("dtype", BYTES)
def test_contestants_compute_the_convolution(case: str, dtype: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    w, symmetric = PADDINGS[case]
    w = replace(w, dtype=dtype)
    assert (peers.padding(w)[1] is None) == symmetric
    arrays = random_inputs(w, 1)
    right = conv2d_reference(w, *arrays)
    answer = cudnn.Answer(w, *arrays, device="cpu")
    unbiased = conv2d_reference(w, *arrays[:2])
    assert answer.error(right) < 1e-12 and answer.error(unbiased, with_bias=False) < 1e-12
    assert answer.error(unbiased) > 1e-3 and answer.error(right * np.nan) == np.inf
    runs = cudnn.contestants(w, *arrays, tf32=True, device="cpu")
    names = NAMES if dtype == "float32" else NAMES[:2]  # TF32 is a way to multiply float32
    assert set(runs) == {name + end for name in names for end in ("", cudnn.NO_BIAS)}
    for name, run in runs.items():
        wanted = unbiased if name.endswith(cudnn.NO_BIAS) else right
        found = run().to(answer.right.dtype).numpy()
        assert relative_error(found, wanted) < (1e-5 if dtype == "float32" else 4 * ROUNDING[dtype])


@pytest.mark.parametrize("network", ["resnet50", "resnet18", "vgg16", "mobilenet_v2"])
def test_every_layer_of_the_networks_has_symmetric_padding(network: str) -> None:
    assert [str(w) for w in read_source(network) if peers.padding(w)[1]] == []


def emulated_bench(*arguments: str) -> tuple[str, list[dict]]:
    """The tables and the documents, one for each limit on errors, with one library."""
    done = subprocess.run(
        [sys.executable, "-m", "emulator.benching", *arguments],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *table, last = done.stdout.splitlines()
    return "\n".join(table), json.loads(last)


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("layout", "dtype", "limits"),
    [("NHWC", "float16", []), ("NCHW", "float32", ["1e-2", "1e-5"])],
)
def test_all_contestants_on_one_stopwatch(layout: str, dtype: str, limits: list[str]) -> None:
    """But for those that err more than a limit allows, as TF32 does the second."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    table, (found, *strict) = emulated_bench(layout, dtype, *limits)
    names = set(NAMES if limits else NAMES[:2])
    ours = {"direct", "direct:tf32"} if limits else {"direct"}
    assert [layer["name"] for layer in found["layers"]] == ["strided", "plain"]
    for layer in found["layers"]:
        assert not layer["absent"]
        assert set(layer["peers"]) == set(layer["without_bias"]) == names
        assert set(layer["algorithms"]) == ours
        assert layer["chosen"] == "direct"  # nobody has measured TF32's error yet
        for figure in (*layer["peers"].values(), *layer["algorithms"].values()):
            assert figure["seconds"] > 0 and figure["warm"] > 0 and figure["max_error"] < 1e-2
        best = min(peer["seconds"] for peer in layer["peers"].values())
        assert layer["speedup"] == best / layer["algorithms"]["direct"]["seconds"]
    speeds = [layer["speedup"] for layer in found["layers"]]
    assert found["geomean"] == pytest.approx(np.sqrt(np.prod(speeds)))
    assert (found["worst"], found["best"]) == (min(speeds), max(speeds))
    assert all(text in table for text in ("strided", "plain", "torch without bias", "geomean"))
    assert len(strict) == max(0, len(limits) - 1)
    for layer in (layer for document in strict for layer in document["layers"]):
        assert "direct:tf32" not in layer["algorithms"] and layer["chosen"] == "direct"


COMMAND = "import sys; from convtvm.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.emulated
def test_the_command_without_peers(servers: Callable[[], str]) -> None:
    options = ["--target", "cuda", "--dtype", "float16", "--layout", "NHWC", "--repeat", "3"]
    said = python(servers, COMMAND, "bench", 'ic8ih3oc8oh3kh1n"point"', *options, "--json")
    found = json.loads(said)
    (layer,) = found["layers"]
    assert (found["target"], found["layout"]) == ("cuda -arch=sm_90", "NHWC")
    assert found["device"] == "emulated GPU"
    assert layer["chosen"] in layer["algorithms"] and layer["workload"].endswith("_f16")
    assert found["geomean"] is layer["speedup"] is None and layer["peers"] == {}
    assert all(0 < m["max_error"] < 1e-3 for m in layer["algorithms"].values())


def test_a_row_without_a_choice_has_no_speedup() -> None:
    row = BenchRow(make(3, 4, 7, kh=3), "", {}, {"torch": Measured(1.0, 0.0)})
    assert row.speedup is None


@pytest.mark.skipif(bool(gpu.devices()), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--peers", "torch"], "no NVIDIA GPU here, or no driver for it"),
        (["--peers", "onnxruntime"], "peer 'onnxruntime' runs on CPUs; on a GPU expected torch"),
        ([], "no NVIDIA GPU here, or no driver for it"),
    ],
)
def test_what_is_missing_is_one_clear_error(
    options: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if "onnxruntime" in options:
        pytest.importorskip("onnxruntime")
    assert main(["bench", "mb1ic8ih6oc8oh6kh3ph1", "--target", "cuda:sm_90", *options]) == 2
    out, err = capfd.readouterr()
    assert not out and said in err and len(err.strip().splitlines()) == 1


def test_max_error_is_for_gpus(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "mb1ic8ih6oc8oh6kh3ph1", "--max-error", "1e-3"]) == 2
    assert "--max-error is not for CPUs" in capfd.readouterr().err


def test_pytorch_without_cuda_is_one_clear_error() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if torch.cuda.is_available():
        pytest.skip("PyTorch has a GPU here")
    with pytest.raises(EnvironmentProblem, match="needs a PyTorch with CUDA; PyTorch"):
        cudnn.require()
