"""The four built-in networks as files, for `convtvm bench FILE`: random weights, static shapes.

    python scripts/figures/write_networks.py FOLDER [NETWORK ...] [--batch N] [--size 224] [--onnx]

Writes FOLDER/resnet18.pt2 and so on, with --batch 8 FOLDER/resnet18-b8.pt2; with --onnx the same
as .onnx files too. The weights are the same at every run. `bench` of a .pt2 file has PyTorch among
the peers, which reads no ONNX, and exports the file for the others itself.

Quoted by docs/speed.md.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sheet import Sheet, main, parser_of  # noqa: E402

from convtvm.errors import SourceError  # noqa: E402

NETWORKS = ("resnet18", "resnet50", "vgg16", "mobilenet_v2")


def write(name: str, folder: Path, batch: int, size: int, as_onnx: bool) -> list[Path]:
    """The files of one network."""
    import torch
    from torch_models import build

    model, example = build(name), torch.zeros(batch, 3, size, size)
    stem = name if batch == 1 else f"{name}-b{batch}"
    made = [folder / f"{stem}.pt2"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (example,)), made[0])
        if as_onnx:
            made.append(folder / f"{stem}.onnx")
            names = {"input_names": ["x"], "output_names": ["y"]}
            torch.onnx.export(model, (example,), made[1], dynamo=False, opset_version=17, **names)
    return made


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--onnx", action="store_true", help="write ONNX files as well")
    return parser


def figures(options: argparse.Namespace, sheet: Sheet) -> None:
    """Write the files and say where."""
    unknown = sorted(set(options.networks) - set(NETWORKS))
    if unknown:
        raise SourceError(f"unknown network {unknown[0]}, expected some of {', '.join(NETWORKS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.networks or NETWORKS:
        for path in write(name, options.folder, options.batch, options.size, options.onnx):
            sheet.found[str(path)] = path.stat().st_size
            print(path, f"{path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main(arguments().parse_args(), figures)
