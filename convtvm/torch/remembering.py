"""What graphs became, for later processes.

PyTorch keeps compiled graphs and finds them again without asking us; their code calls our operator
by the names of recipes. So for each graph our cache has an entry with its sites and recipes. Its
`tag`, drawn when the graph was first compiled, is a part of those names and of PyTorch's keys:
whatever PyTorch has under a tag was made with the recipes of that entry.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch.compiler import config as compiler_config

from convtvm.library.cache import key_of, open_cache
from convtvm.torch.kernels import Kernels, Need
from convtvm.torch.operator import Recipe


@dataclass(frozen=True)
class Found:
    """A convolution of a graph, and the recipe that computes it with the tag that it is registered
    under, or why PyTorch computes it."""

    name: str
    parts: str
    recipe: Recipe | None
    tag: str
    why_not: str


@dataclass(frozen=True)
class Rewritten:
    """A graph's convolutions, and what kernels were compiled for."""

    needs: tuple[Need, ...] = ()
    found: tuple[Found, ...] = ()

    def __add__(self, other: Rewritten) -> Rewritten:
        return Rewritten(self.needs + other.needs, self.found + other.found)

    def joined(self, other: Rewritten) -> Rewritten:
        """With what another one has besides."""
        needs = dict.fromkeys(self.needs + other.needs)
        return Rewritten(tuple(needs), tuple(dict.fromkeys(self.found + other.found)))


class Memory:
    """What is remembered of one graph that these kernels serve; `tag` is empty if nothing may be.

    `known` is what an earlier process made of it.
    """

    def __init__(self, graph: str, kernels: Kernels, devices: frozenset[str]) -> None:
        self._graph, self._kernels, self._devices = graph, kernels, devices
        self.tag, self.known = "", None
        key = self._key()
        if key:
            self.tag, self.known = _read(open_cache().get(key)) or (uuid.uuid4().hex, None)

    def caches(self) -> AbstractContextManager[None]:
        """PyTorch's caches of compiled graphs, so that a hit means what is `known`."""
        if not self.tag:
            return functorch_config.patch(enable_autograd_cache=False)
        tag = f"{compiler_config.cache_key_tag} convtvm {self.tag}"
        return compiler_config.patch(cache_key_tag=tag)

    def keep(self, made: Rewritten) -> None:
        """Remember what was made, with the logs as they are by now.

        What is `known` stays: where PyTorch compiled a graph anew, since something that only its
        own keys see was another, it has both, and a later process may find either.
        """
        key = self._key()
        if self.tag and key and made is not self.known:
            kept = made if self.known is None else self.known.joined(made)
            open_cache().put(key, pickle.dumps((self.tag, kept)))

    def _key(self) -> str | None:
        kernels = self._kernels.identity(self._devices)
        if kernels is None or open_cache().folder is None:
            return None
        return key_of(graph=self._graph, kernels=kernels, door=_door(), torch=torch.__version__)


def _read(entry: bytes | None) -> tuple[str, Rewritten] | None:
    """Tag and content of an entry; None without one, or if it cannot be read."""
    if entry is None:
        return None
    try:
        made: tuple[str, Rewritten] = pickle.loads(entry)
    except Exception:  # whatever a graph of PyTorch's may raise here
        return None
    return made


def describe(gm: fx.GraphModule, inputs: Sequence[Any], mode: str | None) -> str:
    """A graph as TorchDynamo captured it. PyTorch's own keys see to what this leaves out."""
    facts = [gm.code, str(mode), _autocast(), *map(_description, inputs)]
    return sha256("\0".join(facts).encode()).hexdigest()


def _autocast() -> str:
    """What a graph's operations are cast to, which its code does not say."""
    kinds = ("cpu", "cuda")
    return str([torch.is_autocast_enabled(k) and torch.get_autocast_dtype(k) for k in kinds])


def _description(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__} {_size(value)}"
    sizes = [*map(_size, value.shape), *map(_size, value.stride())]
    return f"{type(value).__name__} {value.dtype} {value.device} {sizes}"


def _size(value: Any) -> str:
    """A number, with the one that a dynamic size has just now."""
    return f"{value} of {value.node.hint}" if isinstance(value, torch.SymInt) else str(value)


@cache
def _door() -> str:
    """A digest of this room, which makes the entries."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
