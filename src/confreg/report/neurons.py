"""What a dataset ablates as a table, and what of it is worth showing first.

That is neurons, or sets of neurons that are ablated together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_FIRST = ("te", "de", "mediated", "te_mediated", "w_out_norm", "logit_var", "null_fraction")


@dataclass(frozen=True)
class Table:
    """Numbers of n neurons.

    Attributes
    ----------
    labels
        The neurons' labels, n strings.
    columns
        Each number that a neuron has, by name, float64 (n,); the known ones come first.
    layer
        The neurons' layers, int (n,), None where the dataset does not say.
    """

    labels: list[str]
    columns: dict[str, np.ndarray]
    layer: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def take(self, rows: np.ndarray) -> Table:
        """Return some neurons: ``rows`` are positions, or a mask."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Table(
            [self.labels[row] for row in rows],
            {name: values[rows] for name, values in self.columns.items()},
            None if self.layer is None else self.layer[rows],
        )

    def row(self, label: str) -> dict[str, float]:
        """Return the numbers of one neuron."""
        at = self.labels.index(label)
        return {name: float(values[at]) for name, values in self.columns.items()}

    def rank_by(self) -> str | None:
        """Return the column by which neurons are ranked, None if there is no number at all.

        That is TE − DE, the nats of loss that ablation changes through the frozen part; else
        TE; else whatever number comes first.
        """
        for name in ("te_mediated", "te", *self.columns):
            if name in self and np.isfinite(self[name]).any():
                return name
        return None

    def ranked(self, by: str) -> list[str]:
        """Return the labels of the neurons that have the number, largest first."""
        order = np.argsort(-self[by], kind="stable")
        return [self.labels[row] for row in order if np.isfinite(self[by][row])]

    def strongest(self, count: int) -> list[str]:
        """Return the labels of the neurons to show first.

        Two thirds are the first by :meth:`rank_by`, the rest those of the largest TE that
        are not among them.
        """
        by = self.rank_by()
        if by is None:
            return []
        if "te" not in self:
            return self.ranked(by)[:count]
        chosen = self.ranked(by)[: count - count // 3]
        others = [label for label in self.ranked("te") if label not in chosen]
        return chosen + others[: count - len(chosen)]


def subject(ds: xr.Dataset) -> str:
    """Return the dimension of what is ablated: ``"neuron"``, or ``"set"``."""
    return "set" if "set" in ds.dims else "neuron"


def table(ds: xr.Dataset) -> Table:
    """Collect every number of each thing that is ablated: the variables of that dimension."""
    dim = subject(ds)
    names = [str(name) for name in ds.data_vars if ds[name].dims == (dim,)]
    names = [name for name in names if ds[name].dtype.kind in "fiu"]
    found = [name for name in _FIRST if name in names]
    found += [name for name in names if name not in found]
    columns = {name: np.asarray(ds[name].values, dtype=float) for name in found}
    if "te_mediated" not in columns and {"te", "de"} <= columns.keys():
        columns["te_mediated"] = columns["te"] - columns["de"]
    layer = np.asarray(ds["layer"].values) if dim == "neuron" and "layer" in ds else None
    return Table([str(label) for label in ds[dim].values], columns, layer)
