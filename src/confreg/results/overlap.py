"""Do two runs find the same neurons? What their strongest have in common, and what chance gives."""

from __future__ import annotations

from typing import NamedTuple

import xarray as xr

from confreg.errors import ConfregError
from confreg.results import axes, tables
from confreg.results.shape import unlike


class Overlap(NamedTuple):
    """What the strongest n entries of two datasets have in common.

    Attributes
    ----------
    shared : tuple of str
        Those that are among the n of both, the first dataset's strongest first.
    n : int
        How many of each are compared.
    population : int
        Entries that both datasets have, N.
    jaccard : float
        Shared ones over all that are among the n of either.
    expected : float
        How many are shared by chance, n²/N.
    p : float
        Chance that two random choices of n among the N share at least as many (hypergeometric).
    """

    shared: tuple[str, ...]
    n: int
    population: int
    jaccard: float
    expected: float
    p: float


def by_chance(shared: int, n: int, population: int) -> tuple[float, float]:
    """Jaccard's index of two choices of n that share so many, and the chance of that or more.

    Of two random choices among ``population`` (hypergeometric).
    """
    from scipy.stats import hypergeom

    return shared / (2 * n - shared), float(hypergeom.sf(shared - 1, population, n, n))


def overlap(
    first: xr.Dataset, second: xr.Dataset, n: int, by: str | None, axis: str | None
) -> Overlap:
    """Compare the strongest entries that two datasets have both.

    Parameters
    ----------
    first, second : Dataset
    n : int
    by : str, optional
        As of `Accessor.top`, for both.
    axis : str, optional
        As of `Accessor.top`.

    Raises
    ------
    ConfregError
        They cannot be ranked so, have no n entries in common, n is no number of entries, or their
        models are of different shapes.
    """
    axis = tables.chosen_axis(first, axis)
    if axis != axes.text(first) and (shapes := unlike(first, second)):
        raise ConfregError(
            f"{axis.capitalize()}s of one name are not the same ones: the models are of different "
            f"shapes ({shapes})."
        )
    ranked = []
    for ds in (first, second):
        frame = ds.confreg.top(by, ds.sizes.get(axis, 0), axis=axis)
        column = by or tables.rank_by(frame)
        ranked.append(frame.index[frame[column].notna()].tolist())
    both = set(ranked[0]) & set(ranked[1])
    if not 0 < n <= len(both):
        raise ConfregError(
            f"The datasets have {len(both)} {axis}s in common: the strongest {n} of them cannot be "
            "compared."
        )
    own, other = ([label for label in labels if label in both][:n] for labels in ranked)
    shared = tuple(str(label) for label in own if label in set(other))
    population = len(both)
    jaccard, p = by_chance(len(shared), n, population)
    return Overlap(shared, n, population, jaccard, expected=n * n / population, p=p)
