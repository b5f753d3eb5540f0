"""The part of the page about effects: what each is, and how exactly it was computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report.sections import Cell, Column, Options, Section, Table, section
from confreg.report.wording import (
    in_units,
    long_name,
    number,
    quantities,
    quantity_units,
    sentence,
)

if TYPE_CHECKING:
    import xarray as xr


@section(
    needs={"effect_error": ("effect",), "effect_long_name": ("effect",)},
    shows=("effect_error",),
    last=True,
)
def exactness(ds: xr.Dataset, options: Options) -> Section:
    """List every effect with its meaning and its largest error."""
    units = quantity_units(ds, "effect")
    shared = units[0] if len(set(units)) == 1 else ""
    columns = [Column("meaning", text=True), Column(in_units("largest error", shared))]
    columns += [] if shared or not any(units) else [Column("unit", text=True)]
    rows = []
    entries = zip(
        quantities(ds, "effect"), ds["effect_long_name"].values, ds["effect_error"].values, units
    )
    for name, meaning, error, unit in entries:
        known = float(error) if np.isfinite(error) else None
        cells = [Cell(sentence(str(meaning)), str(meaning)), Cell(number(float(error)), known)]
        rows.append((name, False, [*cells, Cell(unit, unit)][: len(columns)]))
    title = "Effects, and how exactly they were computed"
    lead = f"{sentence(long_name(ds, 'effect_error'))}."
    return Section("effects", title, lead, [], "table", Table(columns, rows, "effect"))
