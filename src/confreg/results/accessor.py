"""``ds.confreg``: questions that people ask a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from confreg.errors import ConfregError
from confreg.results import groups, tables
from confreg.results.intervals import intervals
from confreg.results.overlap import Overlap, overlap

if TYPE_CHECKING:
    import pandas as pd


@xr.register_dataset_accessor("confreg")
class Accessor:
    """Selection and ranking along a dataset's axes; every method returns new objects.

    Examples
    --------
    >>> ds.confreg.top("te", 5)  # the strongest, as a pandas table
    >>> ds.confreg.neuron("11.584")  # one neuron by its label
    >>> ds.confreg.select(layer=11, index=584)  # the same neuron by two of its labels
    >>> ds.confreg.select(layer=[10, 11])  # all neurons of two layers
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def neuron(self, label: str) -> xr.Dataset:
        """One neuron, by its label ``"layer.index"``.

        Raises
        ------
        ConfregError
            The dataset has no such neuron.
        """
        labels = self._coordinate("neuron").values
        found = (labels == label).nonzero()[0]
        if len(found) == 0:
            raise ConfregError(
                f"The dataset has no neuron {label!r}; it has {len(labels)}, from "
                f"{labels[0]!r} to {labels[-1]!r}."
            )
        return self._ds.isel(neuron=int(found[0]))

    def layer(self, layer: int) -> xr.Dataset:
        """The neurons of one layer.

        Raises
        ------
        ConfregError
            The dataset has no neuron of that layer.
        """
        here = self._coordinate("layer").values == layer
        if not here.any():
            layers = sorted(set(self._ds["layer"].values.tolist()))
            raise ConfregError(f"The dataset has no neuron of layer {layer}; it has {layers}.")
        return self._ds.isel(neuron=here)

    def select(self, **labels: Any) -> xr.Dataset:
        """The entries that carry all the given labels, along however many axes.

        xarray's own ``sel`` knows one label an axis (or those of
        :func:`confreg.results.index.index`); this selects by every coordinate along an axis,
        several at once: ``select(layer=11, index=584)``,
        ``select(set_kind="chosen", set_deviation=[0, 1])``, ``select(layer=11, sequence=0)``.

        Parameters
        ----------
        **labels
            A value, or a sequence of values of which an entry has one, for each coordinate.

        Returns
        -------
        xarray.Dataset
            An axis is dropped, as by ``sel``, if one entry is left and it was asked for by
            single values of its own label, or of two labels or more. Otherwise it is kept.

        Raises
        ------
        ConfregError
            There is no such coordinate, or no entry has these labels.
        """
        masks: dict[str, np.ndarray] = {}
        named: dict[str, list[str]] = {}
        for name, wanted in labels.items():
            values = self._coordinate(name)
            if values.ndim != 1:
                raise ConfregError(f"{name!r} has dims {values.dims}: it is no label of one axis.")
            dim = str(values.dims[0])
            mask = np.isin(values.values, list(wanted) if _several(wanted) else [wanted])
            masks[dim] = masks.get(dim, np.ones(len(mask), dtype=bool)) & mask
            named.setdefault(dim, []).append(name)
        taken: dict[str, Any] = {}
        for dim, mask in masks.items():
            if not mask.any():
                said = ", ".join(f"{name}={labels[name]!r}" for name in named[dim])
                raise ConfregError(f"No {dim} of the dataset has {said}.")
            single = not any(_several(labels[name]) for name in named[dim])
            whole = dim in named[dim] or len(named[dim]) > 1
            rows = np.flatnonzero(mask)
            taken[dim] = int(rows[0]) if single and whole and len(rows) == 1 else rows
        return self._ds.isel(taken)

    def top(
        self,
        by: str | None = None,
        n: int = 10,
        smallest: bool = False,
        axis: str | None = None,
    ) -> pd.DataFrame:
        """The ``n`` neurons with the largest (or smallest) value, or entries of another axis.

        Parameters
        ----------
        by : str, optional
            ``"te"``, ``"de"``, ``"mediated"``, ``"w_out_norm"``, …, or another column of
            :meth:`table`; or the name of an effect, which ranks by its mean absolute value over
            kept tokens. None: ``te_mediated``, else the first of ``te``, a mean absolute effect
            and any number that there is.
        n : int
        smallest : bool
        axis : str, optional
            The axis; None: the one that the dataset is about.

        Returns
        -------
        pandas.DataFrame
            One row an entry, strongest first, indexed by label.

        Raises
        ------
        ConfregError
            The dataset has no such axis, or no such number or effect along it.
        """
        axis = tables.chosen_axis(self._ds, axis)
        frame = self.table(axis)
        column = tables.rank_by(frame) if by is None else by
        if column not in frame:
            effect = tables.column_name("effect_abs_mean", by)
            if by is None or effect not in frame:
                raise ConfregError(
                    f"{axis.capitalize()}s cannot be ranked by {by!r}; there are "
                    f"{', '.join(map(str, frame.columns)) or 'no numbers'}."
                )
            frame = frame.assign(**{by: frame[effect]})
            column = by
        return frame.sort_values(column, ascending=smallest, kind="stable").head(n)

    def table(self, axis: str | None = None) -> pd.DataFrame:
        """Every variable along one axis as a column, one row a neuron or other entry.

        Parameters
        ----------
        axis : str, optional
            The axis; None: the one that the dataset is about.

        Returns
        -------
        pandas.DataFrame
            Indexed by label. A variable that also has an axis of quantities gives a column each:
            ``"effect_mean[loss_total]"``.

        Raises
        ------
        ConfregError
            The dataset has no such axis.
        """
        return tables.table(self._ds, axis)

    def overlap(
        self,
        other: xr.Dataset | str | Path,
        n: int = 20,
        by: str | None = None,
        axis: str | None = None,
    ) -> Overlap:
        """What the ``n`` strongest neurons have in common with those of another dataset.

        Of the neurons that both have, by label: two runs of one model, or models of one shape, such
        as a base model and its chat model.

        Parameters
        ----------
        other : Dataset, str or Path
            Another dataset, or where its store is.
        n : int
        by, axis
            As of `top`.

        Returns
        -------
        Overlap
            ``shared``, ``jaccard``, how many are ``expected`` by chance, and the hypergeometric
            ``p``.

        Raises
        ------
        ConfregError
            There is no such store, one cannot be ranked so, they have no ``n`` in common, or their
            models are of different shapes.
        """
        if not isinstance(other, xr.Dataset):
            from confreg.results.open import open

            other = open(other)
        return overlap(self._ds, other, n, by, axis)

    def kept(self) -> xr.Dataset:
        """The tokens over which reductions run."""
        keep = self._coordinate("keep")
        return self._ds.isel({keep.dims[0]: keep.values})

    def mean(self, by: str) -> xr.Dataset:
        """Means of effects over the kept tokens of each value of a label, see `groups.mean`.

        Parameters
        ----------
        by : str
            A coordinate of ``token``: ``"category"``, ``"role"``, ``"position"``.

        Returns
        -------
        Dataset
            ``effect_mean_by``, ``effect_abs_mean_by``, ``group_size`` and, where both pathways were
            measured, ``te_by``, ``de_by``, ``te_mediated_by`` and ``mediated_by``, over the
            dimension ``group``.

        Raises
        ------
        ConfregError
            The dataset holds no effects at single tokens, or tokens have no such label.
        """
        return groups.mean(self._ds, by)

    def compare_groups(
        self, first: Any, second: Any, by: str = "category", *, draws: int = 2000, seed: int = 0
    ) -> xr.Dataset:
        """How mean effects differ between two groups of documents, see `groups.compare`.

        Parameters
        ----------
        first, second
            Values of ``by``.
        by : str
            A coordinate of ``token`` that has one value in each document.
        draws, seed : int
            Permutations of, and resamples of, documents.

        Returns
        -------
        Dataset
            ``difference``, ``p``, ``q``, and ``low`` and ``high`` of a 95 % interval, each
            ``(subject, effect)``.

        Raises
        ------
        ConfregError
            As `mean`; or a document is in both groups, or there are too few.
        """
        return groups.compare(self._ds, first, second, by, draws, seed)

    def intervals(self, draws: int = 2000, level: float = 0.95, seed: int = 0) -> xr.Dataset:
        """How certain te, de and mediated are, by resampling sequences, see `intervals.intervals`.

        Parameters
        ----------
        draws, seed : int
            Resamples of sequences (of prompts: documents).
        level : float

        Returns
        -------
        Dataset
            ``te``, ``te_low``, ``te_high (subject)``, and so on of ``de``, ``te_mediated`` and
            ``mediated``.

        Raises
        ------
        ConfregError
            There are no effects of single tokens by both pathways, or but one sequence.
        """
        return intervals(self._ds, draws, level, seed)

    def _coordinate(self, name: str) -> xr.DataArray:
        if name not in self._ds.coords:
            raise ConfregError(
                f"The dataset has no labels {name!r}; it has "
                f"{', '.join(map(str, self._ds.coords)) or 'none'}."
            )
        return self._ds[name]


def _several(wanted: Any) -> bool:
    return isinstance(wanted, (Sequence, np.ndarray)) and not isinstance(wanted, (str, bytes))
