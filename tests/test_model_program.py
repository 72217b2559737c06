"""A model's program: what makes one sound, and what is said of each way not to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from programs import sound

from convtvm.errors import BuildError
from convtvm.models import memory
from convtvm.models.program import Program, Step, Tensor


def test_sound_program() -> None:
    program = sound()
    program.check()
    assert program.arguments(program.steps[0]) == [0, 3, 2, 4, 0.0, 6.0, 5]
    assert program.arguments(program.steps[1]) == [4, 6]
    assert program.root(7) == 6


def _step(index: int, **changes: object) -> Callable[[Program], None]:
    def change(program: Program) -> None:
        program.steps[index] = replace(program.steps[index], **changes)  # type: ignore[arg-type]

    return change


def _value(index: int, tensor: Tensor) -> Callable[[Program], None]:
    def change(program: Program) -> None:
        program.values[index] = tensor

    return change


UNSOUND: dict[str, tuple[Callable[[Program], None], str]] = {
    "dtype": (_value(4, Tensor((1,), "complex64")), "value 4 is complex64"),
    "empty": (_value(4, Tensor((1, 0))), r"value 4 has shape \(1, 0\)"),
    "constant": (
        lambda p: p.constants.update({2: np.ones(3, "float32")}),
        "constant 2 is float32 3, its value float32 7",
    ),
    "foreign constant": (
        lambda p: p.constants.update({9: np.ones(3)}),
        "constant 9: there are 8 values",
    ),
    "alias of other size": (lambda p: p.aliases.update({4: 0}), "value 4, .* is an alias of 0"),
    "circle": (lambda p: p.aliases.update({6: 7}), "value 7 is an alias of itself"),
    "alias of nothing": (lambda p: p.aliases.update({7: 8}), "alias 7 of 8"),
    "input is an alias": (lambda p: p.inputs.update({"z": 7}), "value 7 is an input .* alias"),
    "input twice": (lambda p: p.inputs.update({"z": 0}), "value 0 is more than one input"),
    "no output": (lambda p: p.outputs.clear(), "it has no output"),
    "foreign output": (lambda p: p.outputs.update({"z": 8}), "output 'z' is 8"),
    "output of nothing": (
        lambda p: (p.steps.pop(), p.outputs.pop("again"), None)[-1],
        "output 'y' is value 6, which nothing computes",
    ),
    "no function": (_step(1, function="tanh"), r"step 1 \(relu\): there is no function 'tanh'"),
    "no value": (_step(1, inputs=(8,)), r"step 1 \(relu\): uses value 8"),
    "too early": (lambda p: p.steps.reverse(), r"step 0 \(relu\): reads value 4 before"),
    "not packed": (lambda p: p.packs.clear(), r"step 0 \(conv\): reads value 3 before"),
    "packs an input": (
        lambda p: p.packs.append(Step("late", "relu", (5,), (4,))),
        r"pack 1 \(late\): reads value 5 before",
    ),
    "writes nothing": (_step(1, outputs=()), r"step 1 \(relu\): writes nothing"),
    "written twice": (
        lambda p: p.steps.append(Step("again", "relu", (4,), (6,))),
        r"step 2 \(again\): writes value 6, which is written by step 1 \(relu\) already",
    ),
    "writes an input": (
        _step(1, outputs=(5,)),
        r"step 1 \(relu\): writes value 5, which is an input or a constant",
    ),
    "too few": (_step(0, inputs=(0, 3, 2)), r"step 0 \(conv\): has 4 inputs .* has 7 parameters"),
    "order": (
        _step(0, inputs=(0, 2, 3, 0.0, 6.0, 5)),
        r"step 0 \(conv\): argument 1 of conv is float32 7, expected",
    ),
    "no scalar": (
        _step(0, inputs=(0, 3, 2, 0.0, 2, 5)),
        r"step 0 \(conv\): argument 5 of conv .* expected a number",
    ),
    "no tensor": (
        _step(1, inputs=(1.0,)),
        r"step 1 \(relu\): argument 0 of relu is a number, expected float32",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_programs_are_named(name: str) -> None:
    change, message = UNSOUND[name]
    program = sound()
    change(program)
    with pytest.raises(BuildError, match=f"^the program of the model is unsound: {message}"):
        program.check()


def _chain(lives: list[tuple[int, int]], sizes: list[int]) -> Program:
    """A program whose value i is written by step lives[i][0] and last read by step lives[i][1]."""
    count = 1 + max(end for _, end in lives)
    steps = [
        Step(
            str(step),
            "f",
            tuple(v for v, (begin, end) in enumerate(lives) if begin < step <= end),
            tuple(v for v, (begin, _) in enumerate(lives) if begin == step),
        )
        for step in range(count)
    ]
    return Program([Tensor((size,), "uint8") for size in sizes], {}, {}, steps=steps)


def test_memory_is_shared_but_not_at_the_same_time() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        begins = random.integers(0, 20, 30)
        lives = [(int(b), int(b + random.integers(0, 6))) for b in begins]
        sizes = [int(s) for s in random.integers(1, 5000, 30)]
        offsets, total = memory.plan(_chain(lives, sizes))
        assert sorted(offsets) == list(range(30))
        padded = [-(-s // memory.ALIGNMENT) * memory.ALIGNMENT for s in sizes]
        for a, (begin, end) in enumerate(lives):
            assert offsets[a] % memory.ALIGNMENT == 0 and offsets[a] + sizes[a] <= total
            for b in range(a):
                if begin <= lives[b][1] and lives[b][0] <= end:
                    apart = (
                        offsets[a] >= offsets[b] + sizes[b] or offsets[b] >= offsets[a] + sizes[a]
                    )
                    assert apart, (a, b)
        live = [
            sum(p for p, (begin, end) in zip(padded, lives, strict=True) if begin <= step <= end)
            for step in range(26)
        ]
        assert max(live) <= total <= 1.3 * max(live)


def test_memory_leaves_out_what_lies_elsewhere() -> None:
    """Of `sound` only the convolution's result is in the arena: the rest is the caller's."""
    assert memory.plan(sound()) == ({4: 0}, 2304)
