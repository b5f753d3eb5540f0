"""What needs no picture: numbers of the whole dataset, and the list of all variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report.placing import shown_as
from confreg.report.sections import Cell, Column, Options, Section, Table
from confreg.report.wording import label, long_name, number, sentence, units

if TYPE_CHECKING:
    import xarray as xr

VALUES = 6  # of a variable that has no view of its own


def numbers(ds: xr.Dataset, options: Options, shown: frozenset[str]) -> list[Section]:
    """List the variables that are one number, or one text, of the whole dataset."""
    names = shown_as(ds, "number")
    if not names:
        return []
    rows = []
    for name in names:
        meaning = sentence(long_name(ds, name))
        cells = [_one(ds, name), Cell(units(ds, name), ""), Cell(meaning, meaning)]
        rows.append((label(ds, name, unit=False), False, cells))
    headings = [Column("value"), Column("unit", text=True), Column("meaning", text=True)]
    table = Table(headings, rows, "number")
    return [Section("numbers", "Numbers of the run", "", [], "table", table, frozenset(names))]


def _one(ds: xr.Dataset, name: str) -> Cell:
    value = ds[name].values
    if value.dtype.kind in "fiu":
        return Cell(number(float(value)), float(value))
    return Cell(str(value), str(value))


def rest(ds: xr.Dataset, options: Options, shown: frozenset[str]) -> list[Section]:
    """List variables of which nothing else could be made: texts along several axes."""
    names = [str(name) for name in ds.data_vars if name not in shown]
    if not names:
        return []
    rows = []
    for name in names:
        array = ds[name]
        first = np.asarray(array.isel({dim: slice(0, VALUES) for dim in array.dims}).values)
        values = ", ".join(str(value) for value in first.ravel()[:VALUES])
        values += ", …" if array.size > VALUES else ""
        across = " × ".join(f"{dim} ({array.sizes[dim]:,})" for dim in array.dims)
        cells = [across, units(ds, name), values, sentence(long_name(ds, name))]
        rows.append((label(ds, name, unit=False), False, [Cell(text, text) for text in cells]))
    headings = [Column(t, text=True) for t in ("axes", "unit", "first values", "meaning")]
    table = Table(headings, rows, "variable")
    return [Section("rest", "Other variables", "", [], "table", table, frozenset(names))]
