"""Sets of neurons that are ablated together: the chosen ones, and random ones as controls."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from confreg.errors import ConfregError
from confreg.execution import neurons as choosing
from confreg.execution.neurons import Neurons

if TYPE_CHECKING:
    from confreg.execution.heads import HeadSets
    from confreg.models import Description


@dataclass(frozen=True)
class Sets:
    """Sets of neurons of one layer, each ablated to one value a neuron.

    Attributes
    ----------
    members : list of ndarray (k,)
        Indices in the layer of each set's neurons.
    layer : ndarray (n,)
        The same layer for all.
    labels, kind : ndarray (n,) object
        ``kind`` is "chosen" or "random".
    control : ndarray (n,)
        A number that chosen sets and their controls share.
    deviation : ndarray (n,)
        k of the ablation value mean + k·σ.
    clipped : ndarray (n,) bool
        Whether activations are replaced only where a repeat pushes them to.
    """

    members: list[np.ndarray]
    layer: np.ndarray
    labels: np.ndarray
    kind: np.ndarray
    control: np.ndarray
    deviation: np.ndarray
    clipped: np.ndarray

    def __len__(self) -> int:
        return len(self.members)

    @property
    def layers(self) -> list[int]:
        """The layers they are in: one."""
        return sorted(set(self.layer.tolist()))

    @property
    def neurons(self) -> Neurons:
        """Every neuron that is in a set."""
        index = np.unique(np.concatenate(self.members))
        return Neurons(np.full_like(index, self.layer[0]), index)

    def coordinates(self) -> dict[str, Any]:
        """Labels along the dimension ``set``, and which neurons are in which set."""
        index = self.neurons.index
        clipped = {"set_clipped": self.clipped} if self.clipped.any() else {}
        return {
            **clipped,
            "set": self.labels,
            "set_kind": self.kind,
            "set_control": self.control,
            "set_deviation": self.deviation,
            "set_size": np.array([len(m) for m in self.members]),
            "member": np.stack([np.isin(index, m) for m in self.members]),
        }

    def controls_of(self, i: int) -> np.ndarray:
        """Which sets are random controls of a chosen one, ablated as it is: (n,) bool."""
        same = self.kind == "random"
        for way in (self.control, self.deviation, self.clipped):
            same &= way == way[i]
        return same

    def describe(self) -> str:
        """How many, in words."""
        chosen = int((self.kind == "chosen").sum())
        values = ", ".join(f"{k:+g}" for k in sorted(set(self.deviation.tolist())))
        way = f"at mean + k·σ for k = {values}"
        if self.clipped.any():
            way = "at the mean, half of them clipped"
        return f"{chosen:,} chosen and {len(self) - chosen:,} random, {way}"


def choose(spec: str, parameters: Mapping[str, Any], model: Description, seed: int) -> Sets:
    """Chosen sets and their random controls, each at every ablation value.

    Parameters
    ----------
    spec : str
        Sets separated by ``;``, each in the grammar of `confreg.execution.neurons`.
    parameters : mapping
        ``layer``; ``random_sets``, how many controls a chosen set has; ``deviations``, the k of
        the ablation values mean + k·σ, separated by commas.
    model : Description
    seed : int

    Raises
    ------
    ConfregError
        A set that is the whole layer, or of several layers, or leaves too few others.
    """
    rng = np.random.default_rng(seed)
    chosen = _chosen(spec, parameters, model, seed)
    rows: list[_Row] = []
    for number, part in enumerate(chosen):
        # Controls hold none of the set's own neurons.
        drawn = _draw(rng, model, part.index, len(part), int(parameters["random_sets"]))
        for k in _deviations(str(parameters["deviations"])):
            at = f":{k:+g}σ" if k else ""
            rows.append(_Row(part.index, f"chosen-{number}{at}", "chosen", number, k))
            rows += [
                _Row(members, f"random-{number}.{i}{at}", "random", number, k)
                for i, members in enumerate(drawn)
            ]
    return _sets(rows, chosen[0].layer[0])


def alone_and_joint(
    spec: str, parameters: Mapping[str, Any], model: Description, seed: int
) -> Sets:
    """Chosen neurons, each alone and each set jointly, and random controls: plain and clipped.

    Parameters
    ----------
    spec, model, seed
        As of `choose`.
    parameters : mapping
        ``layer``; ``random_sets``, how many random neurons and how many random sets of the size
        of each chosen one there are. None holds a chosen neuron.

    Raises
    ------
    ConfregError
        As `choose`.
    """
    rng = np.random.default_rng(seed)
    chosen = _chosen(spec, parameters, model, seed)
    layer, count = chosen[0].layer[0], int(parameters["random_sets"])
    every = np.unique(np.concatenate([part.index for part in chosen]))
    joint = [part.index for part in chosen if len(part) > 1]
    families = [
        [(every[i : i + 1], f"{layer}.{every[i]}") for i in range(len(every))],
        *([(members, f"joint-{number}")] for number, members in enumerate(joint)),
    ]
    rows: list[_Row] = []
    for number, family in enumerate(families):
        drawn = _draw(rng, model, every, len(family[0][0]), count)
        for clipped in (False, True):
            at = ":clipped" if clipped else ""
            rows += [_Row(m, label + at, "chosen", number, 0.0, clipped) for m, label in family]
            rows += [
                _Row(members, f"random-{number}.{i}{at}", "random", number, 0.0, clipped)
                for i, members in enumerate(drawn)
            ]
    return _sets(rows, layer)


class _Row(NamedTuple):
    """One of the `Sets`."""

    members: np.ndarray
    label: str
    kind: str
    control: int
    deviation: float
    clipped: bool = False


def _sets(rows: list[_Row], layer: int) -> Sets:
    members, labels, kind, control, deviation, clipped = zip(*rows)
    return Sets(
        members=list(members),
        layer=np.full(len(rows), layer),
        labels=np.array(labels, dtype=object),
        kind=np.array(kind, dtype=object),
        control=np.array(control),
        deviation=np.array(deviation, dtype=np.float32),
        clipped=np.array(clipped),
    )


def _chosen(
    spec: str, parameters: Mapping[str, Any], model: Description, seed: int
) -> list[Neurons]:
    """The sets that a specification names, all of one layer."""
    if spec == "all":
        raise ConfregError(
            "This recipe ablates sets of neurons: name them with --neurons, for instance "
            f"{model.n_layers - 1}.5,{model.n_layers - 1}.7 (';' separates sets)."
        )
    chosen = [
        choosing.choose(part, int(parameters["layer"]), model.n_layers, model.n_neurons, seed)
        for part in spec.split(";")
    ]
    layers = sorted({layer for part in chosen for layer in part.layers})
    if len(layers) > 1:
        raise ConfregError(
            f"The sets {spec!r} are of layers {layers}: sets of one run are of one layer."
        )
    return chosen


def _draw(
    rng: np.random.Generator, model: Description, without: np.ndarray, size: int, count: int
) -> list[np.ndarray]:
    """``count`` random sets of ``size`` neurons, none of those in ``without``, no two alike."""
    others = np.setdiff1d(np.arange(model.n_neurons), without)
    if len(others) < size or math.comb(len(others), size) < count:
        raise ConfregError(
            f"{len(without)} chosen of the layer's {model.n_neurons} neurons leave too few for "
            f"{count} random sets of {size}: name fewer with --neurons, or lower random_sets."
        )
    drawn: dict[tuple[int, ...], np.ndarray] = {}
    while len(drawn) < count:
        members = np.sort(rng.choice(others, size, replace=False))
        drawn.setdefault(tuple(members.tolist()), members)
    return list(drawn.values())


def _deviations(text: str) -> list[float]:
    if not re.fullmatch(r"\s*[-+]?\d+(\.\d+)?(\s*,\s*[-+]?\d+(\.\d+)?)*\s*", text):
        raise ConfregError(f"deviations={text!r} is not a list of numbers such as -1,0,1.")
    return list(dict.fromkeys(float(k) for k in text.split(",")))


def p_values(sets: Sets | HeadSets, magnitude: np.ndarray) -> np.ndarray:
    """How often a random set does at least as much as each set, (n, E) float32.

    (1 + count)/(1 + random sets), over the controls of the same chosen set at the same ablation
    value; NaN for the random sets themselves.

    Parameters
    ----------
    magnitude : ndarray (n, E)
        Mean absolute effects, or whatever else is measured of every set.
    """
    found = np.full(magnitude.shape, np.nan, dtype=np.float32)
    for i in np.flatnonzero(sets.kind == "chosen"):
        controls = magnitude[sets.controls_of(int(i))]
        found[i] = (1 + (controls >= magnitude[i]).sum(axis=0)) / (1 + len(controls))
    return found
