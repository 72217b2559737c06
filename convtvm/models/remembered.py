"""`compile_model`: the model that the same file and options made before, or a new one.

Imports no compiler: a model that is remembered is there in the time that it takes to read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtvm.dispatch import model_file
from convtvm.dispatch.model import Model
from convtvm.errors import LibraryError
from convtvm.library.cache import Cache, key_of, open_cache
from convtvm.library.remembered import log_digests, place

if TYPE_CHECKING:
    from convtvm.machine.targets import CompileTarget

# How an ONNX file begins to say where a weight is that it does not hold itself.
_WEIGHTS_BESIDE = b"\x0a\x08location"
_LARGEST_FILE = 1 << 31  # that is read whole


def compile_model(
    model: Any,
    example: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str | CompileTarget | Sequence[str | CompileTarget] = "native",
    threads: int | None = None,
    logs: Iterable[str | Path] | None = None,
    workspace_limit: int | None = None,
    max_error: float | None = None,
    batched: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Model:
    """Compile a whole network: an .onnx or .pt2 file, an ExportedProgram, or a PyTorch module that
    takes `example`, a tensor or a tuple of them.

    `shapes` pins inputs whose sizes a file leaves open. `target`, `threads` and `logs` are as of
    `convtvm.compile`. Kernels need at most `workspace_limit` bytes and have at most `max_error`,
    and so has the model against the original, which it is compared with: on `example`, or random
    inputs; `facts` of the result hold the difference. `batched` lets calls bring multiples of the
    batch that the shapes say. `progress` is told of functions compiled and functions in all.

    Raises ModelError for a file that is damaged, lacks a shape, or has an operator that cannot be
    compiled; NoCandidate for limits that a layer cannot keep; BuildError for a kernel that does not
    compile, or a result that is not the original's, naming the first operator that differs.
    """
    pinned = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    limits = {"workspace_limit": workspace_limit, "max_error": max_error}
    key, cache = None, open_cache()
    paths = list(logs) if isinstance(logs, Iterable) and not isinstance(logs, str) else logs
    if example is None and cache.folder is not None:
        key = _key(model, target, threads, paths, {**limits, "shapes": pinned, "batched": batched})
    found = _remembered(cache, key)
    if found is not None:
        return found
    from convtvm.models.compiling import compile_anew  # imports TVM

    made = compile_anew(model, example, pinned, target, threads, paths, limits, batched, progress)
    if key and not made.problems:
        size = made.content.weight_bytes + len(made.content.image)
        cache.add(key, size, made.export)
        cache.sweep()
    return made


def _remembered(cache: Cache, key: str | None) -> Model | None:
    """What an earlier call, of any process, made of the same file."""
    path = cache.find(key) if key else None
    if path is None:
        return None
    try:
        return Model(model_file.read(path))
    except LibraryError:
        return None


def _key(
    model: Any, target: Any, threads: Any, logs: Any, options: Mapping[str, Any]
) -> str | None:
    """What a compiled file depends on; None for what is not remembered."""
    if not isinstance(model, (str, Path)):
        return None
    where, read, path = place(target, threads), log_digests(logs), Path(model)
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    if where is None or read is None or _WEIGHTS_BESIDE in content:
        return None
    digest = hashlib.sha256(content).hexdigest()
    return key_of(model=digest, name=path.name, place=where, logs=read, options=options)
