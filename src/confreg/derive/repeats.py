"""What a text that comes again does to activations: pure functions, arrays in, arrays out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from confreg.derive.means import deviation_where_there, mean_where_there

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Shift(NamedTuple):
    """How activations change from the first occurrence of a text to the second, by neuron.

    Attributes
    ----------
    mean, sd
        Of the activation at the second occurrence less that at the first, over pairs of the
        same token of which both are compared, and at both of which the neuron is there (an
        expert's is NaN elsewhere): (n,) each, in the activation's units, NaN without such pairs.
    sigma
        ``mean`` over the standard deviation of the activation at the pairs' tokens, 0 where
        that is 0: (n,).
    """

    mean: np.ndarray
    sd: np.ndarray
    sigma: np.ndarray


def shift(
    activation: ArrayLike,
    sequence: ArrayLike,
    aligned: ArrayLike,
    occurrence: ArrayLike,
    compared: ArrayLike,
) -> Shift:
    """Compare activations at the two occurrences of a text, token by token.

    Parameters
    ----------
    activation
        Activations: (n, T).
    sequence
        The sequence that each token is in: (T,) int.
    aligned
        The token's position in its occurrence, −1 if it is in none: (T,) int.
    occurrence
        0 for the first, 1 for the second, −1 for none: (T,) int.
    compared
        Whether the token is compared: (T,) bool.
    """
    aligned, occurrence = np.asarray(aligned), np.asarray(occurrence)
    place = np.asarray(sequence).astype(np.int64) * (int(aligned.max(initial=0)) + 1) + aligned
    tokens = [np.flatnonzero(np.asarray(compared) & (occurrence == number)) for number in (0, 1)]
    shared = np.intersect1d(place[tokens[0]], place[tokens[1]])
    values = np.asarray(activation)
    # Along a table, places of one occurrence ascend.
    before, after = (
        values[:, some[np.searchsorted(place[some], shared)]].astype(float) for some in tokens
    )
    change = after - before
    both = np.concatenate([before, after], axis=1)
    both[np.tile(np.isnan(change), 2)] = np.nan
    mean, spread = mean_where_there(change), deviation_where_there(both)
    sigma = np.divide(mean, spread, out=np.zeros_like(mean), where=spread != 0)
    return Shift(mean, deviation_where_there(change), sigma)


def shift_p(sigma: ArrayLike, chosen: ArrayLike) -> np.ndarray:
    """Compare each chosen neuron's change with those of the others, which are its controls.

    Parameters
    ----------
    sigma
        Changes in standard deviations, as :func:`shift` gives them: (n,).
    chosen
        Which neurons are chosen: (n,) bool.

    Returns
    -------
    numpy.ndarray
        (1 + controls that change at least as much) / (1 + controls): (n,) float64. NaN for the
        controls themselves, where a change is NaN, and everywhere if there are no controls; those
        whose change is NaN are not counted.
    """
    size, known = np.abs(np.asarray(sigma, dtype=float)), ~np.isnan(sigma)
    found, chosen = np.full(size.shape, np.nan), np.asarray(chosen, dtype=bool)
    controls, chosen = np.sort(size[known & ~chosen]), known & chosen
    if len(controls):
        at_least = len(controls) - np.searchsorted(controls, size[chosen], side="left")
        found[chosen] = (1 + at_least) / (1 + len(controls))
    return found


def occurrence_means(
    activation: ArrayLike, occurrence: ArrayLike, compared: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean activation over compared tokens of the first and the second occurrence.

    Of an expert's neuron, over those at which it is there; NaN where it is at none.

    Parameters
    ----------
    activation
        Activations: (n, T).
    occurrence, compared
        As for :func:`shift`: (T,) each.

    Returns
    -------
    tuple of numpy.ndarray
        (n,) float64 each.
    """
    values, compared = np.asarray(activation), np.asarray(compared, dtype=bool)
    first, second = (
        mean_where_there(values[:, compared & (np.asarray(occurrence) == number)])
        for number in (0, 1)
    )
    return first, second


def taken_back(change: ArrayLike, first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Return how much of the way from the first occurrence to the second an ablation undoes.

    Parameters
    ----------
    change
        Mean change of each neuron's activation at the second occurrence under each set's
        ablation: (S, n).
    first, second
        Mean activation over each occurrence of the unablated model: (n,) each.

    Returns
    -------
    numpy.ndarray
        −change / (second − first): (S, n) float64, NaN where the two are equal.
    """
    way = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    change = np.asarray(change, dtype=float)
    return np.divide(-change, way, out=np.full(change.shape, np.nan), where=way != 0)
