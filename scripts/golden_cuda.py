"""What ptxas says of hot CUDA kernels, against what is kept: registers, spills and the size of the
code show a slower kernel where there is no GPU.

    python scripts/golden_cuda.py              what differs
    python scripts/golden_cuda.py --renew      keeps what is found now, for a change that is meant

For every kernel and architecture of `tests/golden/cuda.json`, by the decisions that stand there:
registers of a thread, bytes of its stack and of its spills, static shared bytes of a block, and
bytes of machine code. They hold for the release of CUDA that they are of; nvcc and NVRTC of one
release make the same.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import golden_files

from convtvm.kernels.cuda import codegen, cubin
from convtvm.kernels.task import Task
from convtvm.machine.cpu import physical_cores
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload

KEPT = golden_files.FOLDER / "cuda.json"
ARCHES = ("sm_80", "sm_90")
KERNELS = (  # a layer of a network for each template, on plain and on tensor cores
    ("direct", "NCHW", "mb1ic64ih56oc64oh56kh3ph1"),
    ("direct", "NHWC", "mb16ic64ih56oc64oh56kh3ph1f16"),
    ("direct", "NHWC", "mb16ic3ih224oc64oh112kh7sh2ph3f16"),
    ("direct", "NCHW", "mb16ic64ih56oc64oh56kh3ph1f16"),
    ("direct:depthwise", "NCHW", "g144mb1ic144ih56oc144oh56kh3ph1"),
    ("mec:b", "NCHW", "mb1ic64ih28oc128oh28kh3ph1"),
    ("winograd:4", "NCHW", "mb1ic64ih56oc64oh56kh3ph1"),
)
_CODE = ".text."  # begins the name of the section of a kernel's machine code


def release(compiler: cubin.Compiler) -> str:
    """The release of CUDA that a compiler is of, as 13.0."""
    if isinstance(compiler, cubin.Nvcc):
        command = [compiler.path, "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        said = compiler.identity
    found = re.search(r"(?:release|NVRTC) (\d+\.\d+)", said)
    return found[1] if found else "unknown"


def code_bytes(image: bytes) -> dict[str, int]:
    """Bytes of machine code of each kernel of a cubin, which is an ELF file of 64 bits."""
    (start,) = struct.unpack_from("<Q", image, 40)
    size, count, names_at = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, start + size * i) for i in range(count)]
    names = headers[names_at][4]

    def name(offset: int) -> str:
        return image[names + offset : image.index(b"\0", names + offset)].decode()

    sections = {name(header[0]): header[5] for header in headers}
    return {n.removeprefix(_CODE): b for n, b in sections.items() if n.startswith(_CODE)}


def entry(
    arch: str, algorithm: str, layout: str, text: str, decisions: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """What is kept of one function; without decisions, of its default ones."""
    return next(entries([(arch, algorithm, layout, text, decisions)]))


Asked = tuple[str, str, str, str, "Mapping[str, int] | None"]


def entries(asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """The same of several, compiled side by side."""
    compiler = cubin.find_compiler()
    known, sources = release(compiler), []
    for arch, algorithm, layout, text, decisions in asked:
        task = Task(ConvWorkload.parse(text), algorithm, resolve(f"cuda:{arch}"), layout)
        chosen = dict(decisions or task.space.default)
        func = task.instantiate(chosen)["main"]
        sources.append((codegen.generate(func, "main", task.target)[1].source, arch, chosen))
    with ThreadPoolExecutor(physical_cores()) as pool:
        made = pool.map(lambda s: cubin.compile_source(s[0], [s[1]], compiler), sources)
        for (arch, algorithm, layout, text, _), (_, _, chosen), image in zip(
            asked, sources, made, strict=True
        ):
            code = code_bytes(image.data)
            yield {
                "arch": arch,
                "algorithm": algorithm,
                "layout": layout,
                "workload": text,
                "decisions": chosen,
                "release": known,
                "kernels": {
                    name: {**asdict(figures), "code": code[name]}
                    for (name, _), figures in sorted(image.figures.items())
                },
            }


def again(kept: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What is found now of what is kept."""
    keys = ("arch", "algorithm", "layout", "workload", "decisions")
    return entries([tuple(each[key] for key in keys) for each in kept])  # type: ignore[misc]


def differences(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Figures that differ by more than they may, and kernels that came or went."""
    name = f"{kept['arch']} {kept['algorithm']} {kept['layout']} {kept['workload']}"
    before, now = kept["kernels"], found["kernels"]
    if set(before) != set(now):
        return [f"{name}: kernels {', '.join(before)} -> {', '.join(now)}"]
    return [
        f"{name}: {line}"
        for kernel in before
        for line in golden_files.unlike(before[kernel], now[kernel], kernel)
    ]


def main() -> None:
    if golden_files.renews(__doc__):
        golden_files.keep(
            KEPT, entries([(arch, *kernel, None) for arch in ARCHES for kernel in KERNELS])
        )
        return
    kept = golden_files.read(KEPT)
    for one, found in zip(kept, again(kept), strict=True):
        if one["release"] != found["release"]:
            raise SystemExit(
                f"kept is what CUDA {one['release']} makes, here is {found['release']}"
            )
        for line in differences(one, found):
            print(line)


if __name__ == "__main__":
    main()
