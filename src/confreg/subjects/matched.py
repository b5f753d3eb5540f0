"""Random neurons of about the norm of chosen ones, ‖w_out‖, as their controls."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

NEAREST = 20
"""Neurons nearest in norm to each chosen one, of which one is drawn, at least."""


class Drawn(NamedTuple):
    """A random set.

    Attributes
    ----------
    members : ndarray (k,)
        Neurons of the layer, ascending.
    gap : float
        Mean of |log ‖w‖ − log ‖w'‖| over pairs of a chosen neuron and the one that stands for it;
        NaN where norms play no part.
    """

    members: np.ndarray
    gap: float = math.nan


def neurons(norms: np.ndarray, others: np.ndarray, chosen: np.ndarray, count: int) -> list[Drawn]:
    """``count`` of the others: the nearest in norm to each of the chosen, in turn.

    Parameters
    ----------
    norms : ndarray (m,)
        ‖w_out‖ of the layer's neurons.
    others, chosen : ndarray of int
        Neurons that may be drawn, and those that they are to be like.
    count : int
        At most as many as there are others.
    """
    ranked = [iter(others[np.argsort(gap, kind="stable")]) for gap in _gaps(norms, others, chosen)]
    taken: dict[int, float] = {}
    log = _log(norms)
    while len(taken) < count:
        for own, nearest in zip(chosen, ranked):
            found = next((n for n in nearest if n not in taken), None)
            if found is not None and len(taken) < count:
                taken[int(found)] = abs(float(log[found] - log[own]))
    return [Drawn(np.array([index]), gap) for index, gap in taken.items()]


def sets(
    rng: np.random.Generator, norms: np.ndarray, others: np.ndarray, chosen: np.ndarray, count: int
) -> list[Drawn]:
    """``count`` sets, no two alike, of as many neurons as are chosen: one like each of them.

    Each is drawn among the neurons nearest to it in norm that the set does not have yet.
    """
    width = min(max(NEAREST, 2 * len(chosen)), len(others))
    while math.comb(width, len(chosen)) < 2 * count and width < len(others):
        width += 1
    order = np.argsort(_gaps(norms, others, chosen), axis=1, kind="stable")[:, :width]
    log, drawn = _log(norms), {}
    while len(drawn) < count:
        found: list[int] = []
        for nearest in order:
            left = others[nearest][~np.isin(others[nearest], found)]
            found.append(int(rng.choice(left)))
        gap = float(np.abs(log[found] - log[chosen]).mean())
        members = np.sort(found)
        drawn.setdefault(tuple(members.tolist()), Drawn(members, gap))
    return list(drawn.values())


def _log(norms: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(norms.astype(np.float64), 1e-30))


def _gaps(norms: np.ndarray, others: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How far each of the others is from each of the chosen, (k, n)."""
    log = _log(norms)
    return np.abs(log[others][None] - log[chosen][:, None])
