"""What users do to ordinary models, before they compile them and between calls: eager's result."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch_backend import PlainKernels  # noqa: E402

import convtvm.torch  # noqa: E402
from convtvm.torch.backend import Backend  # noqa: E402
from convtvm.torch.kernels import Kernels  # noqa: E402
from convtvm.torch.operator import Convolution  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402

OPTIONS = {"threads": 1, "logs": [], "rest": "eager"}
LIMIT = 1e-4  # of a difference, relative to the largest number


def image(*shape: int, seed: int = 0) -> Any:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (1, 4, 6, 7), generator=made)


def conv(ic: int = 4, oc: int = 4, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(ic, oc, 3, padding=1, **more)


class Apply(nn.Module):
    """A function of `self` and the inputs, with modules and parameters of its own."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *given: Any) -> Any:
        return self.function(self, *given)


def parameter(*shape: int, seed: int = 1) -> nn.Parameter:
    return nn.Parameter(image(*shape, seed=seed))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return PlainKernels(Options.of(OPTIONS))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compiled(net: nn.Module, kernels: Kernels, **options: Any) -> Any:
    backend = Backend(Options.of(OPTIONS), kernels)
    backend.compares = False
    return torch.compile(net, backend=backend, **options), backend


def same(found: Any, expected: Any) -> None:
    """Numbers, dtypes, shapes and strides, of whatever holds the tensors."""
    ones, others = (torch.utils._pytree.tree_leaves(tree) for tree in (found, expected))
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        if not isinstance(other, torch.Tensor):
            assert one == other
            continue
        assert one.dtype == other.dtype and one.shape == other.shape
        axes = [axis for axis, size in enumerate(other.shape) if size > 1]
        assert [one.stride(axis) for axis in axes] == [other.stride(axis) for axis in axes]
        scale = float(other.abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=0, atol=LIMIT * scale, equal_nan=True)


def check(net: nn.Module, kernels: Kernels, *calls: Any) -> int:
    """Calls of a model, each a tuple of inputs or a change of the model between them. Returns how
    many convolutions of its first graphs kernels computed."""
    net.eval()
    twin, planned = copy.deepcopy(net), 0
    model, backend = compiled(net, kernels)
    with torch.no_grad():
        for call in calls:
            if callable(call):
                call(net), call(twin)
                continue
            same(model(*call), twin(*call))
            planned = planned or sum(site.plan is not None for site in backend.sites)
    return planned


class SideBySide(nn.Module):
    """Models in one graph, each with an input of its own: most of the time is TorchDynamo's for a
    graph, whatever its size."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, given: Any) -> Any:
        return [model(x) for model, x in zip(self.models, given, strict=True)]


def parts(cases: Mapping[str, Any], count: int) -> list[list[str]]:
    """Names, so many in one graph."""
    names = list(cases)
    return [names[i : i + count] for i in range(0, len(names), count)]


X = image()

# ---- weights -------------------------------------------------------------------------------------


def spoilt(change: Callable[[nn.Module], object]) -> nn.Module:
    made = nn.Sequential(conv(), nn.ReLU(), conv())
    change(made[0])
    return made


def shared() -> nn.Module:
    one, other = conv(), conv(bias=False)
    other.weight = one.weight
    up = nn.ConvTranspose2d(4, 4, 3, padding=1)
    up.weight = one.weight
    return nn.Sequential(one, other, up)


class Symmetric(nn.Module):
    def forward(self, weight: Any) -> Any:
        return weight + weight.flip(3)


WEIGHTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "tied": (shared, 3),
    "weight_norm": (lambda: spoilt(parametrizations.weight_norm), 2),
    "weight_norm of old": (lambda: spoilt(nn.utils.weight_norm), 2),
    "spectral_norm": (lambda: spoilt(parametrizations.spectral_norm), 2),
    "spectral_norm of old": (lambda: spoilt(nn.utils.spectral_norm), 2),
    "its own parametrisation": (
        lambda: spoilt(lambda c: parametrize.register_parametrization(c, "weight", Symmetric())), 2,
    ),
    "pruned": (lambda: spoilt(lambda c: prune.l1_unstructured(c, "weight", 0.5)), 2),
    "pruned, for good": (
        lambda: spoilt(lambda c: prune.remove(prune.random_unstructured(c, "bias", 2), "bias")), 2,
    ),
    "a part of a larger one": (
        lambda: Apply(
            lambda self, x: functional.conv2d(x, self.w[1:5, ::2], self.b[2:6], padding=1),
            w=parameter(6, 8, 3, 3), b=parameter(9),
        ), 1,
    ),
    "of other strides": (
        lambda: spoilt(lambda c: setattr(c, "weight", nn.Parameter(c.weight.mT.flip(0).mT))), 2,
    ),
    "expanded": (
        lambda: Apply(
            lambda self, x: functional.conv2d(x, self.w.expand(4, 4, 3, 3), padding=1),
            w=parameter(4, 1, 3, 3),
        ), 1,
    ),
    "negative": (
        lambda: spoilt(
            lambda c: setattr(c, "weight", nn.Parameter(torch.complex(*[c.weight] * 2).conj().imag))
        ), 2,
    ),
    "negative, transposed": (
        lambda: Apply(
            lambda self, x: functional.conv_transpose2d(x, self.w, self.b),
            w=nn.Parameter(torch.complex(*[image(4, 4, 3, 3)] * 2).conj().imag),
            b=nn.Parameter(torch.complex(*[image(4)] * 2).conj().imag),
        ), 1,
    ),
    "in fewer bits": (
        lambda: Apply(
            lambda self, x: functional.conv2d(x, self.w.float() * self.s, self.b.float()),
            w=image(4, 4, 3, 3).to(torch.float8_e4m3fn), s=image(4, 1, 1, 1), b=image(4).bfloat16(),
        ), 1,
    ),
    "in integers": (
        lambda: Apply(
            lambda self, x: functional.conv2d(x, self.w * self.s, padding=1),
            w=(20 * image(4, 4, 3, 3)).to(torch.int8), s=image(4, 1, 1, 1),
        ), 1,
    ),
    "softmax of a parameter": (
        lambda: Apply(
            lambda self, x: functional.conv2d(x, self.w.flatten(1).softmax(1).view_as(self.w)),
            w=parameter(4, 4, 3, 3),
        ), 1,
    ),
    "of the input": (
        lambda: Apply(lambda self, x: self.c(functional.conv2d(x, x[..., :3, :3])), c=conv(1)), 1,
    ),
    "of a list": (
        lambda: Apply(
            lambda self, x: functional.conv2d(functional.conv2d(x, self.w[0]), self.w[1]),
            w=nn.ParameterList([parameter(4, 4, 3, 3), parameter(4, 4, 1, 1)]),
        ), 2,
    ),
    "a buffer that changes with every call": (
        lambda: Apply(
            lambda self, x: (self.w.mul_(0.5), functional.conv2d(x, self.w, padding=1))[1],
            w=image(4, 4, 3, 3),
        ), 1,
    ),
    "several at once": (
        lambda: Apply(
            lambda self, x: torch.vmap(functional.conv2d, (None, 0))(x, self.w),
            w=parameter(3, 4, 4, 3, 3),
        ), 1,
    ),
    "low rank": (
        lambda: Apply(
            lambda self, x: functional.conv2d(x, (self.a @ self.b).view(4, 4, 3, 3), padding=1),
            a=parameter(4, 2), b=parameter(2, 36),
        ), 1,
    ),
}  # fmt: skip
CHANGES: list[Callable[[nn.Module], object]] = [
    lambda net: [p.mul_(1.5) for p in net.parameters()] and None,
    lambda net: net.load_state_dict(
        {k: (v.float() + 0.5).to(v.dtype) for k, v in net.state_dict().items()}
    ) and None,
    lambda net: net.load_state_dict(
        {k: (v.float() * 2).to(v.dtype) for k, v in net.state_dict().items()}, assign=True
    ) and None,
]  # fmt: skip


def test_weights(kernels: Kernels) -> None:
    """As they are, then changed one way after another."""
    with torch.no_grad():  # what is computed from parameters can be copied then
        net = SideBySide(make() for make, _ in WEIGHTS.values())
    calls = [([image(seed=seed)] * len(WEIGHTS),) for seed in range(5)]
    between = [step for pair in zip(CHANGES, calls[2:], strict=True) for step in pair]
    planned = check(net, kernels, *calls[:2], *between)
    assert planned == sum(count for _, count in WEIGHTS.values())


# ---- inputs --------------------------------------------------------------------------------------


def layers() -> nn.Module:
    """Of images of 4 channels, with a residual and rows."""
    return Apply(
        lambda self, x: (torch.relu(self.a(x) + x), self.up(x), self.row(x.permute(0, 2, 3, 1))),
        a=conv(), up=nn.ConvTranspose2d(4, 4, 2, 2), row=nn.Linear(4, 5),
    )  # fmt: skip


INPUTS: dict[str, Callable[[], Any]] = {
    "turned": lambda: image(1, 4, 7, 6).mT,
    "mirrored": lambda: X.flip(3),
    "a part": lambda: image(3, 9, 8, 20)[1:2, 1:8:2, 1:7, 3:17:2],
    "expanded": lambda: image(1, 4, 1, 7).expand(1, 4, 6, 7),
    "expanded channels": lambda: image(1, 1, 6, 7).expand(1, 4, 6, 7),
    "not at the start of its memory": lambda: image(169)[1:].view(1, 4, 6, 7),
    "channels-last": lambda: X.to(memory_format=torch.channels_last),
    "negative": lambda: torch.complex(X, X).conj().imag,
    "an imaginary part": lambda: torch.complex(X, X * 2).imag,
    "of inference": lambda: _of_inference(),
    "not finite": lambda: X.clone().index_fill_(2, torch.tensor(2), float("nan")),
    "infinite": lambda: X.clone().index_fill_(3, torch.tensor(0), float("-inf")),
    "a parameter": lambda: nn.Parameter(X.clone()),
}


def _of_inference() -> Any:
    with torch.inference_mode():
        return image(1, 4, 6, 7)


def test_inputs(kernels: Kernels) -> None:
    """In graphs that were captured with them, and with ordinary ones before."""
    net = layers()
    odd, plain = [make() for make in INPUTS.values()], [image(seed=i) for i in range(len(INPUTS))]
    check(Apply(lambda self, given: [self.net(x) for x in given], net=net), kernels, (odd,))
    torch._dynamo.reset()
    check(
        Apply(lambda self, given: [self.net(x) for x in given], net=net),
        kernels,
        (plain,),
        (odd,),
        (plain,),
    )


# ---- what is between convolutions ----------------------------------------------------------------


def ended(end: nn.Module, **more: Any) -> nn.Module:
    return nn.Sequential(conv(**more), end, conv())


def applied(function: Callable[[Any], Any]) -> nn.Module:
    """A function of a convolution's result."""
    return Apply(lambda self, x: function(self.c(x)), c=conv())


def normed(**more: Any) -> nn.Module:
    made = nn.BatchNorm2d(4, **more)
    if made.running_mean is not None:
        made.running_mean.uniform_(-0.5, 0.5)
        made.running_var.uniform_(0.5, 2)
    return made


def rounded() -> nn.Module:
    fake = torch.ao.quantization.FakeQuantize.with_args(
        dtype=torch.qint8, quant_min=-128, quant_max=127
    )
    made = ended(fake())
    made[1](X)
    made[1].disable_observer()
    return made


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "leaky, above 1": lambda: ended(nn.LeakyReLU(2.0)),
    "leaky, below 0": lambda: ended(nn.LeakyReLU(-0.5)),
    "leaky, 0": lambda: ended(nn.LeakyReLU(0.0)),
    "prelu": lambda: ended(nn.PReLU(4)),
    "rrelu": lambda: ended(nn.RReLU()),
    "elu": lambda: ended(nn.ELU(1.5)),
    "softplus": lambda: ended(nn.Softplus()),
    "threshold": lambda: ended(nn.Threshold(0.1, 20.0)),
    "one number": lambda: applied(lambda y: y.clamp(0.25, 0.25)),
    "bounds crossed": lambda: applied(lambda y: y.clamp(1.0, -1.0)),
    "bounds of tensors": lambda: Apply(
        lambda self, x: self.c(x).clamp(self.low, self.low + 1), c=conv(), low=image(4, 1, 1),
    ),
    "bounds of integers": lambda: applied(lambda y: y.clamp(-1, 2)),
    "hardtanh, one bound": lambda: applied(lambda y: functional.hardtanh(y, -0.25)),
    "maximum": lambda: applied(lambda y: torch.maximum(y, torch.zeros(()))),
    "not a number": lambda: applied(lambda y: torch.relu(y / 0 * 0)),
    "norm without scale": lambda: ended(normed(affine=False), bias=False),
    "norm of this batch": lambda: ended(normed(track_running_stats=False)),
    "norm, eps 0": lambda: ended(normed(eps=0.0)),
    "norm of instances": lambda: ended(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "norm of groups": lambda: ended(nn.GroupNorm(2, 4)),
    "norm, then again": lambda: nn.Sequential(conv(), normed(), normed(), nn.ReLU()),
    "norm whose mean is read": lambda: Apply(
        lambda self, x: (self.n(self.c(x)), self.n.running_mean + 1), c=conv(), n=normed(),
    ),
    "sum of one channel": lambda: applied(lambda y: torch.relu(y + y[:, :1])),
    "sum in float64": lambda: Apply(lambda self, x: torch.relu(self.c(x) + x.double()), c=conv()),
    "sum of integers": lambda: Apply(lambda self, x: torch.relu(self.c(x) + x.int()), c=conv()),
    "sum, scaled": lambda: Apply(lambda self, x: torch.add(x, self.c(x), alpha=-2), c=conv()),
    "sum of a transposed one": lambda: Apply(
        lambda self, x: torch.relu(self.u(x) + self.v(x)),
        u=nn.ConvTranspose2d(4, 4, 2, 2), v=nn.ConvTranspose2d(4, 4, 4, 2, 1),
    ),
    "gate": lambda: Apply(lambda self, x: self.c(x) * torch.sigmoid(self.c(x * 2)), c=conv()),
    "shuffled": lambda: nn.Sequential(conv(4, 8), nn.PixelShuffle(2), conv(2, 4)),
    "windows": lambda: applied(lambda y: y.unfold(2, 3, 2).contiguous()),
    "by strides": lambda: applied(lambda y: y.as_strided((2, 3, 5), (60, 7, 1), 3).clone()),
    "complex numbers": lambda: applied(lambda y: torch.view_as_complex(y.view(4, 21, 2)).abs()),
    "bits": lambda: applied(lambda y: y.view(torch.int32) >> 8),
    "Fourier": lambda: applied(lambda y: torch.fft.rfft2(y).abs()),
    "views": lambda: applied(lambda y: (y, y.flatten(1), y[:, 1:3], y.permute(0, 2, 3, 1), y.mT)),
    "written to": lambda: applied(lambda y: (y, y[:, 0].fill_(3), y.add_(1))),
    "indices": lambda: applied(
        lambda y: functional.max_unpool2d(
            *functional.max_pool2d(y, 2, return_indices=True), 2, output_size=(6, 7)
        ),
    ),
    "resized": lambda: ended(nn.Upsample(scale_factor=1.7, mode="bilinear")),
    "attention": lambda: Apply(
        lambda self, x: self.a(*[self.c(x).flatten(2).mT] * 3, need_weights=False)[0],
        c=conv(), a=nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "over time": lambda: Apply(_over_time, gates=conv(8, 16)),
    "loop": lambda: Apply(lambda self, x: _loop(self.c, x), c=conv()),
    "dropout": lambda: ended(nn.Dropout2d(0.5)),
    "quantisation stubs": lambda: nn.Sequential(
        torch.ao.quantization.QuantStub(), conv(), torch.ao.quantization.DeQuantStub(),
    ),
    "rounded": rounded,
    "checkpointed": lambda: Apply(
        lambda self, x: torch.utils.checkpoint.checkpoint(self.c, x, use_reentrant=False), c=conv(),
    ),
    "a script": lambda: nn.Sequential(conv(), torch.jit.script(nn.Sequential(conv(), nn.ReLU()))),
    "a hook on the model": lambda: _hooked(ended(nn.ReLU())),
}  # fmt: skip


def _over_time(self: Any, x: Any) -> Any:
    """A ConvLSTM's steps."""
    hidden, cell = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(3):
        i, f, o, g = self.gates(torch.cat([x * step, hidden], 1)).chunk(4, 1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
    return hidden, cell


def _loop(layer: nn.Module, x: Any) -> Any:
    for _ in range(3):
        x = x + torch.relu(layer(x))
    return x


def _hooked(net: nn.Module) -> nn.Module:
    net.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    net.register_forward_hook(lambda module, given, out: (out, given[0]))
    return net


@pytest.mark.parametrize("names", parts(MIDDLES, 12))
def test_between_convolutions(names: list[str], kernels: Kernels) -> None:
    net = SideBySide(MIDDLES[name]() for name in names)
    check(net, kernels, *(([image(seed=seed)] * len(names),) for seed in (0, 2)))


# ---- convolutions that are another's, or PyTorch's -----------------------------------------------

FORMS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "reflect": (lambda: nn.Conv2d(4, 4, 3, padding=(2, 1), padding_mode="reflect"), X),
    "circular": (lambda: nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="circular"), X),
    "replicate": (lambda: nn.Conv2d(4, 4, 5, padding=2, padding_mode="replicate"), X),
    "circular in one dimension": (
        lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), image(2, 4, 9),
    ),
    "same, even": (lambda: nn.Conv2d(4, 4, (4, 2), padding="same", dilation=(1, 2)), X),
    "valid": (lambda: nn.Conv2d(4, 4, 3, 2, padding="valid"), X),
    "no batch": (lambda: nn.Sequential(conv(), nn.ReLU(), conv()), X[0]),
    "no batch, transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, 2), X[0]),
    "no batch, one dimension": (lambda: nn.Conv1d(4, 3, 3), image(4, 9)),
    "three dimensions, channels-last": (
        lambda: nn.Conv3d(4, 4, 3).to(memory_format=torch.channels_last_3d),
        image(1, 4, 5, 6, 7).to(memory_format=torch.channels_last_3d),
    ),
    "complex": (lambda: nn.Conv2d(4, 4, 3).to(torch.complex64), torch.complex(X, -X)),
    "bfloat16": (lambda: conv().bfloat16(), X.bfloat16()),
    "channels-last weights": (lambda: conv().to(memory_format=torch.channels_last), X),
    "weights of stride 0": (
        lambda: spoilt(
            lambda c: setattr(c, "weight", nn.Parameter(c.weight[:, :1].expand(4, 4, 3, 3)))
        ), X,
    ),
    "float64": (lambda: nn.Sequential(conv(), nn.ConvTranspose2d(4, 3, 2, 2)).double(), X.double()),
    "a multiple of depthwise": (lambda: nn.Conv2d(4, 12, 3, groups=4), X),
    "padding larger than the kernel": (lambda: nn.Conv2d(4, 4, 2, padding=5), X),
    "kernel as large as the image": (lambda: nn.Conv2d(4, 4, (6, 7)), X),
    "to a size": (
        lambda: Apply(
            lambda self, x: self.u(self.c(x), output_size=x.shape[2:]),
            c=nn.Conv2d(4, 4, 3, 2, 1), u=nn.ConvTranspose2d(4, 4, 3, 2, 1),
        ), X,
    ),
    "lazy": (lambda: _lazy(), X),
    "none at all": (lambda: nn.Identity(), X),
    "empty batch": (lambda: nn.Sequential(conv(), nn.ReLU(), conv()), X[:0]),
    "empty rows": (lambda: nn.Linear(4, 3), image(2, 0, 4)),
    "one row": (lambda: nn.Linear(4, 3), image(4)),
    "rows of the embedding": (
        lambda: Apply(
            lambda self, x: functional.linear(self.e(x), self.e.weight), e=nn.Embedding(11, 8)
        ), torch.arange(11).view(1, 11),
    ),
    "a folded norm": (
        lambda: nn.utils.fusion.fuse_conv_bn_eval(conv().eval(), normed().eval()), X,
    ),
}  # fmt: skip


def _lazy() -> nn.Module:
    made = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyConvTranspose2d(3, 2, 2))
    made(X)
    return made


@pytest.mark.parametrize("names", parts(FORMS, 16))
def test_forms(names: list[str], kernels: Kernels) -> None:
    net, given = SideBySide(FORMS[name][0]() for name in names), [FORMS[name][1] for name in names]
    check(net, kernels, (given,), (given,))


# ---- how and when it is called -------------------------------------------------------------------


def test_sizes_that_change(kernels: Kernels) -> None:
    """Sizes that TorchDynamo finds to change by itself, and ones that it was told of."""
    net = nn.Sequential(conv(), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, 2)).eval()
    shapes = [(1, 4, 6, 7), (1, 4, 8, 7), (3, 4, 9, 9), (2, 4, 6, 7), (0, 4, 6, 7)]
    check(net, kernels, *((image(*shape),) for shape in shapes))
    torch._dynamo.reset()
    model, _ = compiled(net, kernels, dynamic=True)
    with torch.no_grad():
        for shape in shapes:
            same(model(image(*shape)), net(image(*shape)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [False, True])
def test_autocast(dtype: Any, inside: bool, kernels: Kernels) -> None:
    """Around calls, between others, and of a part of a model."""
    cast = torch.autocast("cpu", dtype)

    def halves(self: Any, x: Any) -> Any:
        x = self.a(x)
        with cast:
            y = self.b(x)
        return torch.relu(x + y), self.b(x)

    net = Apply(halves, a=conv(), b=conv()) if inside else nn.Sequential(conv(), nn.ReLU())
    twin = copy.deepcopy(net.eval())
    model, _ = compiled(net, kernels)
    with torch.no_grad():
        for wanted in (False, True, False):
            with torch.autocast("cpu", dtype, enabled=wanted and not inside):
                found, expected = model(X), twin(X)
            leaves = map(torch.utils._pytree.tree_leaves, (found, expected))
            for one, other in zip(*leaves, strict=True):
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_modes_of_gradients(kernels: Kernels) -> None:
    """One model without gradients, in inference mode, with gradients, and in training."""
    net = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()).eval()
    twin = copy.deepcopy(net)
    model, backend = compiled(net, kernels)
    for _ in range(2):
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                same(model(X).detach(), twin(X).detach())
        model(X).sum().backward(), twin(X).sum().backward()
        same([p.grad for p in net.parameters()], [p.grad for p in twin.parameters()])
        with torch.no_grad():
            net.train(), twin.train()
            same(model(X), twin(X))
            net.eval(), twin.eval()
            same(model(X), twin(X))
        for each in (net, twin):
            torch.optim.SGD(each.parameters(), 0.1).step()
    assert any(site.plan for site in backend.sites)


def test_parameters_made_in_inference_mode(kernels: Kernels) -> None:
    with torch.inference_mode():
        net = nn.Sequential(conv(), nn.ReLU()).eval()
        twin = copy.deepcopy(net)
        model, _ = compiled(net, kernels)
        same(model(X), twin(X))
        for each in (net, twin):
            each[0].weight.mul_(2)
        same(model(X), twin(X))


def test_exported_models(kernels: Kernels) -> None:
    for net in (nn.Sequential(conv(), normed(), nn.ReLU()), layers()):
        exported = torch.export.export(net.eval(), (X,)).module()
        torch._dynamo.reset()
        model, _ = compiled(exported, kernels)
        with torch.no_grad():
            same(model(X), net(X))


def test_copies_and_several_models(kernels: Kernels) -> None:
    """Each has weights of its own, whatever it was copied from and when."""
    nets = [nn.Sequential(conv(), nn.ReLU(), conv()).eval() for _ in range(3)]
    models = [compiled(net, kernels)[0] for net in nets]
    with torch.no_grad():
        for _ in range(2):
            for net, model in zip(nets, models, strict=True):
                same(model(X), nets[nets.index(net)](X))
        named = torch.compile(nets[0], backend=convtvm.torch.convtvm, options=OPTIONS)
        copied = copy.deepcopy(named)
        copied._orig_mod[0].weight.mul_(3)
        twin = copy.deepcopy(nets[0])
        twin[0].weight.mul_(3)
        same(copied(X), twin(X))
        same(models[0](X), nets[0](X))
        nets[1][0].weight = nets[2][0].weight  # one's becomes another's
        same(models[1](X), nets[1](X))
        del nets[2], models[2]
        same(models[1](X), nets[1](X))
        for _ in range(20):  # memory and identities are used again
            net = nn.Sequential(conv(), nn.ReLU(), conv()).eval()
            models[0]._orig_mod.load_state_dict(net.state_dict(), assign=True)
            same(models[0](X), net(X))
            del net


def test_functional_calls(kernels: Kernels) -> None:
    """With parameters that are given at every call."""
    net = nn.Sequential(conv(), nn.ReLU()).eval()

    def call(values: Any, x: Any) -> Any:
        return torch.func.functional_call(net, values, (x,))

    model, _ = compiled(call, kernels)  # type: ignore[arg-type]
    with torch.no_grad():
        for scale in (1, 2):
            values = {name: scale * value for name, value in net.state_dict().items()}
            same(model(values, X), call(values, X))


def test_threads_that_call_at_once(kernels: Kernels) -> None:
    """One model, whose layers are alike, with inputs and batches of each thread's own."""
    net = nn.Sequential(*(layer for _ in range(6) for layer in (conv(), nn.Tanh()))).eval()
    model, _ = compiled(net, kernels, dynamic=True)
    given = [image(1 + number % 3, 4, 6, 7, seed=number) for number in range(4)]
    wrong: list[Any] = []
    with torch.no_grad():
        expected = [net(x) for x in given]
        for x, right in zip(given, expected, strict=True):
            same(model(x), right)

    def call(number: int) -> None:
        with torch.no_grad():
            for _ in range(200):
                if not torch.allclose(model(given[number]), expected[number], atol=1e-4):
                    wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not wrong


def test_a_thread_between_choice_and_call(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread's call of a layer with the same recipe changes nothing for this one."""
    nets = [nn.Sequential(conv()).eval() for _ in range(2)]
    models = [compiled(net, kernels)[0] for net in nets]
    inner: list[Any] = []

    def interrupted(self: Any, plan: Any) -> None:
        vars(self)["latest"] = plan
        if not inner:
            inner.append(plan)
            models[1](X)

    with torch.no_grad():
        for model in models:
            model(X)
        latest = property(lambda self: vars(self)["latest"], interrupted)
        monkeypatch.setattr(Convolution, "latest", latest, raising=False)
        same(models[0](X), nets[0](X))
    assert inner
