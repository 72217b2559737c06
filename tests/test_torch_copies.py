"""Copies of compiled models, of their handles and of what computes them; and their pickles."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from convtvm.torch import optimize  # noqa: E402
from convtvm.torch.backend import Backend  # noqa: E402
from convtvm.torch.kernels import Kernels, shared  # noqa: E402
from convtvm.torch.options import Options  # noqa: E402

OPTIONS = {"threads": 1, "logs": [], "rest": "eager"}
X = torch.linspace(-1, 1, 4 * 6 * 7).reshape(1, 4, 6, 7)
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {n}": lambda made, n=n: pickle.loads(pickle.dumps(made, n))
        for n in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()).eval()


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(Options.of(OPTIONS))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("is_called", [False, True])
def test_a_copy_of_a_compiled_model(kernels: Kernels, copied: Any, is_called: bool) -> None:
    backend = Backend(Options.of(OPTIONS), kernels)
    net = build()
    model = torch.compile(net, backend=backend)
    if is_called:
        close(model(X), net(X))
    again = copied(model)
    if copied is copy.deepcopy:
        again._orig_mod[0].weight.mul_(2)  # its own
    close(again(X), again._orig_mod(X))
    close(model(X), build()(X))
    assert backend.sites and all(site.plan for site in backend.sites)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", ["own", "of the process", "one library"])
def test_a_copy_of_a_backend(kernels: Kernels, kind: str, way: str) -> None:
    options = Options.of(OPTIONS)
    close(torch.compile(build(), backend=Backend(options, kernels))(X), build()(X))
    sources = {
        "own": lambda: kernels,
        "of the process": lambda: shared(options),
        "one library": lambda: Kernels(options, kernels.libraries[0]),
    }
    backend = Backend(options, sources[kind](), "default")
    backend.compares = False
    again = COPIES[way](backend)
    assert (again.options, again.mode, again.compares) == (options, "default", False)
    assert again.kernels.is_open == backend.kernels.is_open
    if kind == "of the process":
        assert again.kernels is backend.kernels
    torch._dynamo.reset()
    count = len(again.kernels.libraries)
    close(torch.compile(build(), backend=again)(X), build()(X))
    assert again.sites[0].plan
    if kind != "of the process":
        assert len(again.kernels.libraries) == count == 1  # nothing was compiled anew


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_handle(kernels: Kernels, way: str) -> None:
    net = build()
    handle = optimize(net, X, kernels.libraries[0], rest="eager")
    again = COPIES[way](handle)
    assert (again.model is net) == (way == "copy")
    again.install()
    close(again.model(X), build()(X))
    again.restore()
    handle.restore()
    close(net(X), again.model(X))


def test_what_stays_in_its_process(kernels: Kernels) -> None:
    backend = Backend(Options.of(OPTIONS), kernels)
    model = torch.compile(build(), backend=backend)
    model(X)
    site = backend.sites[0]
    assert copy.deepcopy(site).convolution is site.convolution
    assert str(copy.copy(site)) == str(site)
    for made in (site, site.convolution, site.plan):
        with pytest.raises(TypeError, match=r"cannot pickle a \w+: it holds machine") as found:
            pickle.dumps(made)
        assert "\n" not in str(found.value)
