"""Convolutions of a live model in blocks of channels: where logs have them, and eager's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from support import log_of, record_of  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from convtvm.kernels.task import tasks_of  # noqa: E402
from convtvm.machine.targets import resolve  # noqa: E402
from convtvm.problem.workload import ConvWorkload  # noqa: E402
from convtvm.torch.backend import Backend  # noqa: E402
from convtvm.torch.kernels import Kernels  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402

LANES = resolve("native", 1).lanes
BLOCKS = f"NCHW{LANES}c"
C = 2 * LANES


class Net(nn.Module):
    """A stem that reads three channels, an inverted residual, one with a gate, and readers of
    their outputs that know no blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, C, 3, 2, 1)
        self.wide, self.deep, self.narrow = self._block()
        self.wide2, self.deep2, self.narrow2 = self._block()
        self.gate = nn.Conv2d(2 * C, 2 * C, 1)
        self.odd = nn.Conv2d(C, 5, 3)
        self.eval().requires_grad_(False)

    @staticmethod
    def _block() -> tuple[nn.Module, ...]:
        deep = nn.Conv2d(2 * C, 2 * C, 3, 1, 1, groups=2 * C, bias=False)
        norm = nn.BatchNorm2d(2 * C)
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        return nn.Conv2d(C, 2 * C, 1), nn.Sequential(deep, norm), nn.Conv2d(2 * C, C, 1)

    def forward(self, x: Any) -> Any:
        x = functional.silu(self.stem(x))
        y = functional.relu6(self.deep(functional.relu6(self.wide(x))))
        x = self.narrow(y) + x
        y = functional.relu(self.deep2(functional.relu(self.wide2(x))))
        y = torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))) * y
        x = x + self.narrow2(y)
        pooled = functional.max_pool2d(x, 3, 2, 1)
        return self.odd(x), torch.cat([pooled, pooled], 1), x.mean((2, 3))


def workloads(rows: int, columns: int) -> dict[str, ConvWorkload]:
    texts = {
        "stem": f"mb1ic3ih{2 * rows}iw{2 * columns}oc{C}oh{rows}ow{columns}kh3kw3sh2sw2ph1pw1",
        "wide": f"mb1ic{C}ih{rows}iw{columns}oc{2 * C}kh1kw1",
        "deep": f"g{2 * C}mb1ic{2 * C}ih{rows}iw{columns}oc{2 * C}oh{rows}ow{columns}kh3kw3ph1pw1",
        "narrow": f"mb1ic{2 * C}ih{rows}iw{columns}oc{C}kh1kw1",
    }
    return {name: ConvWorkload.parse(text) for name, text in texts.items()}


def write(path: Path, seconds: dict[str, tuple[float, float]]) -> Path:
    """Records of default decisions that took so long in NCHW and in blocks."""
    target, made = resolve("native", 1), []
    for name, w in workloads(9, 7).items():
        blocks = f"NCHW-{BLOCKS}" if name == "stem" else BLOCKS
        for layout, secs in zip(("NCHW", blocks), seconds.get(name, ()), strict=False):
            algorithm = "direct:depthwise" if w.is_depthwise else "direct"
            tasks = tasks_of([w], target, layout, [algorithm])
            task = next(t for t in tasks if t.algorithm_name == algorithm)
            made.append(record_of(task, secs))
    return log_of(path, *made)


FASTER = {name: (1e-3, 1e-4) for name in ("stem", "wide", "deep", "narrow")}
CHAIN = ["stem", "wide", "deep.0", "narrow", "wide2", "deep2.0", "narrow2"]


CASES = [
    (FASTER, CHAIN),
    ({**FASTER, "stem": (1e-3, 1e-2)}, CHAIN[1:]),
    ({**FASTER, "deep": (1e-3, 1.0)}, ["stem", "wide", "narrow", "wide2", "narrow2"]),
    ({"wide": (1e-3, 1e-4)}, ["wide", "wide2"]),
    ({"wide": (1e-3, 0.9999e-3)}, []),  # less than a conversion takes
    ({name: (1e-4, 1e-3) for name in FASTER}, []),
    ({name: (1e-4,) for name in FASTER}, []),
]


def check(x: Any, log: Path, rest: str) -> list[str]:
    """Which sites are in blocks, once the results are eager's in its memory formats."""
    torch._dynamo.reset()
    net, options = Net(), Options.of({"threads": 1, "logs": [log], "rest": rest})
    backend = Backend(options, Kernels(options))
    backend.changes_layouts = True
    with torch.no_grad():
        expected, found = net(x), torch.compile(net, backend=backend)(x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert rest == "eager" or one.stride() == other.stride()
    assert all(site.plan is not None for site in backend.sites)
    needs = {s.name: s.convolution.recipe.need for s in backend.sites if s.convolution}
    assert needs["stem"].layout in ("NCHW", "NHWC", f"NCHW-{BLOCKS}")
    return [name for name, need in needs.items() if need.is_blocked]


@pytest.mark.parametrize(("seconds", "blocked"), CASES)
def test_blocks_where_they_take_less_time(seconds: Any, blocked: list[str], tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", seconds)
    assert check(torch.randn(1, 3, 18, 14), log, "eager") == blocked


@pytest.mark.slow
@pytest.mark.parametrize("case", [0, 2])
def test_blocks_with_inductor(case: int, tmp_path: Path) -> None:
    seconds, blocked = CASES[case]
    log = write(tmp_path / "log.jsonl", seconds)
    assert check(torch.randn(1, 3, 18, 14), log, "inductor") == blocked


def test_other_batches_stay_as_they_are(tmp_path: Path) -> None:
    log, x = write(tmp_path / "log.jsonl", FASTER), torch.randn(2, 3, 18, 14)
    assert check(x, log, "eager") == []


class OneBlock(nn.Module):
    """As many channels as a block has: [n, 1, h, w, c] in memory, which is no copy but a view of
    [n, c, h, w] with other strides."""

    def __init__(self, reads_memory: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reads_memory = reads_memory
        self.conv = nn.Conv2d(LANES, LANES, 1)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        if self.reads_memory:
            return [y.as_strided((3, 5), (9, 2), 4).clone()]
        return [y, y.flatten(2), y[:, 1:3], y.permute(0, 2, 3, 1), y.mT, y.flatten(), y[0], y + 1]


@pytest.mark.slow
@pytest.mark.parametrize("reads_memory", [False, True])
def test_memory_lies_as_it_would(reads_memory: bool, tmp_path: Path) -> None:
    """For who gets a result, and for what reads memory by strides inside of a graph."""
    torch._dynamo.reset()
    net, x = OneBlock(reads_memory).eval(), torch.randn(1, LANES, 9, 7)
    w, made = ConvWorkload.parse(f"mb1ic{LANES}ih9iw7oc{LANES}kh1kw1"), []
    for layout, secs in (("NCHW", 1.0), (BLOCKS, 1e-4)):
        (task,) = tasks_of([w], resolve("native", 1), layout, ["direct"])[:1]
        made.append(record_of(task, secs))
    log = log_of(tmp_path / "log.jsonl", *made)
    options = Options.of({"threads": 1, "logs": [log]})
    backend = Backend(options, Kernels(options))
    with torch.no_grad():
        expected, found = net(x), torch.compile(net, backend=backend)(x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert [one.stride() for one in found] == [other.stride() for other in expected]
    (site,) = backend.sites
    assert site.convolution and site.convolution.recipe.need.is_blocked is not reads_memory
