"""How many edits a request may carry: they are weighed as they would be sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from confreg.axes import Axis
from confreg.sweep.layout import cut

LEAST = 5_000
"""Bytes that edits are left in any case, where token counts take nearly all of a request."""
WEIGHED = 32
"""Units of which the heaviest counts; where there are more, some of them are weighed."""
FIRST = 64
"""Edits by which the first guess is made."""


def entries_that_fit(axis: Axis, make: Callable[[int, int], Any], most: int) -> int:
    """How many entries of an axis a request may carry, at least 1.

    Parameters
    ----------
    axis : Axis
    make : callable
        ``make(start, stop)``: a span of the axis as edits, of numbers that compress as badly as
        those of the run.
    most : int
        Bytes that they may take, compressed; no less than `LEAST`.
    """
    most = max(most, LEAST)
    some = min(len(axis), FIRST)
    if some == 0:
        return 1
    entries = max(min(int(most / weight(make(0, some)) * some), len(axis)), 1)
    while entries > 1:
        spans = cut(axis, entries)
        chosen = np.unique(np.linspace(0, len(spans) - 1, WEIGHED).astype(int))
        heaviest = max(weight(make(*spans[number])) for number in chosen)
        if heaviest <= most:
            break
        largest = max(stop - start for start, stop in spans)
        entries = max(min(int(largest * most / heaviest), largest - 1), 1)
    return entries


def weight(edits: Any) -> int:
    """Bytes of some edits beside their class, compressed; at least 1."""
    import zstandard
    from cloudpickle import dumps

    # A class of a recipe travels as source, and so do those of confreg, once a client is there.
    one, of_class = (len(zstandard.compress(dumps(each))) for each in (edits, type(edits)))
    return max(one - of_class, 1)
