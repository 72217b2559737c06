"""Small hand-made programs of models, and a library of them that tests share."""

from __future__ import annotations

from functools import cache

import numpy as np
from tvm import te, tirx

from convtvm.dispatch.model import Model
from convtvm.dispatch.model_file import ModelContent
from convtvm.kernels.task import Task
from convtvm.machine.targets import CompileTarget, resolve
from convtvm.measure.client import Zygote
from convtvm.models.building import assemble
from convtvm.models.program import ConvKernel, PackKernel, Program, Step, Tensor
from convtvm.problem.reference import conv2d_reference, random_inputs
from convtvm.problem.workload import ConvWorkload

W = ConvWorkload.parse("mb1ic5ih9oc7oh9kh3ph1")
TARGET = resolve("avx2", 1)


def elementwise(shape: tuple[int, ...]) -> tirx.PrimFunc:
    """x -> max(x, 0), in one parallel loop."""
    x = te.placeholder(shape, name="x")
    return te.create_prim_func(
        [x, te.compute(shape, lambda *i: te.max(x(*i), 0.0), name="out")],
    )


def sound(target: CompileTarget = TARGET) -> Program:
    """x, r -> bounded(conv(x) + r), the weight packed at load; `again` has another shape."""
    task = Task(W, "direct", target, epilogue="add")
    _, weight, bias = random_inputs(W, 0, kind="integer")
    shapes = [W.data_shape(), W.weight_shape, (W.oc,), task.packed_shape(), W.out_shape()]
    values = [*map(Tensor, shapes), *[Tensor(W.out_shape())] * 2, Tensor((W.oc, W.oh * W.ow))]
    return Program(
        values=values,
        inputs={"x": 0, "r": 5},
        outputs={"y": 6, "again": 7},
        constants={1: weight, 2: bias},
        packs=[Step("pack", "pack", (1,), (3,))],
        steps=[
            Step("conv", "conv", (0, 3, 2, 0.0, 6.0, 5), (4,)),
            Step("relu", "relu", (4,), (6,)),
        ],
        functions={
            "conv": ConvKernel(task, task.space.default),
            "pack": PackKernel(task),
            "relu": elementwise(W.out_shape()),
        },
        aliases={7: 6},
    )


@cache
def content() -> ModelContent:
    """The library of `sound` for two targets, made once."""
    both = [(sound(t), t) for t in (TARGET, resolve("llvm -mcpu=x86-64-v2", 1))]
    with Zygote() as zygote:
        return assemble(both, zygote, facts={"source": "sound"})


def model() -> Model:
    return Model(content())


def inputs(seed: int = 1, batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers for `sound`, as many batches of them."""
    random = np.random.default_rng(seed)
    shapes = (W.data_shape(), W.out_shape())
    made = [random.integers(-3, 4, (batch * s[0], *s[1:])).astype(np.float32) for s in shapes]
    return made[0], made[1]


def expected(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """What `sound` computes for one batch, exactly."""
    _, weight, bias = random_inputs(W, 0, kind="integer")
    return np.clip(conv2d_reference(W, x, weight, bias) + r, 0, 6).astype(np.float32)
