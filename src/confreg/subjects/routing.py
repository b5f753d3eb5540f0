"""Neurons that a text is routed to most: the part ``routed:top:N`` of ``--neurons``.

Which they are is known once the text has gone through the model: a plan counts with others in their
place until then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from confreg.errors import ConfregError
from confreg.subjects.neurons import NeuronAxis, Neurons, first_of, neuron_axis

if TYPE_CHECKING:
    from confreg.models import Description

PART = re.compile(r"routed:top:([^:]*)")
Order = Mapping[int, np.ndarray]
"""By layer: its neurons of routed experts, those first that are routed to most, (n,) int64."""


def asked(spec: str) -> list[str]:
    """The parts of a specification that are about routing."""
    parts = (part.strip() for part in re.split("[,;]", spec))
    return [part for part in parts if PART.fullmatch(part)]


def wanted(spec: str) -> int:
    """How many of a layer's neurons a specification asks for, at most; 0 where for none."""
    return max((int(part.rpartition(":")[2]) for part in asked(spec)), default=0)


def expand(spec: str, layer: int, model: Description, order: Order) -> str:
    """A specification with ``routed:top:N`` written out as neurons of a layer.

    Parameters
    ----------
    spec : str
    layer : int
        From 0.
    model : Description
    order : mapping
        Where a layer is not known yet, its first neurons are taken.

    Raises
    ------
    ConfregError
        The layer has no routed experts, or has fewer neurons.
    """
    return ";".join(
        ",".join(_expanded(part.strip(), layer, model, order) for part in each.split(","))
        for each in spec.split(";")
    )


def _expanded(part: str, layer: int, model: Description, order: Order) -> str:
    if not PART.fullmatch(part):
        return part
    bank = model.banks[layer] if model.banks else None
    if bank is None or not bank.experts:
        has = "no routed experts" if bank is None else bank.describe()
        raise ConfregError(
            f"--neurons {part}: that is about routed experts, and layer {layer} of this model has "
            f"{has}."
        )
    count, width = part.rpartition(":")[2], bank.routed
    if not re.fullmatch(r"[1-9][0-9]{0,8}", count) or int(count) > width:
        raise ConfregError(
            f"--neurons {part}: routed:top: takes a number from 1 to {width:,}, which is how many "
            f"neurons the routed experts of layer {layer} have."
        )
    index = order.get(layer, np.arange(width))[: int(count)]
    return ",".join(Neurons(np.full_like(index, layer), index, model.banks).names.tolist())


def candidates(layers: list[int], model: Description) -> NeuronAxis:
    """Every neuron of the routed experts of some layers, as an axis."""
    counts = [model.banks[layer].routed for layer in layers]
    return neuron_axis(first_of(layers, counts, model.banks), model.n_neurons)


def ordered(axis: NeuronAxis, count: np.ndarray, squares: np.ndarray) -> Order:
    """Neurons by how many tokens are routed to them, equal ones by their root mean square.

    Parameters
    ----------
    axis : NeuronAxis
        As of `candidates`.
    count, squares : ndarray (n,)
        Of each, tokens at which it is there, and the sum of its activation's squares over them.
    """
    size = squares / np.maximum(count, 1)
    found = {}
    for layer in axis.layers:
        own = np.flatnonzero(axis.layer == layer)
        first = np.lexsort((axis.neurons.index[own], -size[own], -count[own]))
        found[layer] = axis.neurons.index[own[first]]
    return found
