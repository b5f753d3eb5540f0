"""The numbers along one axis as a table, and which of its rows are worth showing first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.errors import ConfregError
from confreg.results import axes, vocabulary

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def table(ds: xr.Dataset, axis: str | None = None) -> pd.DataFrame:
    """Collect every variable along one axis.

    Parameters
    ----------
    ds
        A dataset of any recipe.
    axis
        The axis; None: :func:`confreg.results.axes.main_subject`.

    Returns
    -------
    pandas.DataFrame
        One row an entry of the axis, indexed by its labels. A variable along the axis alone is
        a column of its name; one that also has an axis of quantities, a column a quantity:
        ``"effect_mean[loss_total]"``. Shared words come first. ``te_mediated`` is worked out
        from ``te`` and ``de`` where the dataset lacks it.

    Raises
    ------
    ConfregError
        The dataset has no such axis.
    """
    import pandas as pd

    axis = chosen_axis(ds, axis)
    quantities = axes.of_kind(ds, "quantity")
    columns: dict[str, np.ndarray] = {}
    for name in vocabulary.ordered([str(name) for name in ds.data_vars]):
        array = ds[name]
        if array.dims == (axis,):
            columns[name] = np.asarray(array.values)
        elif array.ndim == 2 and axis in array.dims and (set(array.dims) - {axis}) <= {*quantities}:
            (quantity,) = set(array.dims) - {axis}
            values = np.asarray(array.transpose(axis, quantity).values)
            for entry, column in zip(axes.labels(ds, str(quantity)), values.T, strict=True):
                columns[column_name(name, entry)] = column
    if "te_mediated" not in columns and {"te", "de"} <= columns.keys():
        columns["te_mediated"] = columns["te"] - columns["de"]
        columns = {name: columns[name] for name in vocabulary.ordered(list(columns))}
    return pd.DataFrame(columns, index=pd.Index(axes.labels(ds, axis), name=axis))


def chosen_axis(ds: xr.Dataset, axis: str | None) -> str:
    """Return the axis that is asked for, or the obvious one.

    Raises
    ------
    ConfregError
        There is no such axis, or none at all.
    """
    if axis is not None and axis not in ds.sizes:
        raise ConfregError(
            f"The dataset has no axis {axis!r}; it has {', '.join(map(str, ds.sizes)) or 'none'}."
        )
    found = axis or axes.main_subject(ds)
    if found is None:
        raise ConfregError("The dataset has no axis with labels, hence no table.")
    return found


def column_name(variable: str, entry: object) -> str:
    """Name the column of one quantity of a variable."""
    return f"{variable}[{entry}]"


def split_column(column: str) -> tuple[str, str | None]:
    """Return the variable of a column, and its quantity if it is a column of one."""
    variable, bracket, entry = column.partition("[")
    return (variable, entry[:-1]) if bracket and entry.endswith("]") else (column, None)


def numbers(frame: pd.DataFrame) -> list[str]:
    """Return the columns that hold numbers, in the table's order."""
    return [str(name) for name in frame.columns if frame[name].dtype.kind in "fiu"]


def rank_by(frame: pd.DataFrame) -> str | None:
    """Return the column by which rows are ranked, None if there is no number at all.

    That is TE − DE, the nats of loss that ablation changes through the frozen part; else TE;
    else the first mean absolute effect; else whatever number comes first.
    """
    usable = [name for name in numbers(frame) if np.isfinite(frame[name]).any()]
    for wanted in vocabulary.RANKED_BY:
        for name in usable:
            if split_column(name)[0] == wanted:
                return name
    return usable[0] if usable else None


def ranked(frame: pd.DataFrame, by: str) -> list:
    """Return the labels of the rows that have the number, largest first."""
    values = frame[by].to_numpy(dtype=float)
    order = np.argsort(-values, kind="stable")
    return frame.index[order[np.isfinite(values[order])]].tolist()


def strongest(frame: pd.DataFrame, count: int) -> list:
    """Return the labels of the rows to show first: :func:`leading`, one after another."""
    return [label for _, labels in leading(frame, count) for label in labels]


def leading(frame: pd.DataFrame, count: int) -> list[tuple[str, list]]:
    """Return the rows to show first, as pairs of the column that they lead by and their labels.

    Two thirds are the first by :func:`rank_by`, the rest those of the largest TE that are not
    among them.
    """
    by = rank_by(frame)
    if by is None:
        return []
    rest = count // 3 if "te" in frame and by != "te" else 0
    found = ranked(frame, by)[: count - rest]
    others = [label for label in ranked(frame, "te") if label not in found] if rest else []
    parts = [(by, found), ("te", others[: count - len(found)])]
    return [(column, labels) for column, labels in parts if labels]
