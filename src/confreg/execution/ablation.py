"""What an activation is replaced by: the grammar of the parameter ``ablation``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from confreg.errors import ConfregError

GRAMMAR = "mean | zero | p5 (a percentile, 0 to 100) | a number"


@dataclass(frozen=True)
class Ablation:
    """A kind of ablation value.

    Attributes
    ----------
    kind : {"mean", "percentile", "constant"}
    value : float
        The percentile (0 to 100) or the constant; unused for the mean.
    """

    kind: Literal["mean", "percentile", "constant"]
    value: float = 0.0

    @property
    def over_tokens(self) -> bool:
        """Whether the value depends on the corpus."""
        return self.kind != "constant"


def read(ablation: str | float) -> Ablation:
    """Read an ablation.

    Raises
    ------
    ConfregError
        Not in the grammar.
    """
    text = str(ablation).strip().lower()
    if text == "mean":
        return Ablation("mean")
    if text == "zero":
        return Ablation("constant", 0.0)
    if match := re.fullmatch(r"p(\d+(?:\.\d+)?)", text):
        percentile = float(match[1])
        if percentile <= 100:
            return Ablation("percentile", percentile)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfregError(f"ablation={ablation!r} is not understood. Write {GRAMMAR}.")
    return Ablation("constant", number)
