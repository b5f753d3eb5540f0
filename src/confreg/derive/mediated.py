"""Total, direct and mediated effects: four numbers that go together everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = ("te", "de", "te_mediated", "mediated")


def mediated(te: Any, de: Any, suffix: str = "") -> dict[str, Any]:
    """``te`` and ``de`` as they are, ``te_mediated``, TE − DE, and ``mediated``, 1 − DE/TE.

    Of arrays of any shape, each name with the suffix behind it.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        values = te, de, te - de, 1 - de / te
    return {name + suffix: each for name, each in zip(NAMES, values)}
