"""The run time: choose within limits, take any array, run in any thread, refuse foreign files."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support import ROOT, Array, log_of, record_of, without_torch

from convtvm.dispatch import KernelLibrary, Plan, load, manifest
from convtvm.errors import (
    ArrayError,
    EnvironmentProblem,
    LibraryError,
    NoCandidate,
    UnknownWorkload,
)
from convtvm.kernels.task import Task
from convtvm.library.build import compile
from convtvm.machine import cpu
from convtvm.machine.targets import resolve
from convtvm.problem.reference import conv2d_reference, random_inputs, relative_error
from convtvm.problem.workload import ConvWorkload

W = ConvWorkload.parse('mb1ic16ih40oc16oh40kh3ph1n"first"')
POINTWISE = ConvWorkload.parse("mb1ic128ih5oc128oh5kh1")
ALGORITHMS = ("direct", "winograd:2", "winograd:4")
NATIVE = resolve("native", 1)

# algorithm -> seconds and error that the log claims
CLAIMS = {"direct": (3e-3, 1e-7), "winograd:2": (2e-3, 3e-7), "winograd:4": (1e-3, 1e-6)}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    """W by three algorithms with claimed times, POINTWISE untuned."""
    records = [record_of(Task(W, name, NATIVE), *CLAIMS[name]) for name in CLAIMS]
    log = log_of(tmp_path_factory.mktemp("log") / "x.jsonl", *records)
    return compile([W, POINTWISE], threads=1, logs=[log], keep="all", algorithms=ALGORITHMS)


@pytest.fixture(scope="module")
def path(library: KernelLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("library") / "x.so"
    library.export(file)
    return file


Problem = tuple[Array, Array, Array, Array]


def problem(w: ConvWorkload, layout: str = "NCHW") -> Problem:
    """data, weight, bias and the exact answer, in whole numbers."""
    data, weight, bias = random_inputs(w, 2, layout, "integer")
    return data, weight, bias, conv2d_reference(w, data, weight, bias, layout)


@pytest.fixture(scope="module")
def numbers() -> Problem:
    return problem(W)


@pytest.fixture(scope="module")
def plan(library: KernelLibrary, numbers: Problem) -> Plan:
    """Exact on whole numbers."""
    _, weight, bias, _ = numbers
    return library.plan(W, weight, bias, algorithm="direct")


# ---- choice --------------------------------------------------------------------------------------


def test_candidates(library: KernelLibrary) -> None:
    found = library.candidates(W)
    assert [(c.algorithm, c.run_secs, c.max_error, c.decisions) for c in found] == [
        ("winograd:4", 1e-3, 1e-6, "tuned"),
        ("winograd:2", 2e-3, 3e-7, "tuned"),
        ("direct", 3e-3, 1e-7, "tuned"),
        ("direct:inplace", None, None, "default"),
    ]
    assert str(found[0]).startswith("winograd:4 (1 ms, workspace ")
    unmeasured, other = library.candidates(POINTWISE)
    assert other.algorithm == "direct:pointwise"
    text = f"direct (never measured, workspace {unmeasured.workspace_bytes} B, error unknown)"
    assert str(unmeasured) == text


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({}, "winograd:4"),
        ({"algorithm": "direct"}, "direct"),
        ({"algorithm": "winograd"}, "winograd:4"),
        ({"algorithm": "winograd:2"}, "winograd:2"),
        ({"max_error": 1e-6}, "winograd:4"),
        ({"max_error": 9e-7}, "winograd:2"),
        ({"max_error": 1e-7}, "direct"),
        ({"algorithm": "winograd", "max_error": 3e-7}, "winograd:2"),
        ({"max_error": 9e-8}, None),
        ({"max_error": 0.0}, None),
        ({"algorithm": "winograd", "max_error": 1e-7}, None),
        ({"algorithm": "winograd:3"}, None),
        ({"algorithm": ""}, None),
        ({"workspace_limit": -1}, None),
    ],
)
def test_plan_within_limits(
    library: KernelLibrary, numbers: Problem, limits: dict[str, Any], chosen: str | None
) -> None:
    data, weight, bias, reference = numbers
    if chosen is None:
        with pytest.raises(NoCandidate):
            library.plan(W, weight, bias, **limits)
        return
    plan = library.plan(W, weight, bias, **limits)
    assert plan.algorithm == chosen and (plan.run_secs, plan.max_error) == CLAIMS[chosen]
    assert relative_error(plan(data), reference) < 1e-5


def test_workspace_limit(library: KernelLibrary, numbers: Problem) -> None:
    _, weight, _, _ = numbers
    sizes = {c.algorithm: c.workspace_bytes for c in library.candidates(W)}
    fastest_first = list(sizes)
    assert len(set(sizes.values())) == 4 and min(sizes.values()) == 0
    for limit in [*sizes.values(), *(size - 1 for size in sizes.values())]:
        fitting = [name for name in fastest_first if sizes[name] <= limit]
        if fitting:
            plan = library.plan(W, weight, workspace_limit=limit)
            assert (plan.algorithm, plan.workspace_bytes) == (fitting[0], sizes[fitting[0]])
        else:
            with pytest.raises(NoCandidate):
                library.plan(W, weight, workspace_limit=limit)


def test_no_candidate_lists_all(library: KernelLibrary, numbers: Problem) -> None:
    limits = {"algorithm": "direct", "workspace_limit": 1, "max_error": 1e-9}
    with pytest.raises(NoCandidate) as caught:
        library.plan(W, numbers[1], **limits)  # type: ignore[arg-type]
    offers = "; ".join(map(str, library.candidates(W)))
    asked = "algorithm direct, workspace limit 1, max error 1e-09"
    assert str(caught.value) == f"no kernel of {W} meets {asked}; there are: {offers}"


def test_unmeasured_error_is_no_promise(library: KernelLibrary) -> None:
    _, weight, _, _ = problem(POINTWISE)
    assert library.plan(POINTWISE, weight).max_error is None
    with pytest.raises(NoCandidate, match="error unknown"):
        library.plan(POINTWISE, weight, max_error=1.0)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("mb1ic16ih41oc16kh3ph1", W),
        ("mb8ic16ih40oc32kh3ph1", W),
        ("mb1ic64ih40oc16kh3ph1", W),
        ("mb1ic128ih6oc128kh1", POINTWISE),
        ("mb1ic64ih9oc64kh1", POINTWISE),
        ("mb1ic128ih5oc128kh1sh2", POINTWISE),
    ],
)
def test_unknown_workload_names_the_nearest(
    library: KernelLibrary, text: str, nearest: ConvWorkload
) -> None:
    asked = ConvWorkload.parse(text)
    for call in (library.candidates, lambda w: library.plan(w, None)):
        with pytest.raises(UnknownWorkload) as caught:
            call(asked)
        hint = f"no kernel for {asked}; the nearest it has is {nearest}"
        assert str(caught.value) == f"the library has {hint}"


def test_names_do_not_matter(library: KernelLibrary) -> None:
    other = ConvWorkload.parse(f'{W.key}n"another*5"')
    assert library.candidates(other) == library.candidates(W)
    assert library.workloads == [W, POINTWISE]
    assert [w.name for w in library.workloads] == ["first", ""]


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [W, POINTWISE], ids=["3x3", "pointwise"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_answers(library: KernelLibrary, w: ConvWorkload, with_bias: bool) -> None:
    data, weight, bias, reference = problem(w)
    if not with_bias:
        reference = reference - bias.reshape(1, -1, 1, 1)
    for c in library.candidates(w):
        plan = library.plan(w, weight, bias if with_bias else None, algorithm=c.algorithm)
        out = plan(data)
        assert type(out) is np.ndarray and (out.shape, out.dtype) == (w.out_shape(), np.float32)
        assert relative_error(out, reference) < (1e-4 if "winograd" in c.algorithm else 1e-9)


def test_nhwc() -> None:
    library = compile([W], threads=1, logs=[], layout="NHWC", algorithms=["direct", "winograd:2"])
    data, weight, bias, reference = problem(W, "NHWC")
    assert library.layout == "NHWC"
    for c in library.candidates(W):
        out = library.plan(W, weight, bias, algorithm=c.algorithm)(data)
        assert out.shape == W.out_shape("NHWC") and relative_error(out, reference) < 1e-5
    with pytest.raises(ArrayError, match="data has shape"):
        library.plan(W, weight)(np.ascontiguousarray(data.transpose(0, 3, 1, 2)))


def test_weight_and_bias_are_copied(library: KernelLibrary, numbers: Problem) -> None:
    data, weight, bias, reference = numbers
    weight, bias = weight.copy(), bias.copy()
    plan = library.plan(W, weight, bias, algorithm="direct")
    weight.fill(np.nan)
    bias.fill(np.nan)
    assert np.array_equal(plan(data), reference)


def test_input_is_left_alone(plan: Plan, numbers: Problem) -> None:
    data, *_, reference = numbers
    before = data.copy()
    first, second = plan(data), plan(data)
    assert np.array_equal(data, before) and np.array_equal(first, reference)
    assert first is not second and np.array_equal(first, second)


def test_plan_outlives_its_library(path: Path, numbers: Problem) -> None:
    data, weight, bias, reference = numbers
    plan = load(path).plan(W, weight, bias, algorithm="direct")
    assert np.array_equal(plan(data), reference)


# ---- arrays --------------------------------------------------------------------------------------


def at(array: Array, offset: int) -> Array:
    """A copy that starts `offset` bytes after a multiple of 64."""
    raw = np.empty(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def read_only(array: Array) -> Array:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def strided(array: Array) -> Array:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def odd_strides(array: Array) -> Array:
    """Contiguous, though the stride of the axis of extent one says otherwise."""
    view = np.lib.stride_tricks.as_strided(array, strides=(12, *array.strides[1:]))
    assert view.flags.c_contiguous
    return view


ACCEPTED: dict[str, Callable[[Array], Any]] = {
    "unaligned": lambda a: at(a, 4),
    "unaligned within a float": lambda a: at(a, 1),
    "read-only": read_only,
    "every other element": strided,
    "Fortran order": np.asfortranarray,
    "negative strides": lambda a: a[:, ::-1].copy()[:, ::-1],
    "odd strides": odd_strides,
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "big-endian": lambda a: a.astype(">f4"),
    "subclass": lambda a: a.view(np.recarray),
}


@pytest.mark.parametrize("change", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_any_float_array_is_accepted(
    library: KernelLibrary, plan: Plan, numbers: Problem, change: Callable[[Array], Any]
) -> None:
    data, weight, bias, reference = numbers
    out = plan(change(data))
    assert out.dtype == np.float32 and np.array_equal(out, reference)
    if change is not odd_strides:
        again = library.plan(W, change(weight), np.asarray(bias), algorithm="direct")
        assert np.array_equal(again(data), reference)


@pytest.mark.parametrize(
    "change", [strided, read_only, lambda b: b.astype(np.float64), lambda b: at(b, 4)]
)
def test_any_float_bias_is_accepted(
    library: KernelLibrary, numbers: Problem, change: Callable[[Array], Array]
) -> None:
    data, weight, bias, reference = numbers
    plan = library.plan(W, weight, change(bias), algorithm="direct")
    assert np.array_equal(plan(data), reference)


class Foreign:
    """A tensor of a library that only speaks DLPack."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape = array, array.shape

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_foreign_tensors(library: KernelLibrary, plan: Plan, numbers: Problem) -> None:
    data, weight, bias, reference = numbers
    out = np.zeros_like(reference, np.float32)
    plan(Foreign(data), out=Foreign(out))
    assert np.array_equal(out, reference)
    with pytest.raises(ArrayError, match="cannot allocate a Foreign; pass out="):
        plan(Foreign(data))
    again = library.plan(W, Foreign(weight), Foreign(bias), algorithm="direct")
    assert np.array_equal(again(data), reference)
    mixed = np.zeros_like(out)
    assert plan(data, out=tvm_ffi.from_dlpack(mixed)) and np.array_equal(mixed, reference)


SHAPE = r"has shape .*, expected \("
REFUSED: dict[str, tuple[Callable[[Array], Any], str]] = {
    "transposed": (lambda a: a.T.copy(), SHAPE),
    "flat": (lambda a: a.ravel(), SHAPE),
    "shorter": (lambda a: a[:, :-1].copy(), SHAPE),
    "one axis more": (lambda a: a[None], SHAPE),
    "empty": (lambda a: a[:, :0], SHAPE),
    "int": (lambda a: a.astype(np.int32), "has dtype int32, expected float32"),
    "bool": (lambda a: a.astype(bool), "has dtype bool, expected float32"),
    "complex": (lambda a: a.astype(np.complex64), "has dtype complex64, expected float32"),
    "objects": (lambda a: a.astype(object), "has dtype object, expected float32"),
    "none": (lambda a: None, "None"),
    "list": (lambda a: a.tolist(), "list"),
    "text": (lambda a: "array", "str"),
    "number": (lambda a: 1.0, "float"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_arrays_are_refused(
    library: KernelLibrary,
    plan: Plan,
    numbers: Problem,
    change: Callable[[Array], Any],
    message: str,
) -> None:
    data, weight, _, _ = numbers
    with pytest.raises(ArrayError, match=f"data .*{message}"):
        plan(change(data))
    with pytest.raises(ArrayError, match=f"weight .*{message}"):
        library.plan(W, change(weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1].copy(), r"bias has shape \(15,\), expected \(16,\)"),
        (lambda b: b[:, None], "bias has shape"),
        (lambda b: b.astype(int), "bias has dtype int64, expected float32"),
        (lambda b: b.tolist(), "bias is no array"),
        (lambda b: 0.0, "bias is no array"),
    ],
)
def test_other_bias_is_refused(
    library: KernelLibrary, numbers: Problem, change: Callable[[Array], Any], message: str
) -> None:
    _, weight, bias, _ = numbers
    with pytest.raises(ArrayError, match=message):
        library.plan(W, weight, change(bias))


# ---- out= ----------------------------------------------------------------------------------------


def test_out_is_filled_and_returned(plan: Plan, numbers: Problem) -> None:
    data, *_, reference = numbers
    for offset in (0, 4, 32):
        out = at(np.full(reference.shape, np.nan, np.float32), offset)
        assert plan(data, out=out) is out and np.array_equal(out, reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, :-1].copy(), "out has shape"),
        (lambda a: a.astype(np.float64), "out has dtype float64, expected a writable"),
        (read_only, "expected a writable, C-contiguous float32 array"),
        (strided, "C-contiguous"),
        (lambda a: at(a, 1), "expected a writable"),
        (lambda a: a.astype(">f4"), "out has dtype >f4"),
        (lambda a: a.tolist(), "out is a list"),
        (lambda a: 1, "out is a int"),
    ],
)
def test_out_is_refused(
    plan: Plan, numbers: Problem, change: Callable[[Array], Any], message: str
) -> None:
    data, *_, reference = numbers
    with pytest.raises(ArrayError, match=message):
        plan(data, out=change(reference.astype(np.float32)))


def test_out_allocates_nothing(plan: Plan, numbers: Problem) -> None:
    data, *_, reference = numbers
    out = np.empty(reference.shape, np.float32)
    plan(data, out=out)
    peaks = []
    for _ in range(5):  # other threads of a test run allocate too, now and then
        tracemalloc.start()
        try:
            plan(data, out=out)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert min(peaks) < 10_000 < out.nbytes


def test_out_that_overlaps_data(library: KernelLibrary) -> None:
    """Either refused or right; here every output pixel needs all channels."""
    data, weight, bias, reference = problem(POINTWISE)
    plan = library.plan(POINTWISE, weight, bias)
    try:
        plan(data, out=data)
    except ArrayError:
        return
    assert np.array_equal(data, reference)


# ---- PyTorch -------------------------------------------------------------------------------------


def test_torch_tensors(library: KernelLibrary, plan: Plan, numbers: Problem) -> None:
    torch = pytest.importorskip("torch")
    data, weight, bias, reference = (torch.from_numpy(a.copy()) for a in numbers)
    padded = torch.cat([torch.zeros(1), data.flatten()])
    for given in (
        data,
        data.clone().requires_grad_(),
        data.to(memory_format=torch.channels_last),
        data.transpose(2, 3).contiguous().transpose(2, 3),
        padded[1:].view(data.shape),
    ):
        out = plan(given)
        assert type(out) is torch.Tensor and out.dtype == torch.float32
        assert torch.equal(out, reference.float()) and not out.requires_grad
    out = torch.full(reference.shape, torch.nan)
    assert plan(data, out=out) is out and torch.equal(out, reference.float())
    again = library.plan(W, weight, bias.double(), algorithm="direct")
    assert torch.equal(again(data), reference.float())
    assert np.array_equal(plan(numbers[0], out=out), numbers[3])


def test_torch_tensors_that_do_not_fit(plan: Plan, numbers: Problem) -> None:
    torch = pytest.importorskip("torch")
    data, out = torch.from_numpy(numbers[0].copy()), torch.empty(W.out_shape())
    for given, message in (
        (data.double(), "data has dtype float64, expected float32"),
        (data.int(), "data has dtype int32, expected float32"),
        (data[:, :-1], "data has shape"),
    ):
        with pytest.raises(ArrayError, match=message):
            plan(given)
    for given, message in (
        (out.double(), "out has dtype float64"),
        (out.transpose(2, 3), "out is not contiguous"),
        (out[:, :-1], "out has shape|out is not contiguous"),
    ):
        with pytest.raises(ArrayError, match=message):
            plan(data, out=given)


def test_torch_parameters(library: KernelLibrary, numbers: Problem) -> None:
    torch = pytest.importorskip("torch")
    data, weight, bias, reference = (torch.from_numpy(a.copy()) for a in numbers)
    layer = torch.nn.Conv2d(16, 16, 3, padding=1)
    layer.weight.data, layer.bias.data = weight, bias
    plan = library.plan(W, layer.weight, layer.bias, algorithm="direct")
    assert torch.equal(plan(data), reference.float())


@pytest.mark.parametrize("which", ["data", "out", "sparse"])
def test_torch_tensors_on_other_devices(plan: Plan, numbers: Problem, which: str) -> None:
    torch = pytest.importorskip("torch")
    data = torch.from_numpy(numbers[0].copy())
    out = torch.empty(W.out_shape(), device="meta" if which == "out" else "cpu")
    given = {"data": data.to("meta"), "sparse": data.to_sparse(), "out": data}[which]
    with pytest.raises(ArrayError, match=f"{'out' if which == 'out' else 'data'} "):
        plan(given, out=out)


def test_torch_out_that_overlaps_data(library: KernelLibrary) -> None:
    torch = pytest.importorskip("torch")
    data, weight, _, _ = problem(POINTWISE)
    plan = library.plan(POINTWISE, weight)
    tensor = torch.from_numpy(data)
    for given, out in ((tensor, tensor), (tensor, data), (data, tensor)):
        with pytest.raises(ArrayError, match="out overlaps data"):
            plan(given, out=out)


# ---- threads -------------------------------------------------------------------------------------


def test_one_plan_in_many_threads(library: KernelLibrary, numbers: Problem) -> None:
    data, weight, bias, reference = numbers
    plans = [library.plan(W, weight, bias, algorithm=name) for name in ALGORITHMS]
    problems: list[str] = []

    def work(number: int) -> None:
        scaled = data * (number + 1)
        expected = (reference - bias.reshape(1, -1, 1, 1)) * (number + 1)
        expected += bias.reshape(1, -1, 1, 1)
        out = np.empty(reference.shape, np.float32)
        for plan in plans * 5:
            error = relative_error(plan(scaled, out=out), expected)
            if error > 1e-5:
                problems.append(f"thread {number}, {plan.algorithm}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.parametrize(
    "threads",
    [-1, 0, 1.5],
)
def test_threads_are_refused(path: Path, threads: Any) -> None:
    with pytest.raises(LibraryError, match="threads is"):
        load(path, threads)


# ---- memory --------------------------------------------------------------------------------------

LARGE = ConvWorkload.parse("mb4ic32ih96oc32kh3ph1")
MATRIX = ConvWorkload.parse("mb1ic2048ih6oc2048kh1")

HUNGRY = """
import resource
import sys
import threading
import numpy as np
import convtvm

def limit(extra):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    most = resource.RLIM_INFINITY if extra is None else used + extra
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

def attempt(extra, act):
    limit(extra)
    try:
        return act()
    except convtvm.ConvtvmError as error:
        assert isinstance(error, MemoryError), error
        return str(error)
    finally:
        limit(None)

library = convtvm.load(sys.argv[1], THREADS)
w = library.workloads[0]
weight = np.ones(w.weight_shape, np.float32)
data, out = np.ones(w.data_shape(), np.float32), np.empty(w.out_shape(), np.float32)
big = library.workloads[1]
matrix = np.ones(big.weight_shape, np.float32)
modest = library.plan(big, matrix, algorithm="direct")

def in_thread():
    modest(np.ones(big.data_shape(), np.float32))  # which starts the workers
    said.append(attempt(0, lambda: plan(data, out=out)))

for c in library.manifest.kernels:
    if c.workload != w.key or c.algorithm == "direct:inplace":  # which needs no workspace
        continue
    plan = library.plan_by(c, w, weight)
    needed = f"workspace of {c.workspace_bytes:,} bytes"
    for extra in (0, c.workspace_bytes // 2, c.workspace_bytes - 4096):
        assert needed in attempt(extra, lambda: plan(data, out=out)), c
    said = []
    other = threading.Thread(target=in_thread)
    other.start()
    other.join()
    assert needed in said[0], said
    first = attempt(c.workspace_bytes + (64 << 20), lambda: plan(data, out=out))
    assert first is out and out[0, 0, 1, 1] == 9 * w.ic, first  # of what there is, nothing is lost
    assert attempt(0, lambda: plan(data, out=out)) is out  # and the workspace is kept
    outputs = attempt(0, lambda: [plan(data) for _ in range(100)])
    assert f"no memory for out, {out.nbytes:,} bytes" in outputs
packed = attempt(0, lambda: [library.plan(big, matrix) for _ in range(100)])
assert "no memory for an array" in packed and f"{matrix.nbytes:,} bytes" in packed, packed
print("fine")
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("large") / "x.so"
    names = ("direct", "im2col", "winograd:4")
    made = compile([LARGE, MATRIX], threads=2, logs=[], keep="all", algorithms=names)
    sizes = {c.algorithm: c.workspace_bytes for c in made.candidates(LARGE)}
    assert sizes.pop("direct:inplace") == 0 and min(sizes.values()) > 1 << 20
    made.export(file)
    return file


@pytest.mark.parametrize("threads", [1, 2])
def test_no_memory_is_an_exception_that_names_bytes(large: Path, threads: int) -> None:
    """For a workspace, in any thread, for an output and for a packed weight; the process and the
    plan go on."""
    assert separate(large, f"THREADS = {threads}{HUNGRY}") == "fine"


# ---- files ---------------------------------------------------------------------------------------


def separate(path: Path, code: str) -> str:
    """What `code` prints in a process of its own, given the path of a library."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=without_torch(ROOT),
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FRESH = """
import sys
import numpy as np
import convtvm
library = convtvm.load(sys.argv[1])
arrays = np.load("arrays.npz")
for w in library.workloads[:1]:
    for c in library.candidates(w):
        plan = library.plan(w, arrays["weight"], arrays["bias"], algorithm=c.algorithm)
        np.save(c.algorithm, plan(arrays["data"]))
compiler = ("tvm", "xgboost", "convtvm.kernels", "convtvm.machine.targets", "convtvm.measure")
print(sorted(set(compiler) & set(sys.modules)))
"""


def test_library_in_a_fresh_process(path: Path, library: KernelLibrary, numbers: Problem) -> None:
    data, weight, bias, _ = numbers
    np.savez(path.parent / "arrays.npz", data=data, weight=weight, bias=bias)
    assert separate(path, FRESH) == "[]"
    for name in ALGORITHMS:
        here = library.plan(W, weight, bias, algorithm=name)(data)
        assert np.array_equal(np.load(path.parent / f"{name}.npy"), here)


def test_load_gives_what_was_exported(path: Path, library: KernelLibrary, tmp_path: Path) -> None:
    loaded = load(path)
    assert loaded.manifest == library.manifest and loaded.workloads == library.workloads
    assert (loaded.threads, loaded.layout, loaded.target) == (1, "NCHW", NATIVE.name)
    assert loaded.candidates(W) == library.candidates(W)
    loaded.export(tmp_path / "again.so")
    assert (tmp_path / "again.so").read_bytes() == path.read_bytes()


def test_file_is_not_needed_after_loading(path: Path, numbers: Problem, tmp_path: Path) -> None:
    data, weight, bias, reference = numbers
    file = tmp_path / "x.so"
    file.write_bytes(path.read_bytes())
    loaded = load(file)
    file.unlink()
    plan = loaded.plan(W, weight, bias, algorithm="direct")
    assert np.array_equal(plan(data), reference)


def test_export_over_a_loaded_library(path: Path, numbers: Problem, tmp_path: Path) -> None:
    """The path gives the new code, what was loaded before keeps the old one."""
    data, weight, bias, reference = numbers
    file = tmp_path / "x.so"
    file.write_bytes(path.read_bytes())
    old = load(file)
    before = old.plan(W, weight, bias, algorithm="direct")
    compile([POINTWISE], threads=1, logs=[], algorithms=["direct"]).export(file)
    new = load(file)
    assert new.workloads == [POINTWISE]
    new_data, new_weight, new_bias, new_reference = problem(POINTWISE)
    assert np.array_equal(new.plan(POINTWISE, new_weight, new_bias)(new_data), new_reference)
    assert np.array_equal(before(data), reference)
    assert np.array_equal(old.plan(W, weight, bias, algorithm="direct")(data), reference)


def test_export_is_whole_or_not_at_all(library: KernelLibrary, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for bad in ("nowhere/x.so", "file/x.so", "folder"):
        with pytest.raises(LibraryError, match="cannot write library"):
            library.export(tmp_path / bad)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_export_keeps_the_mode(library: KernelLibrary, tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    library.export(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
    file.chmod(0o640)
    library.export(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_export_to_a_relative_path(
    library: KernelLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    library.export("x.so")
    assert load("x.so").workloads == library.workloads


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "missing", "newer"])
def test_what_is_no_library_is_refused(
    path: Path,
    library: KernelLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    file = tmp_path / "x.so"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 3] ^= 0xFF
    elif damage == "foreign":
        content = bytearray(Path(tvm_ffi.core.__file__).read_bytes())
    elif damage == "newer":
        monkeypatch.setattr(manifest, "FORMAT", 99)
        content = bytearray(manifest.attach(b"ELF", library.manifests))
        monkeypatch.undo()
    if damage != "missing":
        file.write_bytes(content)
    message = {
        "cut": "cut short",
        "flipped": "checksum",
        "foreign": "is not a convtvm library",
        "missing": "cannot read library .*No such file",
        "newer": "manifest format 99, this version reads 2; compile it again",
    }[damage]
    with pytest.raises(LibraryError, match=message):
        load(file)


def resealed(path: Path, library: KernelLibrary, file: Path, **changes: Any) -> Path:
    """The library with a changed manifest."""
    length = len(manifest.attach(b"", library.manifests))
    image = path.read_bytes()[:-length]
    file.write_bytes(manifest.attach(image, [replace(library.manifest, **changes)]))
    return file


def test_missing_features_are_named(
    path: Path, library: KernelLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any code of the library is loaded."""
    monkeypatch.setattr(cpu, "host_features", lambda: {"avx2": True, "avx512f": False, "x": False})
    file = resealed(path, library, tmp_path / "x.so", features=("64bit", "avx2", "avx512f", "x"))
    with pytest.raises(LibraryError) as caught:
        load(file)
    message = str(caught.value)
    assert "this CPU lacks avx512f, x; compile it here with --target native" in message
    assert message.startswith(f"{file} is compiled for '{NATIVE.name}'")


def test_features_that_cannot_be_checked_do_not_matter(
    path: Path, library: KernelLibrary, tmp_path: Path
) -> None:
    """Tuning flags such as fast-gather are in LLVM's lists too, and no CPU reports them."""
    features = (*library.manifest.features, "amx-fp8-nonexistent", "fast-nothing")
    file = resealed(path, library, tmp_path / "x.so", features=features)
    assert load(file).workloads == library.workloads


def test_library_of_another_machine(library: KernelLibrary, tmp_path: Path) -> None:
    """An intact file whose image this machine cannot load."""
    other = "aarch64" if NATIVE.is_x86 else "avx2"
    image = bytearray(b"\x7fELF\x02\x01\x01" + bytes(200))
    image[16:24] = b"\x03\0" + (b"\xb7\0" if NATIVE.is_x86 else b"\x3e\0") + b"\x01\0\0\0"
    foreign = replace(library.manifest, target=resolve(other, 1).name, features=("neon",))
    (tmp_path / "x.so").write_bytes(manifest.attach(bytes(image), [foreign]))
    with pytest.raises(LibraryError, match=f"is compiled for .*{other}"):
        load(tmp_path / "x.so")


RUNTIME = """
import importlib.util, sys
importlib.util.find_spec = lambda name: None
from convtvm.dispatch import load
from convtvm.errors import EnvironmentProblem
try:
    load(sys.argv[1])
except EnvironmentProblem as problem:
    print(problem)
"""


def test_missing_runtime_is_named(path: Path) -> None:
    assert issubclass(EnvironmentProblem, RuntimeError)
    assert separate(path, RUNTIME).startswith("libtvm_runtime.so not found; install apache-tvm")


@pytest.mark.parametrize(
    ("before", "after"), [({}, "25000"), ({"TVM_THREAD_POOL_SPIN_COUNT": "7"}, "7")]
)
def test_workers_spin_for_a_short_time_unless_told_otherwise(
    before: dict[str, str], after: str
) -> None:
    name = "TVM_THREAD_POOL_SPIN_COUNT"
    environment = {k: v for k, v in without_torch(ROOT).items() if k != name}
    environment |= before
    asked = f"import os, convtvm.dispatch; print(os.environ['{name}'])"
    done = subprocess.run(
        [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == after
