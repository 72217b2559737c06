"""MEC, Solutions A and B, on odd shapes; what L takes, by the paper's formula and layers."""

from __future__ import annotations

import pytest
from test_im2col import SHAPES, allocated, check_answers, check_every_decision, stated_workspace

from convtvm.compute.im2col import column_bytes
from convtvm.compute.mec import lowered_bytes
from convtvm.kernels.algorithms import ALGORITHMS
from convtvm.kernels.task import Task, tasks_of
from convtvm.machine.targets import resolve
from convtvm.problem.sources import read_source
from convtvm.problem.workload import LAYOUTS, ConvWorkload

make = ConvWorkload.make

# For Solution A: what fills a row of n*ow pixels.
BATCHES = {
    "one pixel an image": make(19, 17, 3, kh=3, n=3),
    "narrow images": make(17, 19, 7, 5, 3, padding=1, n=3),
    "stride 2, asymmetric padding": make(3, 19, 9, 8, 5, stride=2, padding=(2, 1, 0, 3), n=2),
    "dilation 2 and 3, stride 2 and 1": make(
        19, 3, 13, 12, 3, dilation=(2, 3), stride=(2, 1), padding=2, n=2
    ),
    "groups": make(51, 9, 6, kh=3, padding=1, groups=3, n=2),
    "depthwise": make(17, 17, 6, kh=3, padding=1, groups=17, n=3),
}
BATCHES |= {shape: SHAPES[shape] for shape in ("1x1 image", "pointwise", "row of 7")}


@pytest.mark.parametrize("w", SHAPES.values(), ids=SHAPES)
def test_answers_b(w: ConvWorkload) -> None:
    check_answers(w, "mec:b")


@pytest.mark.parametrize("w", BATCHES.values(), ids=BATCHES)
def test_answers_a(w: ConvWorkload) -> None:
    assert ALGORITHMS["mec:a"].inapplicable(w) is None
    check_answers(w, "mec:a")


@pytest.mark.parametrize(
    ("name", "w"), [("mec:a", make(7, 17, 2, kh=2, n=2)), ("mec:b", make(2, 17, 3, 2, kh=2))]
)
def test_every_decision_of_a_small_space(name: str, w: ConvWorkload) -> None:
    check_every_decision(w, name)


# ---- where Solution A is a candidate of its own --------------------------------------------------


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (make(64, 64, 56, kh=3), "batch is 1, where Solution A does the same as Solution B"),
        (make(3, 64, 32, kh=3, n=2), "the output has 460800 bytes, L only 69120:"),
        (make(64, 64, 56, kh=3, n=2), None),
        (make(8, 8, 9, n=2), None),  # as large as L: that is enough
        (make(8, 16, 9, n=2), "the output has 10368 bytes, L only 5184:"),
    ],
)
def test_inapplicable(w: ConvWorkload, reason: str | None) -> None:
    message = ALGORITHMS["mec:a"].inapplicable(w)
    assert message is None if reason is None else message is not None and reason in message
    names = [t.algorithm_name for t in tasks_of([w], resolve("native", 1), algorithms=["mec"])]
    assert names == (["mec:b"] if reason else ["mec:a", "mec:b"])


# ---- workspace -----------------------------------------------------------------------------------

# The paper's layers cv1..cv12, n = 1: MiB of the columns, of L, and whether |O| <= |L|. No window
# of cv4 reads its last row: with it, as in the paper, L would have 41.73 MiB.
LAYERS = {
    "cv1": (4.19, 1.57, True),
    "cv2": (4.34, 1.63, True),
    "cv3": (6.91, 2.02, False),
    "cv4": (142.13, 41.54, True),
    "cv5": (3.66, 0.88, True),
    "cv6": (0.88, 0.35, True),
    "cv7": (5.08, 1.71, False),
    "cv8": (26.59, 9.02, True),
    "cv9": (6.41, 2.21, True),
    "cv10": (2.97, 1.07, True),
    "cv11": (1.27, 0.49, True),
    "cv12": (0.44, 0.21, True),
}


def test_layers_of_the_paper() -> None:
    layers = {w.name: w for w in read_source("cv1_12")}
    assert set(layers) == set(LAYERS)
    for name, (columns, lowered, fits) in LAYERS.items():
        w = layers[name]
        assert column_bytes(w) / 2**20 == pytest.approx(columns, abs=0.005)
        assert lowered_bytes(w) / 2**20 == pytest.approx(lowered, abs=0.005)
        assert (w.out_bytes <= lowered_bytes(w)) is fits


def test_saving_over_im2col() -> None:
    """ow*kw*ic*(ih - kh)*(kh/sh - 1) elements, where the stride divides ih - kh."""
    for kh, sh in ((3, 1), (5, 2), (3, 3), (1, 2)):
        w = make(7, 4, 4 * sh + kh, 20, kh, 3, stride=(sh, 1))
        saved = 4 * w.ow * w.kw * w.ic * (w.ih - w.kh) * (w.kh - w.sh) // w.sh
        assert column_bytes(w) - lowered_bytes(w) == saved


WORKSPACES = {
    "3x3": make(24, 24, 20, kh=3, n=2),
    "asymmetric padding": make(17, 19, 13, 9, 3, padding=(0, 1, 2, 3), n=3),
    "stride 3, dilation 2": make(16, 17, 40, kh=3, stride=3, dilation=2, n=2),
    "rows that no window reads": make(16, 8, 40, kh=1, kw=3, stride=2, n=2),
}


@pytest.mark.parametrize("w", WORKSPACES.values(), ids=WORKSPACES)
def test_workspace(w: ConvWorkload) -> None:
    rows = (w.oh - 1) * w.sh + (w.kh - 1) * w.dh + 1
    size = 4 * w.n * w.ow * rows * w.kw * w.ic
    for name in ("mec:a", "mec:b"):
        for layout in LAYOUTS:
            task = Task(w, name, resolve("native", 2), layout)
            decisions = task.space.default
            assert stated_workspace(task, decisions) == allocated(task, decisions) == size
