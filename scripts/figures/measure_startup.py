"""How long a fresh process takes to its first result, and how many bytes are deployed for it.

    python scripts/figures/measure_startup.py [--repeat N] [WORKLOAD]

Compiles WORKLOAD untuned, deploys it, and starts Python N times on the deployment folder with numpy
alone beside it. Shown are medians, in seconds: of the whole process from its start to its end, and
of its parts by its own clock. The first run, which writes Python's caches, does not count. ~ marks
noisy times; after one of the whole process, or of what follows numpy, the exit status is 3.

Quoted by docs/deploying.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sheet import MARK, Sheet, main, parser_of

import convtvm
from convtvm.library.deployment import deploy
from convtvm.measure.timing import Timing

CHILD = """
import time
marks = [("Python", 0.0), ("", time.perf_counter())]
import json, sys
import numpy as np
marks.append(("import numpy", time.perf_counter()))
import convtvm, tvm_ffi
marks.append(("import convtvm, tvm_ffi", time.perf_counter()))
library = convtvm.load(sys.argv[1])
marks.append(("load", time.perf_counter()))
w = library.workloads[0]
data, weight = np.ones(w.data_shape(), np.float32), np.ones(w.weight_shape, np.float32)
marks.append(("make arrays", time.perf_counter()))
plan = library.plan(w, weight)
marks.append(("plan", time.perf_counter()))
plan(data)
marks.append(("first call", time.perf_counter()))
print(json.dumps({name: t - before for (_, before), (name, t) in zip(marks[1:], marks[2:])}))
"""

TOLD = ("whole process", "numpy to the first result")  # of the parts, some of a millisecond


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("workload", nargs="?", default="mb1ic64ih56oc64oh56kh3ph1")
    parser.add_argument("--repeat", type=int, default=15)
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, site = Path(name) / "deployed", Path(name) / "site"
        built = Path(name) / "x.so"
        workload = convtvm.ConvWorkload.parse(options.workload)
        convtvm.compile([workload], threads=1, logs=[]).export(built)
        sizes = deploy(built, folder)
        site.mkdir()
        home = Path(np.__file__).parent
        for path in (home, home.with_name("numpy.libs")):
            if path.exists():
                (site / path.name).symlink_to(path)
        runs = [start(folder, site) for _ in range(options.repeat + 1)][1:]
    print(f"{workload}, {options.repeat} fresh processes, median seconds")
    for part in runs[0]:
        timing = Timing.of([r[part] for r in runs])
        mark = MARK if timing.is_noisy else " "
        if part in TOLD:
            mark = sheet.time(part, timing).mark
        sheet.found[part] = timing.seconds
        print(f"  {part:26}{timing.seconds:8.3f}{mark} ±{100 * timing.spread:.0f} %")
    sheet.found["bytes"] = sizes
    besides = sum(sizes.values()) - sizes["x.so"]
    print(f"bytes: library {sizes['x.so']:,}, besides {besides:,} (numpy and Python not counted)")
    for entry, size in sorted(sizes.items(), key=lambda e: -e[1]):
        print(f"  {entry:26}{size:12,}")


def start(folder: Path, site: Path) -> dict[str, float]:
    """Seconds of one process and of its parts."""
    env = dict(os.environ, PYTHONPATH=f"{folder}:{site}")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-S", "-c", CHILD, str(folder / "x.so")],
        env=env,
        cwd="/",
        capture_output=True,
        check=True,
    )
    whole = time.perf_counter() - started
    parts: dict[str, float] = json.loads(done.stdout)
    mine = sum(parts.values())
    return {"whole process": whole, "numpy to the first result": mine, **parts}


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
