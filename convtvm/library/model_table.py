"""What a model library holds, as a text for readers other than Python: `steps.tsv`.

Fields are separated by tabs. The file has a section for each target, the best first:

    target  NAME  cpu_flags  threads  arena_bytes
    value   NUMBER  dtype  shape  place
    pack    LABEL  function  argument ...          once, when the model is loaded
    step    LABEL  function  argument ...          in this order
    input   NAME  NUMBER
    output  NAME  NUMBER

Shapes are as 1x3x224x224, or `scalar`; CPU flags as /proc/cpuinfo calls them, with commas. A place
is `input`, `output` (memory of the caller), `arena OFFSET`, `file OFFSET` (in the model library),
`packed`, `alias NUMBER`, or `none` for a value that is not used. An argument is the number of a
value, or a float32 number with a point, an exponent or `inf` in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from convtvm.dispatch.model_file import ModelContent, weight_offsets
from convtvm.dispatch.model_manifest import Call, ModelManifest
from convtvm.machine.cpu import required_flags


def table(content: ModelContent) -> str:
    """The text of `steps.tsv`."""
    offsets = weight_offsets(content)
    lines = [line for manifest in content.targets for line in _section(manifest, offsets)]
    return "".join("\t".join(fields) + "\n" for fields in lines)


def _section(m: ModelManifest, offsets: list[int]) -> Iterator[list[str]]:
    flags = ",".join(required_flags(m.features))
    yield ["target", m.target, flags, str(m.threads), str(m.arena_bytes)]
    for number, value in enumerate(m.values):
        shape = "x".join(map(str, value.shape)) or "scalar"
        yield ["value", str(number), value.dtype, shape, _place(m, number, offsets)]
    for kind, calls in (("pack", m.packs), ("step", m.steps)):
        for call in calls:
            yield [kind, _plain(call.label), call.function, *_arguments(call)]
    for kind, named in (("input", m.inputs), ("output", m.outputs)):
        for name, number in named.items():
            yield [kind, _plain(name), str(number)]


def _place(m: ModelManifest, number: int, offsets: list[int]) -> str:
    if number in m.aliases:
        return f"alias {m.root(number)}"
    if number in m.constants:
        return f"file {offsets[m.constants[number]]}"
    if number in m.offsets:
        return f"arena {m.offsets[number]}"
    if number in m.packed:
        return "packed"
    if number in m.inputs.values():
        return "input"
    return "output" if number in m.written else "none"


def _arguments(call: Call) -> Iterator[str]:
    for argument in call.arguments:
        yield str(argument) if isinstance(argument, int) else repr(argument)


def _plain(text: str) -> str:
    return " ".join(text.split())
