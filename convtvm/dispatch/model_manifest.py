"""What a model library holds for one target: a list of calls over numbered values in one arena.

Written by the compiler of models, checked when it is read: the run time trusts every number here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

DTYPES = (
    *("float32", "float64", "float16", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)


@dataclass(frozen=True)
class Value:
    """Dtype and shape of a value; contiguous, in C order."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Call:
    """A call of a function; arguments are values (int) and scalars (float)."""

    label: str
    function: str
    arguments: tuple[int | float, ...]


@dataclass(frozen=True)
class FunctionFacts:
    """Bytes of scratch memory that a call allocates for itself; in words, what it computes."""

    workspace_bytes: int
    about: str = ""


@dataclass(frozen=True)
class ModelManifest:
    """A model for one target.

    `values` by number. Where the memory of one is: in `constants` (value -> index among the file's
    weights), in `offsets` (value -> bytes from the start of the arena), made by `packs` when the
    model is loaded (`packed`), the caller's (`inputs`, and those `outputs` that have no other
    place), or in `aliases` the memory of another value. A `batched` model takes multiples of its
    batch, the first axis of all inputs and outputs. `facts` say where the model comes from and how
    far it was found from it.
    """

    target: str
    features: tuple[str, ...]
    threads: int
    values: Sequence[Value]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    constants: Mapping[int, int]
    packed: tuple[int, ...]
    offsets: Mapping[int, int]
    arena_bytes: int
    aliases: Mapping[int, int]
    packs: Sequence[Call]
    steps: Sequence[Call]
    functions: Mapping[str, FunctionFacts]
    batched: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return False

    def root(self, value: int) -> int:
        """The value whose memory `value` is, itself if it is no alias."""
        while value in self.aliases:
            value = self.aliases[value]
        return value

    @cached_property
    def written(self) -> dict[int, str]:
        """The outputs that steps write into the caller's memory, by number; of several names for
        one memory the first."""
        kept = {*self.constants, *self.packed, *self.offsets, *self.inputs.values()}
        found: dict[int, str] = {}
        for name, value in self.outputs.items():
            root = self.root(value)
            if root not in kept:
                found.setdefault(root, name)
        return found

    @property
    def batch(self) -> int | None:
        """The batch that a call may bring a multiple of."""
        return self.values[next(iter(self.inputs.values()))].shape[0] if self.batched else None

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of the step that needs most; the calling thread keeps it."""
        used = (self.functions[step.function].workspace_bytes for step in self.steps)
        return max(used, default=0)

    @property
    def packed_bytes(self) -> int:
        return sum(self.values[v].bytes for v in self.packed)


def to_json(manifest: ModelManifest) -> dict[str, Any]:
    """As JSON has it: scalars are texts, so that they are told from values and may be infinite."""
    entry = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}
    entry["values"] = [[v.dtype, *v.shape] for v in manifest.values]
    for kind in ("packs", "steps"):
        entry[kind] = [[c.label, c.function, *map(_written, c.arguments)] for c in entry[kind]]
    entry["functions"] = {name: asdict(facts) for name, facts in manifest.functions.items()}
    return entry


def from_json(entry: Mapping[str, Any], weights: Sequence[int]) -> ModelManifest:
    """The manifest of an entry, `weights` being the sizes of the file's weights in bytes.

    Raises ValueError, TypeError, KeyError, IndexError or AttributeError for anything that is not
    one.
    """
    made: dict[str, Any] = dict(entry)
    made["values"] = [Value(_text(v[0]), tuple(v[1:])) for v in made["values"]]
    for kind in ("packs", "steps"):
        made[kind] = [
            Call(_text(c[0]), _text(c[1]), tuple(map(_argument, c[2:]))) for c in made[kind]
        ]
    for kind in ("constants", "offsets", "aliases"):
        made[kind] = {int(key): _count(value) for key, value in made[kind].items()}
    made["packed"], made["features"] = tuple(made["packed"]), tuple(made["features"])
    made["functions"] = {
        name: FunctionFacts(_count(facts["workspace_bytes"]), _text(facts["about"]))
        for name, facts in made["functions"].items()
    }
    manifest = ModelManifest(**made)
    for complaint in _complaints(manifest, weights):
        raise ValueError(complaint)
    return manifest


def _written(argument: int | float) -> int | str:
    return argument if isinstance(argument, int) else repr(float(argument))


def _argument(text: Any) -> int | float:
    return float(text) if isinstance(text, str) else _count(text)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"found {str(value)[:40]!r} where a number belongs")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"found {str(value)[:40]!r} where a text belongs")
    return value


def _complaints(m: ModelManifest, weights: Sequence[int]) -> Iterable[str]:
    """What is wrong, in an order in which each check may rely on those before it."""
    if not all(map(_is_text, (m.target, *m.features))) or not _count(m.threads):
        yield "target, features or threads are malformed"
    if type(m.batched) is not bool or not isinstance(m.facts, Mapping):
        yield "batched or facts are malformed"
    for value in m.values:
        if value.dtype not in DTYPES or not all(type(e) is int and e > 0 for e in value.shape):
            yield f"a value is {value}"
    yield from _about_memory(m, weights)
    ends = [m.values[v].shape[:1] for v in (*m.inputs.values(), *m.outputs.values())]
    if m.batched and (not m.inputs or () in ends or len(set(ends)) > 1):
        yield "inputs and outputs share no first axis"
    placed = {*m.constants, *m.packed, *m.offsets, *m.inputs.values(), *m.written}
    for call in (*m.packs, *m.steps):
        if call.function not in m.functions:
            yield f"{call.label} calls {call.function!r}, which is not there"
        for argument in call.arguments:
            if isinstance(argument, int) and m.root(argument) not in placed:
                yield f"{call.label} uses value {argument}, which has no memory"


def _about_memory(m: ModelManifest, weights: Sequence[int]) -> Iterable[str]:
    """Whether every number of a value is one, and no memory ends too early."""
    named = (*m.inputs.values(), *m.outputs.values(), *m.packed)
    for value in (*named, *m.constants, *m.offsets, *m.aliases, *m.aliases.values()):
        if _count(value) >= len(m.values):
            yield f"there is no value {value}"
    for start in m.aliases:
        value, steps = start, 0
        while value in m.aliases and steps <= len(m.aliases):
            value, steps = m.aliases[value], steps + 1
        if steps > len(m.aliases) or m.values[start].bytes != m.values[value].bytes:
            yield f"value {start} is no alias of {m.aliases[start]}"
    for value, index in m.constants.items():
        if index >= len(weights) or m.values[value].bytes > weights[index]:
            yield f"value {value} is not weight {index}"
    for value, offset in m.offsets.items():
        if offset + m.values[value].bytes > _count(m.arena_bytes):
            yield f"value {value} is not within the arena"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
