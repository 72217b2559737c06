"""`bench` on the emulated GPU, PyTorch's kernels on the CPU in the place of cuDNN's.

python -m emulator.benching LAYOUT DTYPE [MAX_ERROR...]
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import convtvm
from convtvm.cli.gpu_benching import document, print_rows
from convtvm.compare.gpu_bench import bench

layout, dtype, *limits = sys.argv[1:]
texts = ('mb1ic5ih8oc8oh4kh3sh2ph1n"strided"', 'mb2ic4ih7oc8oh5kh3n"plain"')
workloads = [replace(convtvm.ConvWorkload.parse(text), dtype=dtype) for text in texts]
library = convtvm.compile(
    workloads,
    target="cuda:sm_90",
    logs=[],
    layout=layout,
    keep="all",
    algorithms=["direct", *(["direct:tf32"] if limits else [])],
)
documents = []
for limit in map(float, limits) if limits else [None]:
    rows = list(bench(library, True, 3, limit, device="cpu"))
    print_rows("emulated", rows)
    documents.append(document(rows))
print(json.dumps(documents))
