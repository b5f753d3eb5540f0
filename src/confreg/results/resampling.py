"""Drawing documents anew: what is independent in a text are its documents, never tokens of one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from confreg.errors import ConfregError

DRAWS = 256
"""Resamples, or permutations, that are held at once."""


def resampled(generator: np.random.Generator, mask: np.ndarray, draws: int) -> np.ndarray:
    """How often each document is drawn of those that a mask (D,) has, (draws, D) float64."""
    members = np.flatnonzero(mask)
    found = np.zeros((draws, len(mask)))
    share = np.full(len(members), 1 / len(members))
    found[:, members] = generator.multinomial(len(members), share, size=draws)
    return found


class Documents:
    """The documents that kept tokens belong to, and resamples of them.

    Parameters
    ----------
    ds : Dataset
        With ``keep`` and ``document`` or ``sequence (token)``.
    draws, seed : int
    what : str, optional
        The label that tells them apart, see the attribute.
    least : int
        As many there must be. An interval needs two.

    Attributes
    ----------
    keep : ndarray (T,) bool
    what : str
        By default ``"document"``, or ``"sequence"`` where documents are not known.

    Raises
    ------
    ConfregError
        Kept tokens are of fewer.
    """

    def __init__(
        self, ds: xr.Dataset, draws: int, seed: int, what: str = "", least: int = 2
    ) -> None:
        self.what = what or ("document" if "document" in ds.coords else "sequence")
        self.keep = ds["keep"].values.astype(bool)
        names, codes = np.unique(ds[self.what].values[self.keep], return_inverse=True)
        if len(names) < least:
            raise ConfregError(
                f"The kept tokens are of one {self.what}: an interval needs two or more. Give more "
                "text, or a smaller --sequence-length."
            )
        self._codes, self._count = codes, len(names)
        self._starts = np.flatnonzero(np.diff(codes, prepend=-1))
        self._sorted = len(self._starts) == len(names)
        every = np.ones(len(names), dtype=bool)
        self._weights = resampled(np.random.default_rng(seed), every, draws).T

    def __len__(self) -> int:
        """Return the number of documents."""
        return self._count

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the tokens of each document: (..., kept) -> (..., documents) float64."""
        values = values.astype(np.float64, copy=False)
        if self._sorted:  # tokens of a document lie side by side
            return np.add.reduceat(values, self._starts, axis=-1)
        return values @ np.eye(self._count)[self._codes]

    def interval(
        self, statistic: Callable[[np.ndarray], np.ndarray], level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A statistic of all documents, and both ends of its percentile interval over resamples.

        ``statistic(weights)`` has one more dimension than its value, the last: one entry a column
        of ``weights`` (documents, m), how often each document counts.
        """
        value = statistic(np.ones((self._count, 1)))[..., 0]
        drawn = np.concatenate(
            [
                statistic(self._weights[:, start : start + DRAWS])
                for start in range(0, self._weights.shape[1], DRAWS)
            ],
            axis=-1,
        )
        with np.errstate(invalid="ignore"):
            unknown = ~np.isfinite(drawn)
            filled = np.where(unknown, np.nan, drawn)
            empty = unknown.all(-1)
            filled[empty] = 0.0
            low, high = np.nanpercentile(filled, (50 * (1 - level), 50 * (1 + level)), axis=-1)
        return value, np.where(empty, np.nan, low), np.where(empty, np.nan, high)
