"""Sets of neurons that are ablated together: the chosen ones, and random ones as controls."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.errors import ConfregError
from confreg.execution import neurons as choosing
from confreg.execution.neurons import Neurons

if TYPE_CHECKING:
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
        The chosen set, by its number, of which a set is one or for which it is a control.
    deviation : ndarray (n,)
        k of the ablation value mean + k·σ.
    """

    members: list[np.ndarray]
    layer: np.ndarray
    labels: np.ndarray
    kind: np.ndarray
    control: np.ndarray
    deviation: np.ndarray

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
        return {
            "set": self.labels,
            "set_kind": self.kind,
            "set_control": self.control,
            "set_deviation": self.deviation,
            "set_size": np.array([len(m) for m in self.members]),
            "member": np.stack([np.isin(index, m) for m in self.members]),
        }


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
    chosen = [
        choosing.choose(part, int(parameters["layer"]), model.n_layers, model.n_neurons, seed)
        for part in spec.split(";")
    ]
    layers = sorted({layer for part in chosen for layer in part.layers})
    if len(layers) > 1:
        raise ConfregError(
            f"The sets {spec!r} are of layers {layers}: sets of one run are of one layer."
        )
    deviations = _deviations(str(parameters["deviations"]))
    rows: list[tuple[np.ndarray, str, str, int, float]] = []
    for number, part in enumerate(chosen):
        # Controls hold none of the set's own neurons.
        others = np.setdiff1d(np.arange(model.n_neurons), part.index)
        if len(others) < len(part):
            raise ConfregError(
                f"A set of {len(part)} of the layer's {model.n_neurons} neurons leaves too few for "
                "random sets of the same size: name fewer with --neurons."
            )
        drawn = [
            np.sort(rng.choice(others, len(part), replace=False))
            for _ in range(int(parameters["random_sets"]))
        ]
        for k in deviations:
            at = f":{k:+g}σ" if k else ""
            rows.append((part.index, f"chosen-{number}{at}", "chosen", number, k))
            rows += [
                (members, f"random-{number}.{i}{at}", "random", number, k)
                for i, members in enumerate(drawn)
            ]
    members, labels, kind, control, deviation = zip(*rows)
    return Sets(
        members=list(members),
        layer=np.full(len(rows), layers[0]),
        labels=np.array(labels, dtype=object),
        kind=np.array(kind, dtype=object),
        control=np.array(control),
        deviation=np.array(deviation, dtype=np.float32),
    )


def _deviations(text: str) -> list[float]:
    if not re.fullmatch(r"\s*[-+]?\d+(\.\d+)?(\s*,\s*[-+]?\d+(\.\d+)?)*\s*", text):
        raise ConfregError(f"deviations={text!r} is not a list of numbers such as -1,0,1.")
    return list(dict.fromkeys(float(k) for k in text.split(",")))


def p_values(sets: Sets, magnitude: np.ndarray) -> np.ndarray:
    """How often a random set does at least as much as each set, (n, E) float32.

    (1 + count)/(1 + random sets), over the controls of the same chosen set at the same ablation
    value; NaN for the random sets themselves.

    Parameters
    ----------
    magnitude : ndarray (n, E)
        Mean absolute effects.
    """
    found = np.full(magnitude.shape, np.nan, dtype=np.float32)
    for i in np.flatnonzero(sets.kind == "chosen"):
        same = (sets.control == sets.control[i]) & (sets.deviation == sets.deviation[i])
        controls = magnitude[same & (sets.kind == "random")]
        found[i] = (1 + (controls >= magnitude[i]).sum(axis=0)) / (1 + len(controls))
    return found
