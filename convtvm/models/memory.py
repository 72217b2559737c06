"""Where the values of a program lie: one arena for all, in which those share memory that are never
needed at the same time."""

from __future__ import annotations

from convtvm.models.program import Program

ALIGNMENT = 64  # bytes


def plan(program: Program) -> tuple[dict[int, int], int]:
    """Offsets in bytes of the values that need memory of the arena, and its size.

    Inputs, constants, packed weights and aliases have memory of their own or another's, and outputs
    that a step writes are the caller's. Values are placed from the largest to the smallest, each
    into the smallest gap among those already placed that live at the same time.
    """
    lives = _lives(program)
    order = sorted(lives, key=lambda v: (-_size(program, v), lives[v]))
    placed: list[tuple[int, int, int]] = []  # offset, end, value
    offsets: dict[int, int] = {}
    for value in order:
        size = _size(program, value)
        taken = sorted((o, e) for o, e, v in placed if _meet(lives[v], lives[value]))
        offset = _best_gap(taken, size)
        placed.append((offset, offset + size, value))
        offsets[value] = offset
    return dict(sorted(offsets.items())), max((end for _, end, _ in placed), default=0)


def _lives(program: Program) -> dict[int, tuple[int, int]]:
    """The first and the last step that uses each value of the arena."""
    elsewhere = {*program.inputs.values(), *program.constants}
    elsewhere |= {program.root(v) for step in program.packs for v in step.outputs}
    elsewhere |= {program.root(v) for v in program.outputs.values()}
    lives: dict[int, tuple[int, int]] = {}
    for index, step in enumerate(program.steps):
        for value in map(program.root, (*step.reads, *step.outputs)):
            if value not in elsewhere:
                lives[value] = (lives.get(value, (index, index))[0], index)
    return lives


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _best_gap(taken: list[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap between the spans `taken`, in order, that holds `size` bytes;
    the end of the last span if none does."""
    best, smallest, end = -1, -1, 0
    for start, stop in taken:
        gap = start - end
        if gap >= size and (best < 0 or gap < smallest):
            best, smallest = end, gap
        end = max(end, stop)
    return best if best >= 0 else end


def _size(program: Program, value: int) -> int:
    return -(-program.values[value].bytes // ALIGNMENT) * ALIGNMENT
