"""Calibration: is a model right as often as it is sure?

A prediction's confidence c is the probability of its likeliest token, and it is correct (o = 1) or
not (o = 0). Over N predictions, those of a bin b being n_b,

    accuracy    mean o
    ECE         Σ_b n_b/N |mean_b o − mean_b c|
    MCE         the largest |mean_b o − mean_b c| of bins that hold anything
    Brier       mean (c − o)²,  of the event "the likeliest token is the correct one"

Equal-width bins are (b/B, (b + 1)/B] (Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599).
Adaptive ones hold equally many predictions (Nguyen, O'Connor 2015, arXiv 1508.05154); equally
confident predictions are in one bin, so that no number depends on the order of the tokens.

    >>> scores(np.array([0.9, 0.6]), np.array([1.0, 0.0])).ece
    0.35
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from confreg import effects as fx
from confreg.axes import Axis, Later, Variable
from confreg.derive.discovery import q_name, q_values, q_variable
from confreg.sweep.layout import resolve
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr

    from confreg.effects import Effect
    from confreg.tokens.axis import Text
    from confreg.tokens.groups import Groups

BINS = 15
NUMBERS = {
    "accuracy": "share of kept tokens at which the likeliest token is the correct one",
    "mean_confidence": "mean probability of the likeliest token",
    "ece": f"expected calibration error, {BINS} bins of equal width",
    "ece_adaptive": f"expected calibration error, {BINS} bins of equally many tokens",
    "mce": f"largest calibration error of {BINS} bins of equal width",
    "brier": "Brier score of the likeliest token being the correct one",
    "calibration_tokens": "kept tokens that the calibration is over",
}
OF_BINS = {
    "bin_tokens": "kept tokens whose confidence is in the bin",
    "bin_confidence": "mean confidence of the bin's tokens",
    "bin_accuracy": "share of the bin's tokens that are predicted correctly",
}
TESTED = ("accuracy", "mean_confidence", "ece", "brier")
"""Those whose change is held against the change that random controls make."""


class Scores(NamedTuple):
    """What `scores` finds: NaN where there are no predictions, or none in a bin."""

    accuracy: float
    mean_confidence: float
    ece: float
    ece_adaptive: float
    mce: float
    brier: float
    calibration_tokens: int
    bin_tokens: np.ndarray
    bin_confidence: np.ndarray
    bin_accuracy: np.ndarray


def scores(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Scores:
    """How well calibrated some predictions are.

    Parameters
    ----------
    confidence : ndarray (N,)
        In [0, 1]. Predictions where it, or ``correct``, is NaN are left out.
    correct : ndarray (N,)
        0 or 1.
    bins : int
        B, of both kinds.
    """
    known = np.isfinite(confidence) & np.isfinite(correct)
    c, o = confidence[known].astype(np.float64), correct[known].astype(np.float64)
    if not len(c):
        nothing = np.full(bins, np.nan)
        six = (np.nan, np.nan, np.nan, np.nan, np.nan, np.nan)
        return Scores(*six, 0, np.zeros(bins, dtype=np.int64), nothing, nothing)
    width = np.clip(np.ceil(c * bins).astype(int) - 1, 0, bins - 1)
    n, sure, right = _binned(width, c, o, bins)
    # By how many are less confident: those that are as confident go together.
    below = np.searchsorted(np.sort(c), c, side="left")
    m, sure_of_mass, right_of_mass = _binned(below * bins // len(c), c, o, bins)
    gap = np.abs(right - sure)
    return Scores(
        accuracy=float(o.mean()),
        mean_confidence=float(c.mean()),
        ece=float(np.nansum(n * gap) / len(c)),
        ece_adaptive=float(np.nansum(m * np.abs(right_of_mass - sure_of_mass)) / len(c)),
        mce=float(np.nanmax(gap)),
        brier=float(np.square(c - o).mean()),
        calibration_tokens=len(c),
        bin_tokens=n,
        bin_confidence=sure,
        bin_accuracy=right,
    )


def _binned(
    where: np.ndarray, confidence: np.ndarray, correct: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many predictions a bin has, their mean confidence and accuracy; NaN if none."""
    n = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(where, confidence, bins) / n
        right = np.bincount(where, correct, bins) / n
    return n, sure, right


def calibration(
    subjects: Axis | Later, tokens: Text, effects: Sequence[Effect], *, cube: bool = True
) -> list[Derivation]:
    """How well calibrated the model is on kept tokens, before and after each ablation.

    Needs each token's effects on ``confidence`` and ``correct``, total; nothing without them.
    Gives ``accuracy``, ``mean_confidence``, ``ece``, ``ece_adaptive``, ``mce``, ``brier`` and
    ``calibration_tokens (subject)``, and ``bin_tokens``, ``bin_confidence`` and ``bin_accuracy
    (subject, bin)``, of reliability diagrams; and the same of the unablated model, with
    ``unablated_`` before the name. Where the axis has random controls, also ``ece_p_random`` and so
    on: the share of them that change the number at least as much, up or down, and ``ece_q_random``.

    Parameters
    ----------
    cube : bool
        Whether each token's effects are kept (no ``--reduce token``).
    """
    names = [effect.name for effect in effects]
    wanted = (fx.confidence.total.name, fx.correct.total.name)
    if not cube or any(name not in names for name in wanted):
        return []
    sure, right = (names.index(name) for name in wanted)
    kept, subject, bins = tokens.keep, subjects.name, _bins()

    def calibration_before(ds: xr.Dataset) -> dict[str, Any]:
        found = scores(ds["confidence"].values[kept], ds["correct"].values[kept])
        return {f"unablated_{name}": value for name, value in found._asdict().items()}

    def calibration_after(ds: xr.Dataset) -> dict[str, Any]:
        before = [ds[name].values[kept].astype(np.float64) for name in ("confidence", "correct")]
        change = ds["effects"].transpose(subject, tokens.name, "effect").values
        found = [
            scores(before[0] + one[kept, sure], before[1] + one[kept, right])
            for one in _known(ds, change, sure)
        ]
        return {name: np.stack([getattr(s, name) for s in found]) for name in Scores._fields}

    read = ("confidence", "correct")
    given = [
        Derivation(
            calibration_before, _variables((), "unablated_", ", unablated"), reads=read,
            along=(bins,),
        ),
        Derivation(
            calibration_after, _variables((subject,), "", ", ablated"), by=subject,
            reads=(*read, "effects", "effect_sum"), along=(bins,),
        ),
    ]  # fmt: skip
    if "set_kind" in resolve(subjects, None).labels:
        given.append(_against_controls(subject))
    if tokens.groups is not None:
        given.append(_by_group(subject, tokens.groups, kept, (sure, right)))
    return given


def _by_group(
    subject: str, groups: Groups, kept: np.ndarray, columns: tuple[int, int]
) -> Derivation:
    """The numbers of each group of kept tokens: ``ece_by (subject, group)``,
    ``unablated_ece_by (group)`` and so on."""
    codes, count = groups.codes[kept], len(groups.axis)

    def each(confidence: np.ndarray, correct: np.ndarray) -> list[list[float]]:
        found = [scores(confidence[codes == g], correct[codes == g]) for g in range(count)]
        return [[getattr(one, name) for one in found] for name in NUMBERS]

    def calibration_by_group(ds: xr.Dataset) -> dict[str, Any]:
        before = [ds[name].values[kept].astype(np.float64) for name in ("confidence", "correct")]
        change = ds["effects"].transpose(subject, "token", "effect").values[:, kept]
        change = _known(ds, change, columns[0])
        after = np.array(
            [each(*(b + one[:, at] for b, at in zip(before, columns))) for one in change]
        )
        return {f"unablated_{name}_by": v for name, v in zip(NUMBERS, each(*before))} | {
            f"{name}_by": after[:, at] for at, name in enumerate(NUMBERS)
        }

    ways = (((subject,), "", ", ablated"), ((), "unablated_", ", unablated"))
    return Derivation(
        calibration_by_group,
        gives=tuple(
            Variable(
                f"{before}{name}_by", (*dims, "group"), f"{text}{after}, of one {groups.by}",
                dtype=_dtype(name),
            )
            for dims, before, after in ways
            for name, text in NUMBERS.items()
        ),
        along=(groups.axis,),
        reads=("confidence", "correct", "effects", "effect_sum"),
    )  # fmt: skip


def _known(ds: xr.Dataset, change: np.ndarray, column: int) -> np.ndarray:
    """Effects (n, T, E), NaN throughout where an edit's are not known at some kept token."""
    lost = np.isnan(ds["effect_sum"].values[:, column])
    return np.where(lost[:, None, None], np.nan, change) if lost.any() else change


def _bins() -> Axis:
    edges = np.arange(BINS + 1) / BINS
    return Axis.of("bin", edges[1:], "upper end of the bin of confidence, which belongs to it")


def _variables(dims: tuple[str, ...], before: str, text: str) -> tuple[Variable, ...]:
    numbers, bins = NUMBERS.items(), OF_BINS.items()
    return tuple(
        Variable(before + name, where, long_name + text, dtype=_dtype(name))
        for where, found in ((dims, numbers), ((*dims, "bin"), bins))
        for name, long_name in found
    )


def _dtype(name: str) -> str:
    return "int64" if name.endswith("_tokens") else "float32"


def _against_controls(subject: str) -> Derivation:
    from confreg.derive import p_values

    def calibration_p_random(ds: xr.Dataset) -> dict[str, Any]:
        change = [ds[name].values - ds[f"unablated_{name}"].values for name in TESTED]
        found = p_values(ds, np.abs(np.stack(change, axis=-1).astype(np.float64)))
        p = {f"{name}_p_random": found[:, at] for at, name in enumerate(TESTED)}
        return p | {q_name(name): q_values(values) for name, values in p.items()}

    text = "share of random sets that change it at least as much, up or down: "
    tested = [Variable(f"{name}_p_random", (subject,), text + NUMBERS[name]) for name in TESTED]
    return Derivation(
        calibration_p_random,
        (*tested, *(q_variable(each, f"all chosen {subject}s") for each in tested)),
        reads=(*TESTED, *(f"unablated_{name}" for name in TESTED)),
    )
