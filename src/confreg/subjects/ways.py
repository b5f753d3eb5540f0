"""To what values sets of neurons are fixed: the grammar of ``ways`` and of a dose's ``values``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from confreg.errors import ConfregError

GRAMMAR = (
    "numbers (-1,0,2), mean, median, mode, low and high (mean ± 3σ, no further than the smallest "
    "and the largest activation), quantiles (q05,q50,q95), or alpha:0,0.5,2 for mean + α(a − mean)"
)
MEAN = "ablation_value"
"""The variable that holds means."""
TYPICAL = {
    "mean": "mean activation",
    "median": "median activation",
    "mode": "middle of the fullest of 100 bins between the smallest and the largest activation",
    "low": "mean - 3 sigma of the activation, at least its smallest",
    "high": "mean + 3 sigma of the activation, at most its largest",
}


@dataclass(frozen=True)
class Way:
    """A value that replaces activations: ``constant + scale · source + slope · activation``.

    Attributes
    ----------
    label : str
        As it was written.
    number : float
        The number in it: the value, the quantile (0 to 1) or α; NaN if there is none.
    source : str
        The variable (neuron) that it is of; empty: none.
    constant, scale, slope : float
    """

    label: str
    number: float = math.nan
    source: str = ""
    constant: float = 0.0
    scale: float = 0.0
    slope: float = 0.0

    @property
    def kind(self) -> str:
        """What its number is: ``"value"``, ``"quantile"`` or ``"alpha"``; empty if it has none."""
        if self.label.startswith("alpha:"):
            return "alpha"
        if not self.source:
            return "value"
        return "quantile" if math.isfinite(self.number) else ""

    def value(self, stored: Mapping[str, np.ndarray], at: np.ndarray) -> np.ndarray:
        """What replaces the activations of some neurons, but for ``slope``: float32 (k,)."""
        of = stored[self.source][at] if self.source else np.zeros(len(at))
        return (self.constant + self.scale * of).astype(np.float32)


def read(text: str, what: str) -> list[Way]:
    """Read ways, by commas.

    Parameters
    ----------
    text : str
        See `GRAMMAR`; ``alpha:`` holds for all numbers behind it.
    what : str
        The parameter, for what is said of it.

    Raises
    ------
    ConfregError
        Not in the grammar, or twice the same.
    """
    kind, _, listed = text.strip().rpartition(":")
    if kind not in ("", "alpha"):
        raise ConfregError(f"{what}={text!r} is not understood. Write {GRAMMAR}.")
    found = [_alpha(part, what) if kind else _one(part, what) for part in listed.split(",")]
    labels = [way.label for way in found]
    if len(set(labels)) < len(labels):
        raise ConfregError(f"{what}={text!r} names a value twice.")
    return found


def _alpha(part: str, what: str) -> Way:
    alpha = _number(part, what)
    return Way(f"alpha:{alpha:g}", alpha, MEAN, scale=1 - alpha, slope=alpha)


def _one(part: str, what: str) -> Way:
    part = part.strip()
    if part in TYPICAL:
        return Way(part, source=MEAN if part == "mean" else f"value_{part}", scale=1.0)
    if match := re.fullmatch(r"q(\d{1,2}(?:\.\d+)?|100)", part):
        return Way(part, float(match[1]) / 100, f"value_q{match[1].replace('.', '_')}", scale=1.0)
    value = _number(part, what)
    return Way(f"{value:g}", value, constant=value)


def _number(part: str, what: str) -> float:
    try:
        number = float(part)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfregError(f"{what}: {part.strip()!r} is not understood. Write {GRAMMAR}.")
    return number
