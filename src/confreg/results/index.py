"""``ds.sel(layer=11, index=584)``: an index over several labels of one axis, beside its own.

xarray's multi-index takes the place of an axis's own label and cannot be written to a file. The
index here leaves ``neuron`` as it is, and datasets that have it are written as ever: a file
holds the labels, and the index is set again by :func:`index`.

It is not set on its own when a dataset is opened: xarray refuses to align two datasets of
*different* neurons (``a["te"] - b["te"]``) if an axis has two indexes, and that is done more
often. ``ds.confreg.select(layer=11, index=584)`` needs no index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.core.indexing import IndexSelResult


def index(ds: xr.Dataset, labels: Sequence[str] = ("layer", "index")) -> xr.Dataset:
    """Let ``sel`` know several labels of an axis, together or each alone.

    Parameters
    ----------
    ds
        The dataset; returned as it is where it lacks one of the labels, or has an index of one.
    labels
        Coordinates along one axis.

    Examples
    --------
    >>> ds = index(ds)
    >>> ds.sel(layer=11, index=584)  # one neuron
    >>> ds.sel(layer=11)  # all neurons of a layer
    >>> ds.sel(neuron="11.584")  # as ever
    >>> ds.drop_indexes(["layer", "index"])  # without it again
    """
    known = [name for name in labels if name in ds.coords and name not in ds.xindexes]
    if len(known) < len(labels) or len({ds[name].dims for name in labels}) > 1:
        return ds
    return ds.set_xindex(list(labels), LabelIndex)


class LabelIndex(xr.Index):
    """Entries of one axis by several labels that each may repeat.

    Parameters
    ----------
    dim
        The axis.
    labels
        Values of each label along it, by its name: (n,) each.
    """

    def __init__(self, dim: Any, labels: dict[Any, np.ndarray]) -> None:
        self._dim, self._labels = dim, labels

    @classmethod
    def from_variables(
        cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]
    ) -> LabelIndex:
        """Make the index of coordinates along one axis, as ``set_xindex`` asks for it."""
        (dim,) = {variable.dims[0] for variable in variables.values()}
        return cls(dim, {name: np.asarray(v.values) for name, v in variables.items()})

    def create_variables(
        self, variables: Mapping[Any, xr.Variable] | None = None
    ) -> dict[Any, xr.Variable]:
        """Return the coordinates that the index stands for, with their attributes."""
        known = variables or {}
        return {
            name: xr.Variable((self._dim,), values, known[name].attrs if name in known else None)
            for name, values in self._labels.items()
        }

    def sel(self, labels: dict[Any, Any], **_: Any) -> IndexSelResult:
        """Return where all labels are as asked for; one value or several each."""
        found = np.ones(len(next(iter(self._labels.values()))), dtype=bool)
        for name, wanted in labels.items():
            values = self._labels[name]
            if isinstance(wanted, slice):
                found &= values >= (values.min() if wanted.start is None else wanted.start)
                found &= values <= (values.max() if wanted.stop is None else wanted.stop)
            else:
                found &= np.isin(values, np.asarray(getattr(wanted, "values", wanted)))
        rows = np.flatnonzero(found)
        if not len(rows):
            raise KeyError(f"no {self._dim} with {labels}")
        whole = len(labels) == len(self._labels)
        single = all(np.ndim(one) == 0 and not isinstance(one, slice) for one in labels.values())
        return IndexSelResult({self._dim: int(rows[0]) if whole and single else rows})

    def isel(self, indexers: Mapping[Any, Any]) -> LabelIndex | None:
        """Return the index of a part of the axis; None of a single entry."""
        taken = getattr(indexers[self._dim], "values", indexers[self._dim])
        if not isinstance(taken, slice) and np.ndim(taken) != 1:
            return None
        return LabelIndex(self._dim, {name: v[taken] for name, v in self._labels.items()})

    def equals(self, other: xr.Index, **_: Any) -> bool:
        """Say whether another index has the same labels in the same order."""
        if not isinstance(other, LabelIndex) or self._labels.keys() != other._labels.keys():
            return False
        return all(np.array_equal(self._labels[n], other._labels[n]) for n in self._labels)
