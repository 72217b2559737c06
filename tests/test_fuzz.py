"""Readers of untrusted bytes: whatever they are given, an answer or a refusal, and soon."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convtvm.dispatch import load, manifest
from convtvm.dispatch.manifest import FORMAT, Kernel, Manifest
from convtvm.errors import LibraryError
from convtvm.logs import records

FAST = settings(
    max_examples=200,
    deadline=None,  # a busy machine is no hang; pytest's own limit is
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MAGIC = b"convtvm-library\x01"
KERNEL = Kernel("mb1ic4ih4oc4kh3", "direct", "f", "p", (1, 4), 0, 1e-3, 1e-7, "tuned")
MANIFEST = Manifest("llvm", ("avx2",), 1, "NCHW", {KERNEL.workload: "x"}, [KERNEL])
LINE = records.TuningRecord(
    KERNEL.workload, "direct", "llvm", 1, "NCHW", "a CPU", {"tile": 3}, 1, [1e-3]
).to_line()

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def sealed(text: bytes, image: bytes = b"\x7fELF") -> bytes:
    """A library file with any bytes in the place of its manifest, and a right checksum."""
    body = image + text
    return body + hashlib.sha256(body).digest() + len(text).to_bytes(8, "little") + MAGIC


def refused_or_read(path: Path, content: bytes) -> Manifest | None:
    path.write_bytes(content)
    try:
        return manifest.read(path)[1][0]
    except LibraryError as error:
        assert "\n" not in str(error)
        return None


@FAST
@given(st.binary(max_size=300))
def test_any_bytes_as_a_library(tmp_path: Path, content: bytes) -> None:
    assert refused_or_read(tmp_path / "x.so", content) is None
    assert refused_or_read(tmp_path / "x.so", content + MAGIC) is None
    refused_or_read(tmp_path / "x.so", sealed(content))


@FAST
@given(st.data())
def test_damaged_libraries(tmp_path: Path, data: st.DataObject) -> None:
    """A flipped, missing or added byte anywhere is noticed."""
    good = manifest.attach(b"\x7fELF" + bytes(40), [MANIFEST])
    place = data.draw(st.integers(0, len(good) - 1))
    deed = data.draw(st.sampled_from(["flip", "cut", "drop", "add"]))
    byte = bytes([good[place] ^ data.draw(st.integers(1, 255))])
    damaged = {
        "flip": good[:place] + byte + good[place + 1 :],
        "cut": good[:place],
        "drop": good[:place] + good[place + 1 :],
        "add": good[:place] + byte + good[place:],
    }[deed]
    found = refused_or_read(tmp_path / "x.so", damaged)
    assert found is None


@FAST
@given(st.data())
def test_any_manifest(tmp_path: Path, data: st.DataObject) -> None:
    """One field of a sealed manifest or of its kernel is something else: refused, never run."""
    entry: dict[str, Any] = {
        "format": FORMAT,
        "targets": [json.loads(json.dumps(asdict(MANIFEST)))],
    }
    (target,) = entry["targets"]
    where = data.draw(st.sampled_from([entry, target, target["kernels"][0]]))
    where[data.draw(st.sampled_from(sorted(where)) | st.text(max_size=5))] = data.draw(values)
    file = tmp_path / "x.so"
    file.write_bytes(sealed(json.dumps(entry).encode()))
    with pytest.raises(LibraryError) as caught:  # at the latest for its machine or its image
        library = load(file)
        library.candidates(library.workloads[0])
    assert "\n" not in str(caught.value)


@FAST
@given(st.binary(max_size=200))
def test_any_bytes_as_a_log(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(LINE.encode() + b"\n" + content + b"\n" + LINE.encode() + b"\n")
    found, problems = records.load([file])
    assert len(found) >= 2 and len(found) + len(problems) <= 2 + content.count(b"\n") + 1


@FAST
@given(st.data())
def test_any_record(tmp_path: Path, data: st.DataObject) -> None:
    """One field is something else: used, or named with its line, never an exception."""
    entry = json.loads(LINE)
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(values)
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(entry) + "\n", encoding="utf8")
    found, problems = records.load([file])
    assert len(found) + len(problems) == 1
    for record in found:
        assert record.seconds > 0 and isinstance(record.identity, tuple)
        hash(record.task_key)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\xff\xfe"])
def test_deep_and_long_texts(tmp_path: Path, text: bytes) -> None:
    assert refused_or_read(tmp_path / "x.so", sealed(text)) is None
    file = tmp_path / "x.jsonl"
    file.write_bytes(text + b"\n")
    assert records.load([file])[0] == []
