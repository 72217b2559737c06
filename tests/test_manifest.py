"""The library file: image, manifest, checksum. No damage goes unnoticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from convtvm.dispatch import manifest
from convtvm.dispatch.manifest import FORMAT, Kernel, Manifest
from convtvm.errors import LibraryError
from convtvm.problem.workload import ConvWorkload

IMAGE = b"\x7fELF" + bytes(range(256)) * 4
KEY = ConvWorkload.parse("mb1ic8ih6oc8oh6kh3ph1").key
KERNEL = Kernel(KEY, "direct", "conv_0", "pack_0", (1, 2, 3), 4096, 1.5e-3, 1e-7, "tuned")
MANIFEST = Manifest(
    target="llvm -mcpu=haswell",
    features=("avx2", "fma"),
    threads=2,
    layout="NHWC",
    workloads={KEY: "first é"},
    kernels=[KERNEL, replace(KERNEL, run_secs=None, max_error=None, decisions="default")],
    versions={"convtvm": "0.1.0"},
)


def sealed(text: bytes, image: bytes = IMAGE) -> bytes:
    """A file whose checksum fits, whatever its manifest says."""
    length = len(text).to_bytes(8, "little")
    return image + text + hashlib.sha256(image + text).digest() + length + b"convtvm-library\x01"


def edited(format: Any = FORMAT, **changes: Any) -> bytes:
    """The JSON with other fields of its first target."""
    entry = {"format": format, "targets": [{**asdict(MANIFEST), **changes}, asdict(MANIFEST)]}
    return json.dumps(entry).encode("utf8")


def refused(path: Path, content: bytes) -> str:
    """The message with which this file is refused."""
    path.write_bytes(content)
    with pytest.raises(LibraryError) as caught:
        manifest.read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_round_trip(tmp_path: Path) -> None:
    other = replace(MANIFEST, target="llvm -mcpu=other", kernels=[])
    content = manifest.attach(IMAGE, [MANIFEST, other])
    assert content.startswith(IMAGE)
    (tmp_path / "x.so").write_bytes(content)
    whole, (found, second) = manifest.read(tmp_path / "x.so")
    assert whole == content and second == other
    assert (asdict(found), type(found.features)) == (asdict(MANIFEST), tuple)
    assert [type(k.packed_shape) for k in found.kernels] == [tuple, tuple]
    assert manifest.attach(IMAGE, [found, second]) == content


def test_empty_library(tmp_path: Path) -> None:
    empty = replace(MANIFEST, workloads={}, kernels=[], features=())
    (tmp_path / "x.so").write_bytes(manifest.attach(b"", [empty]))
    assert manifest.read(tmp_path / "x.so") == (manifest.attach(b"", [empty]), [empty])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x7fELF" * 100,
        b"convtvm-library\x01",
        manifest.attach(IMAGE, [MANIFEST]) + b"\n",
    ],
    ids=["empty", "text", "another library", "magic only", "something appended"],
)
def test_foreign_file(tmp_path: Path, content: bytes) -> None:
    assert "is not a convtvm library, or is cut short" in refused(tmp_path / "x.so", content)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    content = manifest.attach(IMAGE, [MANIFEST])
    for length in range(0, len(content), 7):
        refused(tmp_path / "x.so", content[:length])
        refused(tmp_path / "x.so", content[length + 1 :])


def test_every_change_is_noticed(tmp_path: Path) -> None:
    content = manifest.attach(IMAGE, [MANIFEST])
    checked = len(content) - len(b"convtvm-library\x01") - 8  # the length follows
    for at in [*range(0, checked, 11), *range(checked - 32, checked + 8)]:
        changed = bytearray(content)
        changed[at] ^= 1
        message = refused(tmp_path / "x.so", bytes(changed))
        assert at >= checked or "is damaged: its checksum does not match" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (edited(format=FORMAT + 1), f"manifest format {FORMAT + 1}, this version reads {FORMAT}"),
        (edited(format="x", novelty=1), "manifest format 'x', this version reads"),
        (b'{"target": "llvm"}', "manifest format None, this version reads"),
        (b"{", "unreadable manifest"),
        (b"\xff\xfe", "unreadable manifest"),
        (b"[1]", "unreadable manifest"),
        (b"null", "unreadable manifest"),
        (b"[" * 100_000, "unreadable manifest"),
        (edited(novelty=1), "unreadable manifest"),
        (edited(kernels=[{"workload": KEY}]), "unreadable manifest"),
        (edited(kernels=None), "unreadable manifest"),
        (edited(features=None), "unreadable manifest"),
        (edited(workloads={"nonsense": ""}), "unreadable manifest"),
        (b'{"format": 1, "target": "llvm"}', "manifest format 1, this version reads 2; compile it"),
        (b'{"format": 2}', "unreadable manifest"),
        (b'{"format": 2, "targets": []}', "there is no target"),
        (b'{"format": 2, "targets": {"llvm": 1}}', "unreadable manifest"),
    ],
)
def test_unreadable_manifest(tmp_path: Path, text: bytes, reason: str) -> None:
    assert reason in refused(tmp_path / "x.so", sealed(text))


@pytest.mark.parametrize("length", [0, 2**63, len(IMAGE) + 10_000])
def test_length_that_does_not_fit(tmp_path: Path, length: int) -> None:
    body = IMAGE + edited()
    tail = hashlib.sha256(body).digest() + length.to_bytes(8, "little") + b"convtvm-library\x01"
    refused(tmp_path / "x.so", body + tail)


@pytest.mark.parametrize("path", ["no.so", ".", "file/x.so", "/dev/zero"])
def test_unreadable_file(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LibraryError, match="cannot read library"):
        manifest.read(tmp_path / path)
