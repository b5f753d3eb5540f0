"""The order of the page: which sections a dataset gets, one after another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from confreg.report import inventory, maps, sections, subjects, texts
from confreg.report.sections import Options, Section, about_neurons

if TYPE_CHECKING:
    import xarray as xr

GENERIC = (
    subjects.sections,
    texts.details,
    maps.sections,
    texts.passages,
    inventory.numbers,
    inventory.rest,
)
"""What any dataset has. Each is told which variables are shown already, and returns sections."""


def compose(ds: xr.Dataset, options: Options) -> tuple[list[Section], list[str]]:
    """Make every section that the dataset allows; also what to say of the others.

    Registered sections come first, in the order in which they were registered; then those that
    any dataset has; then those that were registered to come last.
    """
    first: list[Section] = []
    last: list[Section] = []
    missing: list[str] = []
    for entry in sections.REGISTRY:
        made = entry.make(ds, options) if entry.fits(ds) else None
        if made is not None:
            made = replace(made, shows=made.shows | entry.shows)
            (last if entry.last else first).append(made)
        elif entry.missed(ds):
            missing.append(entry.otherwise)
    for make in GENERIC:
        shown = frozenset[str]().union(*(section.shows for section in first + last))
        first += make(ds, options, shown)
    if about_neurons(ds) and not any(section.key == "detail" for section in first):
        missing.append(texts.NO_DETAILS)
    return first + last, missing
