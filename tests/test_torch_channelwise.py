"""Pooling and what else works on each channel alone, in blocks of channels between convolutions."""

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
from convtvm.torch import layouts  # noqa: E402
from convtvm.torch.backend import Backend  # noqa: E402
from convtvm.torch.kernels import Kernels  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402

LANES = resolve("native", 1).lanes
C, ROWS, COLUMNS = 2 * LANES, 9, 7


class Net(nn.Module):
    """A convolution, what is tried, and a convolution where the result is an image."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operation = operation
        made = operation(torch.zeros(1, C, ROWS, COLUMNS))
        self.shapes = [(C, ROWS, COLUMNS)]
        self.first, self.second = nn.Conv2d(C, C, 1), nn.Identity()
        if isinstance(made, torch.Tensor) and made.dim() == 4:
            self.shapes.append(tuple(made.shape[1:]))
            self.second = nn.Conv2d(made.shape[1], C, 1)
        self.eval().requires_grad_(False)

    def forward(self, x: Any) -> Any:
        return self.second(self.operation(self.first(x).relu()))

    def log(self, folder: Path) -> Path:
        """Records by which both gain much in blocks."""
        target, made = resolve("native", 1), []
        for ic, ih, iw in self.shapes:
            w = ConvWorkload.parse(f"mb1ic{ic}ih{ih}iw{iw}oc{C}kh1kw1")
            for layout, seconds in (("NCHW", 1e-3), (f"NCHW{LANES}c", 1e-5)):
                if layout == "NCHW" or ic % LANES == 0:
                    made.append(record_of(tasks_of([w], target, layout, ["direct"])[0], seconds))
        return log_of(folder / "log.jsonl", *made)


def _pool(kind: str, *args: Any, **kwargs: Any) -> Any:
    return lambda x: getattr(functional, kind)(x, *args, **kwargs)


def _halves(x: Any) -> Any:
    return torch.cat([x, x * 2, functional.max_pool2d(x, 3, 1, 1)], 1)


IN_BLOCKS = {
    "max": (_pool("max_pool2d", 3, 2, 1), 1),
    "max of rows": (_pool("max_pool2d", (1, 3), (1, 2), (0, 1)), 1),
    "max in holes": (_pool("max_pool2d", 2, 1, 0, 2), 1),
    "max, last column cut": (_pool("max_pool2d", 2, 2, ceil_mode=True), 1),
    "max as wide as the image": (_pool("max_pool2d", (ROWS, COLUMNS)), 1),
    "average": (_pool("avg_pool2d", 3, 2, 1), 1),
    "average without padding": (_pool("avg_pool2d", 3, 1, 1, count_include_pad=False), 1),
    "average by a divisor": (_pool("avg_pool2d", 2, divisor_override=3), 1),
    "concatenation": (_halves, 2),
    "mean": (_pool("adaptive_avg_pool2d", 1), 1),
    "mean without pixels": (lambda x: x.mean((-1, -2)), 1),
    "padding": (_pool("pad", (1, 2, 0, 1), value=0.5), 1),
    "twice": (lambda x: functional.avg_pool2d(functional.max_pool2d(x, 2), 2), 2),
}
AS_THEY_ARE = {
    "max and where it was": lambda x: functional.max_pool2d(x, 3, return_indices=True),
    "mean of channels": lambda x: x.mean((1, 2)),
    "channels that are no blocks": lambda x: functional.max_pool2d(x[:, :3], 2),
    "concatenated rows": lambda x: torch.cat([x, x], 2),
    "concatenated with few": lambda x: torch.cat([x, x[:, 1:4]], 1),
    "padded channels": lambda x: functional.pad(x, (0, 0, 0, 0, 1, 2)),
}


def compiled(operation: Any, folder: Path, rest: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many operations compute in blocks, once the result is eager's."""
    torch._dynamo.reset()
    changed: list[Any] = []
    assign = layouts.assign
    monkeypatch.setattr(
        layouts, "assign", lambda *args: changed.append(assign(*args)) or changed[-1]
    )
    net = Net(operation)
    options = Options.of({"threads": 1, "logs": [net.log(folder)], "rest": rest})
    backend = Backend(options, Kernels(options))
    backend.changes_layouts = True
    x = torch.randn(1, C, ROWS, COLUMNS)
    with torch.no_grad():
        expected, found = net(x), torch.compile(net, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    first = next(s.convolution.recipe.need for s in backend.sites if s.name == "first")
    assert first.is_blocked
    return sum(len(c.forms) for c in changed)


@pytest.mark.parametrize("kind", IN_BLOCKS)
def test_in_blocks(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, count = IN_BLOCKS[kind]
    assert compiled(operation, tmp_path, "eager", monkeypatch) == count


@pytest.mark.parametrize("kind", AS_THEY_ARE)
def test_what_stays(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled(AS_THEY_ARE[kind], tmp_path, "eager", monkeypatch) == 0


@pytest.mark.slow
def test_with_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def several(x: Any) -> Any:
        parts = [functional.max_pool2d(x, 3, 2, 1), functional.avg_pool2d(x, 3, 2, 1)]
        return (
            functional.pad(torch.cat(parts, 1), (1, 0, 2, 1)) * x.mean((2, 3), keepdim=True).sum()
        )

    assert compiled(several, tmp_path, "inductor", monkeypatch) == 5


def test_where_no_convolution_is_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooling with strides gains more than the conversions cost."""
    torch._dynamo.reset()
    convolution = nn.Conv2d(3, C, 3, padding=1).eval().requires_grad_(False)
    found: list[Any] = []
    assign = layouts.assign
    monkeypatch.setattr(layouts, "assign", lambda *args: found.append(assign(*args)) or found[-1])
    options = Options.of({"threads": 1, "logs": [log_of(tmp_path / "log.jsonl")], "rest": "eager"})
    backend = Backend(options, Kernels(options))
    backend.changes_layouts = True
    x = torch.randn(1, 3, 64, 64)

    def net(x: Any) -> Any:
        return functional.max_pool2d(convolution(x), 3, 2, 1)

    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(net, backend=backend)(x), net(x), rtol=1e-4, atol=1e-4
        )
    assert [len(c.forms) for c in found] == [1]
