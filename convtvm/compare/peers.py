"""Other libraries' convolutions, set up as their authors would: fp32, weights packed beforehand.

A peer is a function (workload, data, weight, bias, threads) -> callables without arguments by
name, one for each setting worth trying. Data and result are NCHW: who computes in another layout
converts, as a caller with NCHW data would have to. Each is an optional extra:
`pip install convtvm[bench]`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convtvm.errors import ConvtvmError
from convtvm.machine import interpreter
from convtvm.problem.descriptor import extent
from convtvm.problem.workload import ConvWorkload

Run = Callable[[], Any]
Peer = Callable[[ConvWorkload, np.ndarray, np.ndarray, np.ndarray, int], dict[str, Run]]


def torch_peer(
    w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int
) -> dict[str, Run]:
    """PyTorch (oneDNN), in NCHW and by way of its channels-last memory format."""
    import torch

    torch.set_num_threads(threads)
    tensor = torch.from_numpy(data.copy())

    def convolve(module: Any, memory_format: Any) -> Any:
        with torch.inference_mode():  # the conversions do nothing in NCHW
            return module(tensor.contiguous(memory_format=memory_format)).contiguous()

    runs: dict[str, Run] = {}
    formats = {"torch": torch.contiguous_format, "torch-nhwc": torch.channels_last}
    for name, memory_format in formats.items():
        layer = torch.nn.Conv2d(
            w.ic, w.oc, (w.kh, w.kw), (w.sh, w.sw), 0, (w.dh, w.dw), w.groups
        ).eval()
        layer.weight.data = torch.from_numpy(weight.copy())
        layer.bias.data = torch.from_numpy(bias.copy())
        layer.padding, around = padding(w)
        before: Any = torch.nn.ZeroPad2d(around) if around else torch.nn.Identity()
        module = torch.nn.Sequential(before, layer).to(memory_format=memory_format)
        runs[name] = partial(convolve, module, memory_format)
    return runs


def padding(w: ConvWorkload) -> tuple[tuple[int, int], tuple[int, int, int, int] | None]:
    """The padding (top and bottom, left and right) of a convolution in PyTorch that is `w`, and
    what `torch.nn.functional.pad` has to add before it, None for nothing.

    Padding that differs on two sides is symmetric where the output is the same: with a stride, the
    last rows and columns may never be read.
    """
    sizes = (
        (w.ih + 2 * w.ph - extent(w.kh, w.dh)) // w.sh + 1,
        (w.iw + 2 * w.pw - extent(w.kw, w.dw)) // w.sw + 1,
    )
    if sizes == (w.oh, w.ow):
        return (w.ph, w.pw), None
    return (0, 0), (w.pw, w.pw_r, w.ph, w.ph_r)


def onnxruntime_peer(
    w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int
) -> dict[str, Run]:
    """ONNX Runtime's CPU provider on a model of one Conv node."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _onnx_model(w, weight, bias), options, providers=["CPUExecutionProvider"]
    )
    return {"onnxruntime": lambda: session.run(None, {"data": data})[0]}


def openvino_peer(
    w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int
) -> dict[str, Run]:
    """OpenVINO's CPU plug-in, fp32, one stream, on the same one-node model."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    model = core.read_model(_onnx_model(w, weight, bias))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(data, shared_memory=True))

    def run() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return {"openvino": run}


def ncnn_peer(
    w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int
) -> dict[str, Run]:
    """ncnn, fp32, by its own rule among Winograd, GEMM and direct; images of a batch in turn."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    for option in dir(net.opt):
        if option.startswith(("use_fp16", "use_bf16", "use_int8")):
            setattr(net.opt, option, False)
    parameters = {
        **{0: w.oc, 1: w.kw, 11: w.kh, 2: w.dw, 12: w.dh, 3: w.sw, 13: w.sh},
        **{4: w.pw, 15: w.pw_r, 14: w.ph, 16: w.ph_r, 5: 1, 6: weight.size},
        **({7: w.groups} if w.groups > 1 else {}),
    }
    kind = "Convolution" if w.groups == 1 else "ConvolutionDepthWise"
    values = " ".join(f"{key}={value}" for key, value in parameters.items())
    text = f"7767517\n2 2\nInput data 0 1 data\n{kind} conv 1 1 data out {values}\n"
    if net.load_param_mem(text):
        raise ConvtvmError(f"ncnn refuses {w}")
    fp32_tag = bytes(4)
    stored = fp32_tag + weight.tobytes() + bias.tobytes()  # ncnn reads it in place
    net.load_model_mem(stored)
    images = [ncnn.Mat(image) for image in data]

    def run(_keep: bytes = stored) -> Any:
        results = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("data", image)
            code, result = extractor.extract("out")
            if code:
                raise ConvtvmError(f"ncnn cannot run {w}: code {code}")
            results.append(result)
        return results

    return {"ncnn": run}


def mnn_peer(
    w: ConvWorkload, data: np.ndarray, weight: np.ndarray, bias: np.ndarray, threads: int
) -> dict[str, Run]:
    """MNN's CPU backend in high precision, on the one-node model through its converter."""
    import MNN.expr
    import MNN.nn

    # Not the command mnnconvert: it installs a telemetry client with pip, which puts an older
    # protobuf in place of the one that onnx needs, and reports each conversion.
    convert = "import MNN, _tools; _tools.mnnconvert(sys.argv)"
    settings = {"backend": "CPU", "precision": "high", "numThread": threads}
    with tempfile.TemporaryDirectory() as folder:
        source, model = Path(folder, "conv.onnx"), Path(folder, "conv.mnn")
        source.write_bytes(_onnx_model(w, weight, bias))
        arguments = ["-f", "ONNX", "--modelFile", source, "--MNNModel", model, "--bizCode", "conv"]
        command = interpreter.command(convert, *map(str, arguments))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not model.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise ConvtvmError(f"MNN cannot convert {w}: {''.join(last)}")
        manager = MNN.nn.create_runtime_manager((settings,))
        net = MNN.nn.load_module_from_file(str(model), ["data"], ["out"], runtime_manager=manager)
    tensor = MNN.expr.const(data, list(data.shape), MNN.expr.NCHW)
    return {"mnn": lambda: net.onForward([tensor])[0].read()}


def _onnx_model(w: ConvWorkload, weight: np.ndarray, bias: np.ndarray) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "Conv",
        ["data", "weight", "bias"],
        ["out"],
        kernel_shape=[w.kh, w.kw],
        strides=[w.sh, w.sw],
        pads=[w.ph, w.pw, w.ph_r, w.pw_r],
        dilations=[w.dh, w.dw],
        group=w.groups,
    )
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, w.data_shape("NCHW"))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, w.out_shape("NCHW"))],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


# Name -> (peer, packages it needs)
PEERS: dict[str, tuple[Peer, tuple[str, ...]]] = {
    "torch": (torch_peer, ("torch",)),
    "onnxruntime": (onnxruntime_peer, ("onnxruntime", "onnx")),
    "openvino": (openvino_peer, ("openvino", "onnx")),
    "ncnn": (ncnn_peer, ("ncnn",)),
    "mnn": (mnn_peer, ("MNN", "onnx")),
}


def select_peers(names: list[str]) -> dict[str, Peer]:
    """The peers called `names`. Raises ConvtvmError for an unknown or missing one."""
    chosen = {}
    for name in names:
        if name not in PEERS:
            raise ConvtvmError(f"unknown peer {name!r}; expected one of {', '.join(PEERS)}")
        peer, packages = PEERS[name]
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        if missing:
            raise ConvtvmError(
                f"peer {name!r} needs {', '.join(missing)}: pip install {' '.join(missing)}"
            )
        chosen[name] = peer
    return chosen
