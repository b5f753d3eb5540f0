"""Reading large variables a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from confreg.results import axes

if TYPE_CHECKING:
    import xarray as xr

SPAN = 8_000_000  # numbers that are in memory at once


def spans(array: xr.DataArray, dim: str) -> Iterator[tuple[int, int, xr.DataArray]]:
    """Read an array along one of its dimensions: start, stop, and what lies between."""
    size = array.sizes[dim]
    step = max(1, SPAN // max(1, array.size // max(1, size)))
    for start in range(0, size, step):
        stop = min(size, start + step)
        yield start, stop, array.isel({dim: slice(start, stop)}).load()


def kept(ds: xr.Dataset, array: xr.DataArray) -> xr.DataArray:
    """Leave out the tokens that are in no mean, if the array is along tokens."""
    text = axes.text(ds)
    if text is None or text not in array.dims or "keep" not in ds.coords:
        return array
    return array.isel({text: np.flatnonzero(ds["keep"].values)})
