"""Means over tokens: of effects, from sums over the same tokens, and of what may be NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from confreg.effects import Effect

Reduced = Mapping[str, Callable[[Mapping[str, np.ndarray]], Any]]
"""By the name of an effect, what it is over several tokens, from the sums of all effects."""


def reduced(effects: Sequence[Effect]) -> Reduced:
    """Those of some effects whose mean over tokens is not the mean of the tokens' values."""
    return {
        effect.name: effect.measure.reduced
        for effect in effects
        if effect.measure.reduced is not None
    }


def of_sums(
    sums: np.ndarray,
    counts: np.ndarray,
    names: Sequence[str],
    own: Reduced,
    signed: np.ndarray | None = None,
) -> np.ndarray:
    """Means of effects, (n, E, ...); NaN where an effect is defined at no token.

    Parameters
    ----------
    sums : ndarray (n, E, ...)
        Of each effect, or of its absolute value, over the tokens at which it is defined.
    counts : ndarray
        How many those are; of a shape that broadcasts with the sums'.
    names : sequence of str
        The effects.
    own : mapping
        As of `reduced`. Such an effect has one mean, of absolute values too.
    signed : ndarray (n, E, ...), optional
        Sums of the effects, where ``sums`` are of absolute values.
    """
    of = sums if signed is None else signed
    totals = {name: of[:, column] for column, name in enumerate(names)}
    with np.errstate(invalid="ignore", divide="ignore"):
        found = sums / counts
        for column, name in enumerate(names):
            if name in own:
                found[:, column] = own[name](totals)
    return found


def mean_where_there(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is not NaN, NaN where all is: (n, T) to (n,) float64."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis=1, dtype=float) / there.sum(axis=1)


def deviation_where_there(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each row over what is not NaN, as `mean_where_there`."""
    return np.sqrt(mean_where_there((values - mean_where_there(values)[:, None]) ** 2))
