"""One case of scripts/gpu_graphs.py: a model in a precision, in every way to compute it.

    python scripts/gpu_graph_case.py MODEL PRECISION LOG ROWS.json

Compiles and compares, says in the file that it is ready, and measures after a line on its input.
If the line comes before, it measures what is compiled by then.
"""

from __future__ import annotations

import copy
import json
import select
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

REPEATS = 30
# Model -> batches; `blocks` are a stem and two residual blocks, with every check there is.
MODELS = {"blocks": (1, 16), "resnet50": (1, 16), "mobilenet_v2": (1, 16)}
# Precision -> what an error may be of the largest output, beside three times that of PyTorch.
PRECISIONS = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 1e-1}
OURS = "convtvm"

Run = Callable[[], Any]


class Case:
    """One model in one precision, as PyTorch computes it and in every way of ours."""

    def __init__(self, model: str, precision: str, log: Path, rows: Path) -> None:
        import torch

        self.name, self.precision, self.path = model, precision, rows
        self.rows: dict[str, dict[str, Any]] = {}
        torch.backends.cudnn.benchmark = True
        permitted = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = permitted
        halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
        self.dtype = halves.get(precision, torch.float32)
        self.order = torch.channels_last if precision in halves else torch.contiguous_format
        from convtvm.logs.records import shipped_logs

        self.logs = [*([log] if log.is_file() else []), *shipped_logs()]

    def model(self) -> Any:
        from torch_models import build, resnet, with_statistics

        made = (
            with_statistics(lambda: resnet((1, 1), False))
            if self.name == "blocks"
            else build(self.name)
        )
        return made.cuda().to(dtype=self.dtype, memory_format=self.order)

    def images(self, n: int, seed: int = 0) -> Any:
        import torch

        size = 64 if self.name == "blocks" else 224
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 3, size, size, generator=generator)
        return x.to(dtype=self.dtype, memory_format=self.order).cuda()

    def compiled(self, model: Any, **options: Any) -> tuple[Any, Any]:
        """The model through the backend, and the backend with its sites."""
        import torch

        from convtvm.torch.backend import Backend
        from convtvm.torch.options import Options

        mode = options.pop("mode", None)
        backend = Backend(Options.of({"logs": self.logs}), self.kernels, mode)
        return torch.compile(model, backend=backend, **options), backend

    @property
    def kernels(self) -> Any:
        from convtvm.torch.kernels import shared
        from convtvm.torch.options import Options

        return shared(Options.of({"logs": self.logs}))

    def save(self, ready: bool = False) -> None:
        written = self.path.with_suffix(".part")
        written.write_text(json.dumps({"ready": ready, "rows": self.rows}))
        written.replace(self.path)

    def is_called(self) -> bool:
        """Whether the time has come to measure what there is."""
        return bool(select.select([sys.stdin], [], [], 0)[0])

    def row(self, n: int) -> dict[str, Any]:
        label = f"{self.name} {self.precision} batch {n}"
        empty: dict[str, Any] = {"errors": {}, "wrong": {}, "failures": {}, "compile s": {}}
        return self.rows.setdefault(label, empty)


def exact(model: Any, x: Any) -> Any:
    import torch

    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def error(found: Any, expected: Any) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@contextmanager
def attempt(case: Case, row: dict[str, Any], what: str) -> Iterator[None]:
    """Record how a part fails, and go on; one of ours that fails is wrong."""
    started = time.monotonic()
    try:
        yield
    except Exception as problem:
        row["failures"][what] = traceback.format_exc()
        if what.startswith(OURS):
            first = (str(problem).splitlines() or [""])[0]
            row["wrong"][what] = f"{type(problem).__name__}: {first}"
        print(f"{what}: {row['failures'][what]}", flush=True)
    row["compile s"][what] = round(time.monotonic() - started, 1)
    case.save()


def compare(case: Case, n: int) -> dict[str, Run]:
    """Every way to compute a batch: compiled, and its error; what can be measured then."""
    row, model, x = case.row(n), case.model(), case.images(n)
    expected, runs = exact(model, x), dict[str, Run]()

    def check(what: str, y: Any) -> None:
        row["errors"][what] = error(y, expected)
        limit = max(PRECISIONS[case.precision], 3 * row["errors"].get("eager", 0.0))
        if what.startswith(OURS) and not row["errors"][what] <= limit:
            row["wrong"][what] = f"an error of {row['errors'][what]:.1e}, expected {limit:.1e}"

    for what, compiled in ways(case, row, model, x, runs).items():
        if case.is_called():
            row["unfinished"] = f"there was no time for {what}"
            break
        with attempt(case, row, what):
            run = compiled()
            check(f"{what}, first call", run())
            for _ in range(3):
                y = run()
            check(what, y)
            runs[what] = run
    return runs


def ways(
    case: Case, row: dict[str, Any], model: Any, x: Any, runs: dict[str, Run]
) -> dict[str, Callable[[], Run]]:
    """How to compute a batch: what compiles each way, the one that matters most first."""
    import torch

    def ours() -> Run:
        compiled, backend = case.compiled(model, dynamic=False)
        compiled(x)
        row["PyTorch's"] = [str(site) for site in backend.sites if site.plan is None]
        row["sites"] = [str(site) for site in backend.sites if site.plan is not None]
        return lambda: compiled(x)

    def reduced() -> Run:
        compiled, _ = case.compiled(model, dynamic=False, mode="reduce-overhead")
        return lambda: compiled(x)

    def theirs(mode: str) -> Run:
        compiled = torch.compile(model, dynamic=False, mode=mode)
        return lambda: compiled(x)

    return {
        "eager": lambda: lambda: model(x),
        OURS: ours,
        f"{OURS}, CUDA graph": lambda: captured(runs[OURS]),
        "torch.compile, reduce-overhead": lambda: theirs("reduce-overhead"),
        f"{OURS}, reduce-overhead": reduced,
        "torch.compile": lambda: theirs("default"),
    }


def captured(run: Run) -> Run:
    """A CUDA graph of one's own: calls replay it and give its output."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()

    def replay() -> Any:
        graph.replay()
        return y

    return replay


def check_more(case: Case) -> None:
    """What does not depend on the size of a model: streams, other inputs, batches and weights."""
    check_streams(case)
    check_replays(case)
    check_batches(case)
    check_forms(case)


def check(case: Case, what: str, model: Any, x: Any, found: Any) -> None:
    """Compare a result for the first batch's row."""
    row, limit = case.row(1), PRECISIONS[case.precision]
    row["errors"][what] = error(found, exact(model, x))
    if not row["errors"][what] <= limit:
        row["wrong"][what] = f"an error of {row['errors'][what]:.1e}, expected {limit:.1e}"


def check_streams(case: Case) -> None:
    """A stream of one's own, which the weights are copied on too, and nobody who waits."""
    import torch

    with attempt(case, case.row(1), f"{OURS}, a stream of one's own"):
        model, x = case.model(), case.images(1)
        ours, _ = case.compiled(model)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = [ours(x).clone() for _ in range(3)]
        torch.cuda.current_stream().wait_stream(side)
        for i, y in enumerate(found):
            check(case, f"stream, call {i}", model, x, y)
    with attempt(case, case.row(1), f"{OURS}, no synchronisation"):
        torch.cuda.set_sync_debug_mode("error")
        try:
            ours(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def check_replays(case: Case) -> None:
    """Other input and other weights for what was captured, by us or by Inductor."""
    with attempt(case, case.row(1), f"{OURS}, other input and weights in a CUDA graph"):
        model, x = case.model(), case.images(1)
        ours, _ = case.compiled(model)
        ours(x)
        replay = captured(lambda: ours(x))
        x.copy_(case.images(1, seed=1))
        check(case, "graph, other input", model, x, replay())
        change(model)
        ours(x)  # packs the changed weights where the graph reads them
        check(case, "graph, other weights", model, x, replay())
    with attempt(case, case.row(1), f"{OURS}, other input and weights in reduce-overhead"):
        model = case.model()
        ours, _ = case.compiled(model, dynamic=False, mode="reduce-overhead")
        for seed in range(4):
            x = case.images(1, seed)
            check(case, f"reduce-overhead, input {seed}", model, x, ours(x).clone())
        change(model)
        check(case, "reduce-overhead, other weights", model, x, ours(x).clone())


def check_batches(case: Case) -> None:
    """One graph for batches of any size, in slices of what is compiled."""
    import torch

    for mode in (None, "reduce-overhead"):
        with attempt(case, case.row(1), f"{OURS}, a dynamic batch, {mode}"):
            model = case.model()
            ours, backend = case.compiled(model, mode=mode)
            for n in (2, 5, 3, 2, 5, 5):
                x = case.images(n)
                torch._dynamo.mark_dynamic(x, 0)
                check(case, f"batch {n}, {mode}", model, x, ours(x).clone())
            case.row(1)[f"graphs of a dynamic batch, {mode}"] = backend.graphs


def check_forms(case: Case) -> None:
    """The registered name, fp16 in both memory formats, autocast."""
    import torch

    with attempt(case, case.row(1), f"{OURS}, by its name"):
        model, x = case.model(), case.images(3)
        ours = torch.compile(model, backend="convtvm", options={"logs": case.logs})
        check(case, "by its name", model, x, ours(x))
    if case.precision == "fp16":
        with attempt(case, case.row(1), f"{OURS}, contiguous"):
            model = case.model().to(memory_format=torch.contiguous_format)
            x = case.images(1).contiguous()
            check(case, "contiguous", model, x, case.compiled(model)[0](x))
    if case.precision == "tf32":
        with attempt(case, case.row(1), f"{OURS}, autocast"):
            model, x = case.model(), case.images(1)
            ours, backend = case.compiled(model)
            with torch.autocast("cuda", torch.float16):
                y = ours(x)
            check(case, "autocast", model, x, y)
            left = [str(site) for site in backend.sites if site.plan is None]
            case.row(1)["PyTorch's under autocast"] = left


def change(model: Any) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


def measure(runs: dict[str, Run], row: dict[str, Any]) -> None:
    """Milliseconds of a call and the wait for its end, by the host's clock, in turn; and of the
    device alone, which tells the two apart."""
    import torch

    from convtvm.measure.gpu_timing import stopwatch

    secs: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(REPEATS + 3):
        for name, run in runs.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if repeat >= 3:
                secs[name].append(time.perf_counter() - started)
    row["ms"] = {name: round(1e3 * statistics.median(s), 4) for name, s in secs.items()}
    others = [ms for name, ms in row["ms"].items() if not name.startswith(OURS)]
    own = [ms for name, ms in row["ms"].items() if name.startswith(OURS)]
    if own and others:
        row["times the best of PyTorch's"] = round(min(others) / min(own), 3)
    taken = stopwatch().time(runs, REPEATS // 3)
    row["device ms"] = {n: round(1e3 * statistics.median(s), 4) for n, (s, _) in taken.items()}
    row["host in the way"] = [name for name, (_, late) in taken.items() if late]


def run_case(model: str, precision: str, log: Path, rows: Path) -> None:
    import torch

    case, compiled = Case(model, precision, log, rows), dict[int, dict[str, Run]]()
    torch._dynamo.config.recompile_limit = 64  # all models of a process share their code
    with torch.no_grad():
        for n in MODELS[model]:
            compiled[n] = compare(case, n)
        if model == "blocks" and not case.is_called():
            check_more(case)
        torch.cuda.synchronize()
        case.save(ready=True)
        if not sys.stdin.readline():  # there is no time to measure
            return
        for n, runs in compiled.items():
            with attempt(case, case.row(n), "measure"):
                measure(runs, case.row(n))


if __name__ == "__main__":
    run_case(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
