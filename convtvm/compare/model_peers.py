"""Other libraries running a whole model, set up as their authors would: fp32, converted beforehand.

A peer is a function of an Original -> callables without arguments by name, one for each setting
worth trying, that return the model's outputs in order. All but PyTorch take the ONNX file; PyTorch
takes the module of a .pt2 file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convtvm.compare.peers import Run
from convtvm.errors import ConvtvmError
from convtvm.measure.jobs import failure

_CONVERSION = 300.0  # seconds


@dataclass(frozen=True)
class Original:
    """A model for peers: an ONNX file with static shapes in a folder for what is made of it, the
    PyTorch module if it came from there, the inputs by name, the names of the outputs, threads, and
    why there is no such file, if so."""

    onnx: Path
    module: Any
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    threads: int
    problem: str = ""


ModelPeer = Callable[[Original], dict[str, Run]]


def torch_peer(original: Original) -> dict[str, Run]:
    """PyTorch: eager in both memory formats, and frozen by TorchScript and by torch.compile."""
    import torch

    if original.module is None:
        raise ConvtvmError("PyTorch reads no ONNX files; give a .pt2 file")
    torch.set_num_threads(original.threads)
    module = original.module
    inputs = [torch.from_numpy(array.copy()) for array in original.inputs.values()]

    def last(tensor: Any) -> Any:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def call(function: Any, arguments: list[Any]) -> list[np.ndarray]:
        with torch.inference_mode():
            result = function(*arguments)
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        return [tensor.numpy() for tensor in results]

    def frozen() -> Any:
        traced = torch.jit.freeze(torch.jit.trace(module, tuple(inputs)).eval())
        return torch.jit.optimize_for_inference(traced)

    def compiled() -> Any:
        import torch._inductor.config as inductor

        function = torch.compile(module)
        with inductor.patch(freezing=True):
            call(function, inputs)
        return function

    runs: dict[str, Run] = {
        "torch": partial(call, module, inputs),
        "torch-nhwc": partial(call, module, [last(tensor) for tensor in inputs]),
    }
    for name, make in (("torch-jit", frozen), ("torch-compile", compiled)):
        with contextlib.suppress(Exception):  # a setting that a model has no use of
            with torch.no_grad():
                made = make()
            call(made, inputs)
            runs[name] = partial(call, made, inputs)
    return runs


def onnxruntime_peer(original: Original) -> dict[str, Run]:
    """ONNX Runtime's CPU provider, all optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = original.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(original.onnx), options, providers=["CPUExecutionProvider"]
    )
    inputs, outputs = dict(original.inputs), list(original.outputs)
    return {"onnxruntime": lambda: session.run(outputs, inputs)}


def openvino_peer(original: Original) -> dict[str, Run]:
    """OpenVINO's CPU plug-in, fp32, one stream."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": original.threads,
        "NUM_STREAMS": 1,
    }
    compiled = core.compile_model(core.read_model(str(original.onnx)), "CPU", settings)
    request = compiled.create_infer_request()
    for name, array in original.inputs.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def run() -> list[np.ndarray]:
        request.infer()
        return [request.get_tensor(name).data for name in original.outputs]

    return {"openvino": run}


def ncnn_peer(original: Original) -> dict[str, Run]:
    """ncnn, fp32, through its converter pnnx; images of a batch in turn."""
    import ncnn

    folder = original.onnx.parent
    shapes = ",".join(f"[{','.join(map(str, a.shape))}]f32" for a in original.inputs.values())
    _convert(
        [_program("pnnx"), original.onnx.name, f"inputshape={shapes}", "fp16=0"],
        folder,
        folder / f"{original.onnx.stem}.ncnn.param",
    )
    net = ncnn.Net()
    net.opt.num_threads = original.threads
    for option in dir(net.opt):
        if option.startswith(("use_fp16", "use_bf16", "use_int8")):
            setattr(net.opt, option, False)
    stem = str(folder / original.onnx.stem)
    if net.load_param(f"{stem}.ncnn.param") or net.load_model(f"{stem}.ncnn.bin"):
        raise ConvtvmError("ncnn cannot load what pnnx made of the model")
    arrays = list(original.inputs.values())
    batch = arrays[0].shape[0]
    if any(a.dtype != np.float32 or a.ndim < 2 or a.shape[0] != batch for a in arrays):
        raise ConvtvmError("ncnn takes float32 images, batches of which share the first axis")
    images = [[ncnn.Mat(np.ascontiguousarray(a[i])) for a in arrays] for i in range(batch)]
    names = list(net.input_names()), list(net.output_names())

    def run() -> list[np.ndarray]:
        rows = []
        for image in images:
            extractor = net.create_extractor()
            for name, mat in zip(names[0], image, strict=True):
                extractor.input(name, mat)
            found = [extractor.extract(name) for name in names[1]]
            if any(code for code, _ in found):
                raise ConvtvmError("ncnn cannot run the model")
            rows.append([np.array(mat) for _, mat in found])
        return [np.stack(parts) for parts in zip(*rows, strict=True)]

    return {"ncnn": run}


def mnn_peer(original: Original) -> dict[str, Run]:
    """MNN's CPU backend in high precision, through its converter."""
    import MNN.expr
    import MNN.nn

    # Not the command mnnconvert: see `convtvm.compare.peers`.
    convert = "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)"
    model = original.onnx.with_suffix(".mnn")
    arguments = ["-f", "ONNX", "--modelFile", original.onnx, "--MNNModel", model, "--bizCode", "m"]
    command = [sys.executable, "-c", convert, *map(str, arguments)]
    _convert(command, original.onnx.parent, model)
    settings = {"backend": "CPU", "precision": "high", "numThread": original.threads}
    manager = MNN.nn.create_runtime_manager((settings,))
    net = MNN.nn.load_module_from_file(
        str(model), list(original.inputs), list(original.outputs), runtime_manager=manager
    )
    kinds = {"float32": MNN.numpy.float32, "int32": MNN.numpy.int32}
    if any(str(a.dtype) not in kinds for a in original.inputs.values()):
        raise ConvtvmError("MNN takes float32 and int32 inputs here")
    tensors = [
        MNN.expr.const(a, list(a.shape), MNN.expr.NCHW, kinds[str(a.dtype)])
        for a in original.inputs.values()
    ]
    return {"mnn": lambda: [out.read() for out in net.onForward(tensors)]}


def _program(name: str) -> str:
    """A command of this Python's environment."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def _convert(command: list[str], folder: Path, result: Path) -> None:
    """Run a converter in `folder`. Raises ConvtvmError unless there is a result."""
    env = dict(os.environ, OMP_NUM_THREADS="1")
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=_CONVERSION
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConvtvmError(f"its converter failed: {error}") from None
    if not result.exists():
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", t).strip() for t in done.stderr.splitlines()]
        said = [t for t in lines if t]
        raise ConvtvmError(f"its converter failed: {said[-1] if said else 'no message'}")


# Name -> (peer, packages it needs)
MODEL_PEERS: dict[str, tuple[ModelPeer, tuple[str, ...]]] = {
    "torch": (torch_peer, ("torch",)),
    "onnxruntime": (onnxruntime_peer, ("onnxruntime",)),
    "openvino": (openvino_peer, ("openvino",)),
    "ncnn": (ncnn_peer, ("ncnn", "pnnx")),
    "mnn": (mnn_peer, ("MNN",)),
}


def set_up(
    names: list[str], original: Original, checked: Callable[[str, Run], None]
) -> tuple[dict[str, Run], dict[str, str]]:
    """The settings of these peers that pass `checked`, and why the others take no part."""
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    for name in names:
        peer, packages = MODEL_PEERS[name]
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        try:
            if missing:
                raise ConvtvmError(f"needs {', '.join(missing)}: pip install {' '.join(missing)}")
            if original.problem and name != "torch":
                raise ConvtvmError(original.problem)
            for setting, run in peer(original).items():
                checked(setting, run)
                runs[setting] = run
        except Exception as error:  # other people's code, which may raise anything
            if not any(setting.startswith(name) for setting in runs):
                absent[name] = (
                    str(error)
                    if isinstance(error, ConvtvmError)
                    else (failure("peer", error).message)
                )
    return runs, absent
