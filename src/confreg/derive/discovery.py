"""False discoveries among many p values: Benjamini and Hochberg's q."""

from __future__ import annotations

import re

import numpy as np

from confreg.axes import Variable


def q_values(p: np.ndarray, axis: int | None = 0) -> np.ndarray:
    """The smallest rate of false discoveries at which each of a family would be one.

    Benjamini and Hochberg (1995); p values that are missing are of no family.

    Parameters
    ----------
    p : ndarray
        NaN where there is none.
    axis : int, optional
        Along which a family lies; None: all are one.

    Returns
    -------
    ndarray
        Of the same shape and type, NaN where p is.
    """
    from scipy.stats import false_discovery_control

    def of_family(values: np.ndarray) -> np.ndarray:
        found, there = np.full(len(values), np.nan), np.isfinite(values)
        if there.any():
            found[there] = false_discovery_control(values[there].astype(np.float64))
        return found

    if axis is None:
        return of_family(p.ravel()).reshape(p.shape).astype(p.dtype)
    return np.apply_along_axis(of_family, axis, p).astype(p.dtype)


def q_name(name: str) -> str:
    """What the q of a p is called: ``"ece_p_random"`` gives ``"ece_q_random"``."""
    return re.sub(r"(^|_)p(_|$)", r"\1q\2", name)


def q_variable(p: Variable, family: str) -> Variable:
    """The q beside a variable of p values, with its family named."""
    text = f"Benjamini-Hochberg q of {p.name} over {family}"
    return Variable(q_name(p.name), p.dims, text, p.units, p.dtype)
