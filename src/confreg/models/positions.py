"""Forwards that depend on how long a batch is: rotary positions that are scaled beyond a length.

transformers chooses the frequencies of a whole batch by its longest sequence. Under ``longrope``
there are two sets, one beyond the length that the model was first trained for; under ``dynamic``
they grow with the longest sequence seen *so far*. So what a sequence gives may depend on its
neighbours, or on what was computed before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.errors import ConfregError

if TYPE_CHECKING:
    from confreg.models.model import Description


def alike(lengths: np.ndarray, about: Description) -> np.ndarray | None:
    """Which sequences are computed alike whatever stands beside them: those of one value.

    Parameters
    ----------
    lengths : ndarray (n,)
        Of the sequences.
    about : Description

    Returns
    -------
    ndarray (n,) of int, or None
        None where all are, whatever their length.

    Raises
    ------
    ConfregError
        What a sequence gives depends on those that were computed before it.
    """
    found = np.zeros(len(lengths), dtype=np.int64)
    for kind, limit in _scaled(about.config):
        beyond = lengths > limit
        if "dynamic" in kind and beyond.any():
            raise ConfregError(
                f"{about.name} scales its positions dynamically: beyond {limit} tokens what a "
                f"sequence gives depends on the longest one before it, and there is no one number. "
                f"Sequences of {int(lengths.max())} were asked for; set --sequence-length to at "
                f"most {limit}."
            )
        if kind == "longrope":
            found = 2 * found + beyond
    return found if np.ptp(found) else None


def _scaled(config: Any) -> Iterator[tuple[str, int]]:
    """Yield kinds of scaling that look at a batch's length, and beyond which."""
    config = config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    # One for all layers, or one a kind of layer.
    nested = [each for each in given.values() if isinstance(each, Mapping)]
    for each in nested or [given]:
        kind = str(each.get("rope_type", ""))
        if kind == "longrope":
            name = "original_max_position_embeddings"
            yield kind, int(each[name] if each.get(name) else getattr(config, name))
        elif "dynamic" in kind:
            yield kind, int(config.max_position_embeddings)
