"""Neurons: the grammar of ``--neurons``, and chosen ones as an axis."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Axis, Label
from confreg.errors import ConfregError
from confreg.models.banks import SHARED, Bank
from confreg.models.model import whole_layer

if TYPE_CHECKING:
    from confreg.effects import Replace

GRAMMAR = (
    "all | 11.584,11.2378 (layer.index) | 31:0-511 (layer:first-last, both included) | "
    "31:7 | random:100 | @file | store.zarr:top:20:te | several of these joined by commas"
)
_N = "[0-9]{1,9}"
OF_EXPERTS = (
    "all | 15.3.0,15.3.17 (layer.expert.index) | 15.3.0-511 (first-last, both included) | "
    "15.shared.7 (a shared expert's) | 0.17 or 0:0-99 (a layer without experts) | "
    "expert:3 | expert:shared | routed:top:200 | random:100 | @file | store.zarr:top:20:te | "
    "several of these joined by commas"
)


@dataclass(frozen=True)
class Neurons:
    """Chosen neurons, each once, sorted by layer and index.

    Attributes
    ----------
    layer, index : ndarray (n,) int64
    banks : sequence of Bank
        In families with routed experts: the neurons of each layer of the model.
    """

    layer: np.ndarray
    index: np.ndarray
    banks: Sequence[Bank] = ()

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def names(self) -> np.ndarray:
        """``"layer.index"``, or of experts ``"layer.expert.index"``, (n,) object."""
        pairs = zip(self.layer.tolist(), self.index.tolist())
        if not self.banks:
            return np.array([f"{layer}.{i}" for layer, i in pairs], dtype=object)
        found = [f"{layer}.{self.banks[layer].name(i)}" for layer, i in pairs]
        return np.array(found, dtype=object)

    @property
    def experts(self) -> np.ndarray:
        """The routed expert of each, -1 of a shared one, -2 of an ordinary MLP, (n,) int32."""
        pairs = zip(self.layer.tolist(), self.index.tolist())
        return np.array([self.banks[layer].expert(i) for layer, i in pairs], dtype=np.int32)

    @property
    def of_expert(self) -> np.ndarray:
        """The index of each in its expert, or ordinary MLP, (n,) int32."""
        pairs = zip(self.layer.tolist(), self.index.tolist())
        return np.array([self.banks[layer].own(i) for layer, i in pairs], dtype=np.int32)

    @property
    def routed(self) -> np.ndarray:
        """Which are of routed experts, (n,) bool."""
        first = np.array([bank.routed for bank in self.banks] or [0])
        return self.index < first[self.layer if len(self.banks) else 0]

    @property
    def share(self) -> float:
        """At which share of all tokens one is there, on average; 1 but for experts' neurons."""
        if not self.banks:
            return 1.0
        share = np.array([bank.share for bank in self.banks])[self.layer]
        return float(np.where(self.routed, share, 1.0).mean())

    @property
    def layers(self) -> list[int]:
        """The layers they are in, ascending."""
        return sorted(set(self.layer.tolist()))


@dataclass(frozen=True, eq=False)
class NeuronAxis(Axis):
    """The axis ``neuron``: chosen neurons, those of a layer side by side.

    Attributes
    ----------
    neurons : Neurons
    width : int
        Neurons of a layer.
    """

    neurons: Neurons = field(default=None)  # type: ignore[assignment]
    width: int = 0

    @property
    def layers(self) -> list[int]:
        """The layers that they are in, ascending."""
        return self.neurons.layers

    @property
    def layer(self) -> np.ndarray:
        """The layer of each, (n,)."""
        return self.neurons.layer

    def settle(self, start: int, stop: int, stored: Mapping[str, np.ndarray]) -> Replace:
        """A span of them, each replaced by its ``ablation_value`` in the store."""
        import torch

        values = stored["ablation_value"][start:stop]
        return self.entries(start, stop).to(torch.from_numpy(values.copy()))


def neuron_axis(neurons: Neurons, width: int, name: str = "neuron") -> NeuronAxis:
    """Neurons as an axis; a partner's labels have its name before them."""
    before = "" if name == "neuron" else f"{name}_"
    labels = {
        name: Label(neurons.names, f"neuron, as layer.{'expert.' if neurons.banks else ''}index"),
        f"{before}layer": Label(neurons.layer.astype(np.int32), "layer of the neuron, from 0"),
        f"{before}index": Label(
            neurons.index.astype(np.int32),
            "index of the neuron in its layer, from 0"
            + ", one expert after the other" * bool(neurons.banks),
        ),
    }
    if neurons.banks:
        own = "index of the neuron in its expert, from 0"
        labels[f"{before}expert_index"] = Label(neurons.of_expert, own)
        text = "routed expert of the neuron; -1: a shared expert's, -2: an ordinary MLP's"
        labels[f"{before}expert"] = Label(neurons.experts, text)
    layers = ", ".join(map(str, neurons.layers))
    share = neurons.share
    said = f"{len(neurons):,} of layer{'s' if len(neurons.layers) > 1 else ''} {layers}"
    if share < 1:
        about = f"{share * len(neurons):,.0f}"
        said += f", of which a token has about {about} if experts are used alike"
    return NeuronAxis(
        name,
        labels,
        entries=lambda start, stop: replacing(neurons, start, stop),
        together=neurons.layer,
        says=said,
        filled=share,
        neurons=neurons,
        width=width,
    )


def first_of(layers: Sequence[int], counts: Sequence[int], banks: Sequence[Bank] = ()) -> Neurons:
    """The first so many neurons of each of some layers."""
    layer = np.repeat(np.asarray(layers, dtype=np.int64), counts)
    return Neurons(layer, np.concatenate([np.arange(count) for count in counts]), banks)


def replacing(neurons: Neurons, start: int, stop: int) -> Replace:
    """Edits that replace a span of neurons of one layer, by values that are not said yet."""
    import torch

    from confreg.effects import Replace

    index = torch.from_numpy(neurons.index[start:stop].copy())
    layer = int(neurons.layer[start]) if start < len(neurons) else None
    return Replace(index, layer=layer)


def choose(
    spec: str,
    layer: int,
    n_layers: int,
    n_neurons: int,
    seed: int | Sequence[int],
    banks: Sequence[Bank] = (),
) -> Neurons:
    """Read a specification.

    Parameters
    ----------
    spec : str
        See `GRAMMAR`.
    layer : int
        The layer that ``all`` and ``random:N`` mean; negative counts from the end.
    n_layers, n_neurons : int
        Of the model: its layers, and neurons per layer.
    seed : int or sequence of int
        Of ``random:N``, which draws none that is named or drawn otherwise.
    banks : sequence of Bank
        The neurons of each layer, in families with routed experts.

    Raises
    ------
    ConfregError
        Grammar, or a neuron that the model does not have.
    """
    default = whole_layer(layer, n_layers)
    parts = [part for part in (p.strip() for p in spec.split(",")) if part]
    drawn = [part for part in parts if part.startswith("random:")]
    found: set[tuple[int, int]] = set()
    for part in parts:
        if part not in drawn:
            found.update(_part(part, default, n_layers, n_neurons, banks))
    rng = np.random.default_rng(seed)
    for part in drawn:
        found.update(_drawn(part, default, banks[default].size if banks else n_neurons, rng, found))
    if not found:
        raise ConfregError(
            f"--neurons {spec!r} names no neuron. Write {OF_EXPERTS if banks else GRAMMAR}."
        )
    pairs = np.array(sorted(found), dtype=np.int64)
    return Neurons(pairs[:, 0], pairs[:, 1], banks)


def _of_experts(part: str, default: int, banks: Sequence[Bank]) -> list[tuple[int, int]] | None:
    """Neurons of one expert, all or a span; None if the part names none of an expert."""
    last = None
    if match := re.fullmatch(rf"expert:({_N}|{SHARED})", part):
        layer, expert, first = default, match[1], 0
    elif match := re.fullmatch(rf"(-?{_N})\.({_N}|{SHARED})\.({_N})(?:-({_N}))?", part):
        layer, expert, first = whole_layer(int(match[1]), len(banks)), match[2], int(match[3])
        last = int(match[4] or match[3])
    else:
        return None
    found = banks[layer].bounds(expert)
    if found is not None:
        last = found[1] - 1 if last is None else last
    if found is None or last is None or last < first or last >= found[1]:
        raise ConfregError(
            f"--neurons {part}: layer {layer} of this model has {banks[layer].describe()}."
        )
    return [(layer, found[0] + i) for i in range(first, last + 1)]


def _drawn(
    part: str, layer: int, n_neurons: int, rng: np.random.Generator, taken: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """So many neurons of a layer, none of which is taken."""
    match = re.fullmatch(rf"random:({_N})", part)
    if not match:
        raise ConfregError(f"--neurons: {part!r} is not understood. Write {GRAMMAR}.")
    wanted = int(match[1])
    left = n_neurons - sum(at == layer for at, _ in taken)
    if not 0 < wanted <= left:
        others = "" if left == n_neurons else f", of which {left} are not named otherwise"
        raise ConfregError(
            f"--neurons {part}: a layer of this model has {n_neurons} neurons{others}."
        )
    found: list[tuple[int, int]] = []
    while len(found) < wanted:
        for index in rng.choice(n_neurons, wanted, replace=False).tolist():
            if len(found) < wanted and (layer, index) not in taken and (layer, index) not in found:
                found.append((layer, index))
    return found


def _part(
    part: str, default: int, n_layers: int, n_neurons: int, banks: Sequence[Bank]
) -> list[tuple[int, int]]:
    if part == "all":
        return [(default, i) for i in range(banks[default].size if banks else n_neurons)]
    if banks and (found := _of_experts(part, default, banks)) is not None:
        return found
    if match := re.fullmatch(rf"(-?{_N})\.({_N})", part):
        first = last = int(match[2])
    elif match := re.fullmatch(rf"(-?{_N}):({_N})(?:-({_N}))?", part):
        first, last = int(match[2]), int(match[3] or match[2])
    elif not banks and re.fullmatch(rf"expert:({_N}|{SHARED})", part):
        raise ConfregError(f"--neurons {part}: this model has no experts.")
    else:
        raise ConfregError(
            f"--neurons: {part!r} is not understood. Write {OF_EXPERTS if banks else GRAMMAR}."
        )
    layer = whole_layer(int(match[1]), n_layers)
    if banks and (banks[layer].experts or last < first or last >= banks[layer].size):
        raise ConfregError(
            f"--neurons {part}: layer {layer} of this model has {banks[layer].describe()}. "
            f"Write {OF_EXPERTS}."
        )
    if last < first or last >= n_neurons:
        raise ConfregError(
            f"--neurons {part}: a layer of this model has neurons 0 to {n_neurons - 1}."
        )
    return [(layer, i) for i in range(first, last + 1)]
