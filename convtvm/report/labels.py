"""What a layer is called: its name in a network, and its sizes as a person would say them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from convtvm.problem.sources import BUILTIN_NETWORKS, read_source
from convtvm.problem.workload import ConvWorkload


@dataclass(frozen=True)
class Labels:
    """Texts of workloads, different for each, in the order of the network that has most of them.

    `network` is the built-in one that has all of them, empty if none has; `multiplicity` says how
    often it has each.
    """

    texts: Mapping[str, str]
    network: str
    multiplicity: Mapping[str, int]

    @classmethod
    def of(cls, workloads: Iterable[ConvWorkload]) -> Labels:
        """Names of the workloads themselves come before those of the network."""
        given = {w.key: w for w in workloads}
        name, layers = _network({w.key for w in given.values()}, given)
        named = {key: layers[key].name for key in layers if key in given}
        named |= {w.key: w.name for w in given.values() if w.name}
        order = [*(key for key in layers if key in given), *(k for k in given if k not in layers)]
        used, texts = Counter(named.values()), {}
        for key in order:
            own = named.get(key, "")
            texts[key] = own if own and used[own] == 1 else sizes(given[key])
        repeated, seen = Counter(texts.values()), Counter[str]()
        for key, text in texts.items():
            seen[text] += 1
            texts[key] = f"{text} ({seen[text]})" if repeated[text] > 1 else text
        times = {key: layers[key].multiplicity if key in layers else 1 for key in order}
        return cls(texts, name if given and set(given) <= set(layers) else "", times)


def _network(
    keys: set[str], given: Mapping[str, ConvWorkload]
) -> tuple[str, dict[str, ConvWorkload]]:
    """The built-in network with the most of these workloads, and its layers by key, at the batch
    and in the type that most of them have."""
    forms = Counter((w.n, w.dtype) for w in given.values())
    n, dtype = forms.most_common(1)[0][0] if forms else (1, "float32")
    networks = {
        name: {w.key: w for w in (replace(w, n=n, dtype=dtype) for w in read_source(name))}
        for name in BUILTIN_NETWORKS
    }
    # Of several with as many, the smallest: VGG-16 and cv1_12 share layers.
    best = max(networks, key=lambda name: (len(keys & set(networks[name])), -len(networks[name])))
    return best, networks[best]


def sizes(w: ConvWorkload) -> str:
    """Channels, kernel and image, and whatever is not usual."""
    square = lambda a, b: f"{a}²" if a == b else f"{a}×{b}"  # noqa: E731
    parts = [f"{w.ic}→{w.oc}", f"{w.kh}×{w.kw}", f"on {square(w.ih, w.iw)}"]
    if (w.sh, w.sw) != (1, 1):
        parts.append(f"stride {w.sh}" if w.sh == w.sw else f"stride {w.sh}×{w.sw}")
    if (w.dh, w.dw) != (1, 1):
        parts.append(f"dilation {w.dh}" if w.dh == w.dw else f"dilation {w.dh}×{w.dw}")
    if w.groups > 1:
        parts.append("depthwise" if w.is_depthwise else f"{w.groups} groups")
    if w.n > 1:
        parts.append(f"batch {w.n}")
    if w.dtype != "float32":
        parts.append(w.dtype)
    return " ".join(parts)
