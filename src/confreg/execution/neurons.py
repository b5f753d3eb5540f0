"""Which neurons: the grammar of ``--neurons``."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from confreg.errors import ConfregError

GRAMMAR = (
    "all | 11.584,11.2378 (layer.index) | 31:0-511 (layer:first-last, both included) | "
    "31:7 | random:100 | several of these joined by commas"
)


@dataclass(frozen=True)
class Neurons:
    """Chosen neurons, each once, sorted by layer and index.

    Attributes
    ----------
    layer, index : ndarray (n,) int64
    """

    layer: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def labels(self) -> np.ndarray:
        """``"layer.index"``, (n,) object."""
        return np.array(
            [f"{a}.{b}" for a, b in zip(self.layer.tolist(), self.index.tolist())], dtype=object
        )

    @property
    def layers(self) -> list[int]:
        """The layers they are in, ascending."""
        return sorted(set(self.layer.tolist()))


def choose(spec: str, layer: int, n_layers: int, n_neurons: int, seed: int) -> Neurons:
    """Read a specification.

    Parameters
    ----------
    spec : str
        See `GRAMMAR`.
    layer : int
        The layer that ``all`` and ``random:N`` mean; negative counts from the end.
    n_layers, n_neurons : int
        Of the model: its layers, and neurons per layer.
    seed : int
        Of ``random:N``.

    Raises
    ------
    ConfregError
        Grammar, or a neuron that the model does not have.
    """
    default = whole_layer(layer, n_layers)
    found: set[tuple[int, int]] = set()
    for part in filter(None, (p.strip() for p in spec.split(","))):
        found.update(_part(part, default, n_layers, n_neurons, seed))
    if not found:
        raise ConfregError(f"--neurons {spec!r} names no neuron. Write {GRAMMAR}.")
    pairs = np.array(sorted(found), dtype=np.int64)
    return Neurons(pairs[:, 0], pairs[:, 1])


def whole_layer(layer: int, n_layers: int) -> int:
    """A layer from 0, given from either end.

    Raises
    ------
    ConfregError
        The model has no such layer.
    """
    if not -n_layers <= layer < n_layers:
        raise ConfregError(
            f"There is no layer {layer}: the model has layers 0 to {n_layers - 1} "
            "(-1 means the last)."
        )
    return layer % n_layers


def _part(
    part: str, default: int, n_layers: int, n_neurons: int, seed: int
) -> list[tuple[int, int]]:
    if part == "all":
        return [(default, i) for i in range(n_neurons)]
    if match := re.fullmatch(r"random:(\d+)", part):
        wanted = int(match[1])
        if not 0 < wanted <= n_neurons:
            raise ConfregError(f"--neurons {part}: a layer of this model has {n_neurons} neurons.")
        drawn = np.random.default_rng(seed).choice(n_neurons, wanted, replace=False)
        return [(default, int(i)) for i in drawn]
    if match := re.fullmatch(r"(-?\d+)\.(\d+)", part):
        first = last = int(match[2])
    elif match := re.fullmatch(r"(-?\d+):(\d+)(?:-(\d+))?", part):
        first, last = int(match[2]), int(match[3] or match[2])
    else:
        raise ConfregError(f"--neurons: {part!r} is not understood. Write {GRAMMAR}.")
    layer = whole_layer(int(match[1]), n_layers)
    if last < first or last >= n_neurons:
        raise ConfregError(
            f"--neurons {part}: a layer of this model has neurons 0 to {n_neurons - 1}."
        )
    return [(layer, i) for i in range(first, last + 1)]
