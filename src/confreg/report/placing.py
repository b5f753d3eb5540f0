"""Where on the page a variable is shown, told by its dims alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confreg.results import axes

if TYPE_CHECKING:
    import xarray as xr

View = Literal["number", "table", "text", "context", "map"]


@dataclass(frozen=True)
class Place:
    """How a variable is shown.

    Attributes
    ----------
    view
        ``"number"``: it has no dims. ``"table"``: a column along ``rows``, or one for each entry
        of ``layers``. ``"text"``: colours of the text; ``"context"``: colours of the text for
        each entry of ``rows``; in both ``layers`` are to choose from. ``"map"``: ``rows``
        against ``columns``, a heat map for each entry of ``layers``.
    rows, columns, layers
        Dimensions, "" where there is none.
    averaged
        Dimensions over which a mean is taken before anything is shown.
    """

    view: View
    rows: str = ""
    columns: str = ""
    layers: str = ""
    averaged: tuple[str, ...] = ()


def place(ds: xr.Dataset, name: str) -> Place:
    """Say how a variable is shown."""
    dims = [str(dim) for dim in ds[name].dims]
    kinds = {dim: axes.kind(ds, dim) for dim in dims}
    text = [dim for dim in dims if kinds[dim] == "text"]
    quantities = [dim for dim in dims if kinds[dim] == "quantity"]
    subjects = [dim for dim in dims if dim not in text + quantities]
    layers = quantities[0] if quantities else ""
    if not dims:
        return Place("number")
    if len(subjects) <= 1 and len(quantities) <= 1 and len(text) <= 1:
        rows = subjects[0] if subjects else ""
        if text:
            return Place("context" if rows else "text", rows, layers=layers)
        return Place("table", rows, layers=layers) if rows else Place("table", layers)
    across = [*subjects, *quantities]
    if len(across) < 2:
        across += text
    rows, columns, *rest = across
    layers = next((dim for dim in rest if kinds[dim] == "quantity"), "")
    used = (rows, columns, layers)
    return Place("map", rows, columns, layers, tuple(dim for dim in dims if dim not in used))


def shown_as(ds: xr.Dataset, view: View, rows: str | None = None) -> list[str]:
    """Return the variables that are shown in one way, with these ``rows`` (None: any)."""
    found = []
    for name in map(str, ds.data_vars):
        at = place(ds, name)
        if at.view == view and rows in (None, at.rows):
            found.append(name)
    return found
