"""What the machine code of hot CPU kernels consists of, against counts that are kept: a kernel that
became slower shows on a noisy machine too.

    python scripts/golden_counts.py              what differs
    python scripts/golden_counts.py --renew      keeps what is found now, for a change that is meant

For every kernel and target of `tests/golden/counts.json`, by the decisions that stand there: vector
multiply-adds, vector loads and stores, those of them on the stack (spilled registers, tiles that
LLVM could not keep in registers), floating-point operations on single elements, and all
instructions; of the whole kernel, and of its hottest loop, the innermost one of which multiply-adds
are the greatest share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import golden_files

from convtvm.kernels import codegen, lowering
from convtvm.kernels.task import Task
from convtvm.machine.targets import resolve
from convtvm.problem.workload import ConvWorkload

KEPT = golden_files.FOLDER / "counts.json"
TARGETS = ("avx2", "avx512", "aarch64")
KERNELS = (  # a layer of a network for each template, and the border in place
    ("direct", "mb1ic64ih56oc64oh56kh3ph1"),
    ("direct:inplace", "mb1ic64ih28oc64oh28kh3ph1"),
    ("direct:pointwise", "mb1ic64ih56oc256oh56kh1"),
    ("direct:depthwise", "g144mb1ic144ih56oc144oh56kh3ph1"),
    ("im2col", "mb1ic512ih7oc2048oh7kh1"),
    ("mec:b", "mb1ic64ih28oc128oh28kh3ph1"),
    ("winograd:2", "mb1ic512ih7oc512oh7kh3ph1"),
    ("winograd:4", "mb1ic64ih56oc64oh56kh3ph1"),
)
_MANY = 6  # multiply-adds of a loop that may be the hottest

_LABEL = re.compile(r"^(\.?L[\w.$]+):")
_X86_REGISTER, _ARM_REGISTER = re.compile(r"%[xyz]mm\d"), re.compile(r"\b[vqds]\d+\b")
_VECTOR = re.compile(r"%[yz]mm\d|\bv\d+\.|\bq\d+\b")


@dataclass(frozen=True)
class Instruction:
    """One line of assembly: AT&T's order of operands for x86, the destination last."""

    opcode: str
    operands: str

    def kinds(self) -> Iterator[str]:
        """What it counts as."""
        yield "instructions"
        if self.opcode in ("nop", "nopw", "nopl"):
            return
        arm = not self.operands.count("%")
        wide = bool(_VECTOR.search(self.operands)) or self.opcode.endswith(("ps", "pd"))
        if re.match(
            r"vfn?m(add|sub)\d+[ps]s|vfn?m(add|sub)\d+pd|fml[as]|fn?m(add|sub)$", self.opcode
        ):
            yield "fma" if wide else "scalar"
        elif re.match(r"v?(add|sub|mul|div)s[sd]$", self.opcode) or (
            arm and re.match(r"f(add|sub|mul|div)$", self.opcode) and not wide
        ):
            yield "scalar"
        memory = self._memory()
        if memory:
            yield memory
            if re.search(r"\(%r[sb]p|\[sp|\[x29", self.operands):
                yield "stack"

    def _memory(self) -> str:
        """`loads` or `stores` of vector registers, else empty."""
        if re.match(r"(ld|st)[r1p]", self.opcode) and "[" in self.operands:
            inside = _ARM_REGISTER.search(self.operands.partition("[")[0])
            return {"l": "loads", "s": "stores"}[self.opcode[0]] if inside else ""
        if "(" not in self.operands or not _X86_REGISTER.search(self.operands):
            return ""
        return "stores" if self.operands.rstrip().endswith(")") else "loads"


@dataclass(frozen=True)
class Counts:
    """Of a whole kernel, and of its hottest loop."""

    whole: Mapping[str, int]
    loop: Mapping[str, int]


def counts(assembly: str) -> Counts:
    """Those of all functions in a text of assembly."""
    lines, labels = [], {}
    for raw in assembly.splitlines():
        text = re.split(r"\s+#|//", raw, maxsplit=1)[0]
        label = _LABEL.match(text)
        if label:
            labels[label[1]] = len(lines)
        elif text[:1] in (" ", "\t") and text.strip() and not text.strip().startswith("."):
            opcode, _, operands = text.strip().partition("\t")
            if not operands:
                opcode, _, operands = text.strip().partition(" ")
            lines.append(Instruction(opcode, operands.strip()))
    loops = [
        (labels[target], at + 1)
        for at, line in enumerate(lines)
        for target in re.findall(r"\.?L[\w.$]+", line.operands)
        if re.match(r"j|b$|b\.|cbn?z|tbn?z", line.opcode) and labels.get(target, at + 1) <= at
    ]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]

    def density(span: tuple[int, int]) -> float:
        found = tally(lines[slice(*span)])
        return found["fma"] / found["instructions"] if found["fma"] >= _MANY else 0.0

    hottest = max(inner, key=density, default=(0, 0))
    return Counts(tally(lines), tally(lines[slice(*hottest)]))


def tally(lines: list[Instruction]) -> Counter[str]:
    return Counter(kind for line in lines for kind in line.kinds())


def assembly(task: Task, decisions: Mapping[str, int]) -> str:
    lowered = lowering.lower(task.instantiate(decisions), task.target.tvm)
    return str(codegen.compile_lowered(lowered, task.target.tvm).inspect_source("asm"))


def entry(target: str, algorithm: str, text: str, decisions: Any = None) -> dict[str, Any]:
    """What is kept of one kernel; without decisions, of its default ones."""
    task = Task(ConvWorkload.parse(text), algorithm, resolve(target, 1))
    chosen = dict(decisions or task.space.default)
    found = counts(assembly(task, chosen))
    return {
        "target": target,
        "algorithm": algorithm,
        "workload": text,
        "decisions": chosen,
        "whole": dict(sorted(found.whole.items())),
        "loop": dict(sorted(found.loop.items())),
    }


def differences(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Counts that differ by more than they may."""
    name = f"{kept['target']} {kept['algorithm']} {kept['workload']}"
    return [
        f"{name}: {line}"
        for part in ("whole", "loop")
        for line in golden_files.unlike(kept[part], found[part], f"the {part}")
    ]


def main() -> None:
    if golden_files.renews(__doc__):
        made = [entry(target, *kernel) for target in TARGETS for kernel in KERNELS]
        golden_files.keep(KEPT, made)
        return
    for kept in golden_files.read(KEPT):
        again = entry(kept["target"], kept["algorithm"], kept["workload"], kept["decisions"])
        for line in differences(kept, again):
            print(line)


if __name__ == "__main__":
    main()
