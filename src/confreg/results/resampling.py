"""Drawing documents anew: what is independent in a text are its documents, never tokens of one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from confreg.errors import ConfregError

DRAWS = 256
"""Resamples that are held at once."""


class Documents:
    """The documents that kept tokens belong to, and resamples of them.

    Parameters
    ----------
    ds : Dataset
        With ``keep`` and ``document`` or ``sequence (token)``.
    draws, seed : int

    Attributes
    ----------
    keep : ndarray (T,) bool
    what : str
        ``"document"``, or ``"sequence"`` where documents are not known.

    Raises
    ------
    ConfregError
        Kept tokens are of fewer than two.
    """

    def __init__(self, ds: xr.Dataset, draws: int, seed: int) -> None:
        self.what = "document" if "document" in ds.coords else "sequence"
        self.keep = ds["keep"].values.astype(bool)
        names, codes = np.unique(ds[self.what].values[self.keep], return_inverse=True)
        if len(names) < 2:
            raise ConfregError(
                f"All kept tokens are of one {self.what}: an interval needs two or more."
            )
        self._codes, self._count = codes, len(names)
        self._starts = np.flatnonzero(np.diff(codes, prepend=-1))
        self._sorted = len(self._starts) == len(names)
        generator = np.random.default_rng(seed)
        even = np.full(len(names), 1 / len(names))
        self._weights = generator.multinomial(len(names), even, size=draws).astype(np.float64).T

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
        self, statistic: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A statistic of all documents, and its 2.5 % and 97.5 % percentiles over resamples.

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
            low, high = np.nanpercentile(filled, (2.5, 97.5), axis=-1)
        return value, np.where(empty, np.nan, low), np.where(empty, np.nan, high)
