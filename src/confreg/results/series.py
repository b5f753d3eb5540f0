"""How a neuron's activation goes on from token to token, from what a store keeps.

>>> ds = confreg.open("runs/demo.zarr")  # run with --activations
>>> confreg.series(ds).sortby("between_share").tail(neuron=10)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from confreg.errors import ConfregError
from confreg.results import activity

LONGEST = 512
"""Tokens of a sequence of which a fuzzy entropy is taken: its cost grows with their square."""


def series(
    ds: xr.Dataset,
    *,
    lags: int = 3,
    order: int = 2,
    above: float = 0.0,
    shuffles: int = 20,
    fuzzy: Sequence[str] = (),
    seed: int = 0,
) -> xr.Dataset:
    """Statistics of activations as series within sequences, over kept tokens.

    With a_t the activation less its mean over the sequence,

        autocorrelation(k)   Σ a_t a_{t+k} / √(Σ a_t² Σ a_{t+k}²), sums over pairs that are k apart
        between_share        Σ_s n_s (m_s − m)² / Σ (a − m)², m_s the mean of sequence s
        on_entropy           H(o_t | o_{t−1} … o_{t−order}) of o = (activation > above), plug-in

    Series of independent values have an autocorrelation of about −1/(L − 1) in sequences of L
    tokens, and a ``between_share`` of (S − 1)/(T − 1) for S sequences (attribute
    ``between_share_chance``). ``on_entropy`` is compared with that of the same series shuffled
    within each sequence, which keeps how often a neuron is on, and biases it alike.

    Velichko et al. 2023, A bio-inspired chaos sensor (Sensors 23(16) 7137), for fuzzy entropy.

    Parameters
    ----------
    ds : Dataset
        With ``activation (neuron, token)``.
    lags, order : int
    above : float
        A neuron is on where its activation is larger.
    shuffles : int
    fuzzy : sequence of str
        Names of neurons whose fuzzy entropy is taken, see `fuzzy_entropy`.
    seed : int
        Of the shuffles.

    Returns
    -------
    Dataset
        ``autocorrelation (neuron, lag)``; ``between_share``; ``on_share``; ``on_entropy``,
        ``on_entropy_shuffled`` and ``on_entropy_spread``, the mean and standard deviation over
        shuffles, in nats; ``fuzzy_entropy (neuron)``, the mean over sequences, NaN of neurons that
        were not named. NaN where a neuron is constant.

    Raises
    ------
    ConfregError
        No activations, no sequence of ``order`` + 2 neighbouring kept tokens, or an unknown neuron.
    """
    keep = activity.kept_tokens(ds, "series")
    if min(lags, order, shuffles) < 1:
        raise ConfregError("lags, order and shuffles are at least 1.")
    sequence, position = ds["sequence"].values[keep], ds["position"].values[keep]
    runs = _Runs(sequence, position)
    if not len(runs.apart(order + 1)):
        raise ConfregError(
            f"No {order + 2} kept tokens follow each other in a sequence: give longer text, or a "
            "lower order."
        )
    names = ds["neuron"].values.tolist()
    if unknown := [name for name in fuzzy if name not in names]:
        raise ConfregError(f"There is no neuron {unknown[0]!r} in this dataset.")
    draw = np.random.default_rng(seed)
    orders = [runs.shuffled(draw) for _ in range(shuffles)]
    n = len(names)
    found = {
        "autocorrelation": np.full((n, lags), np.nan),
        **{name: np.full(n, np.nan) for name in SAID if name != "autocorrelation"},
    }
    for rows, values in activity.spans(ds, keep):
        constant = np.abs(activity.standardised(values)).max(1) == 0
        mean = runs.means(values)
        within = values - mean
        for lag in range(1, lags + 1):
            found["autocorrelation"][rows, lag - 1] = _correlation(within, runs.apart(lag), lag)
        centred = values - values.mean(1, keepdims=True)
        share = ((mean - values.mean(1, keepdims=True)) ** 2).sum(1)
        found["between_share"][rows] = _ratio(share, (centred**2).sum(1), constant)
        on = values > above
        found["on_share"][rows] = on.mean(1)
        found["on_entropy"][rows] = _entropy(on, runs, order)
        drawn = np.stack([_entropy(on[:, each], runs, order) for each in orders])
        found["on_entropy_shuffled"][rows] = drawn.mean(0)
        found["on_entropy_spread"][rows] = drawn.std(0)
        for number in range(*rows.indices(n)):
            if names[number] in fuzzy:
                found["fuzzy_entropy"][number] = _mean_fuzzy(values[number - rows.start], runs)
    total = len(sequence)
    arrays = {
        name: (("neuron", "lag") if found[name].ndim == 2 else ("neuron",), found[name],
               {"long_name": text, "units": units})
        for name, (text, units) in SAID.items()
    }  # fmt: skip
    return xr.Dataset(
        arrays,
        coords={
            **activity.of_neurons(ds),
            "lag": ("lag", np.arange(1, lags + 1), {"long_name": "tokens apart"}),
        },
        attrs={
            "tokens": total,
            "sequences": len(runs.starts),
            "between_share_chance": (len(runs.starts) - 1) / (total - 1),
            "order": order,
            "above": above,
            "shuffles": shuffles,
            "seed": seed,
            "model": str(ds.attrs.get("model", "")),
        },
    )


SAID = {
    "autocorrelation": ("autocorrelation within sequences", "1"),
    "between_share": ("share of the variance that is between sequences", "1"),
    "on_share": ("share of tokens at which the neuron is on", "1"),
    "on_entropy": ("entropy of on or off, given the tokens before", "nats"),
    "on_entropy_shuffled": ("the same of shuffled series, mean", "nats"),
    "on_entropy_spread": ("the same of shuffled series, standard deviation", "nats"),
    "fuzzy_entropy": ("fuzzy entropy, mean over sequences", "nats"),
}


class _Runs:
    """Tokens by sequence, and which of them follow each other."""

    def __init__(self, sequence: np.ndarray, position: np.ndarray) -> None:
        self.starts = np.flatnonzero(np.append(True, sequence[1:] != sequence[:-1]))
        self.sizes = np.diff(np.append(self.starts, len(sequence)))
        self.sequence, self.position = np.repeat(np.arange(len(self.starts)), self.sizes), position

    def apart(self, lag: int) -> np.ndarray:
        """Tokens that have one ``lag`` later, with all between them, in their sequence."""
        here = np.arange(len(self.position) - lag)
        alike = self.sequence[lag:] == self.sequence[:-lag]
        return here[alike & (self.position[lag:] - self.position[:-lag] == lag)]

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean over its sequence at every token, (n, T)."""
        means = np.add.reduceat(values, self.starts, axis=1) / self.sizes
        return np.repeat(means, self.sizes, axis=1)

    def shuffled(self, draw: np.random.Generator) -> np.ndarray:
        """The tokens in another order, each within its sequence."""
        return np.lexsort((draw.random(len(self.sequence)), self.sequence))


def _ratio(over: np.ndarray, under: np.ndarray, without: np.ndarray) -> np.ndarray:
    return np.where(without, np.nan, over / np.where(without | (under == 0), 1, under))


def _correlation(within: np.ndarray, here: np.ndarray, lag: int) -> np.ndarray:
    if not len(here):
        return np.full(len(within), np.nan)
    now, later = within[:, here], within[:, here + lag]
    size = np.sqrt((now**2).sum(1) * (later**2).sum(1))
    tiny = size <= 1e-24 + 1e-12 * (within**2).sum(1)
    return _ratio((now * later).sum(1), size, tiny)


def _entropy(on: np.ndarray, runs: _Runs, order: int) -> np.ndarray:
    """H(o_t | the ``order`` before it), plug-in, nats, (n,)."""
    here = runs.apart(order)
    code = np.zeros((len(on), len(here)), dtype=np.int64)
    for step in range(order + 1):
        code = 2 * code + on[:, here + step]
    words = 2 ** (order + 1)
    code += words * np.arange(len(on))[:, None]
    counts = np.bincount(code.ravel(), minlength=words * len(on)).reshape(len(on), -1, 2)
    before = counts.sum(-1, keepdims=True)
    share = np.divide(counts, before, out=np.ones(counts.shape), where=counts > 0)
    return -(counts * np.log(share)).sum((1, 2)) / len(here)


def _mean_fuzzy(values: np.ndarray, runs: _Runs) -> float:
    found = [
        fuzzy_entropy(values[start : start + min(size, LONGEST)])
        for start, size in zip(runs.starts, runs.sizes)
        if size > 3
    ]
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def fuzzy_entropy(
    values: np.ndarray, m: int = 1, r: float = 0.2, n: float = 3.0, tau: int = 1
) -> float:
    """FuzzyEn = ln φ(m) − ln φ(m + 1) of a series, in nats.

    φ(m) is the mean over i ≠ j of exp(−dⁿ/r̂), with d the largest difference between the i-th and
    the j-th piece of m values ``tau`` apart, each less its mean, in units of the series' standard
    deviation, and r̂ = ``r``. (Pieces of one value are all 0 then, and φ(1) is 1.) High where what
    follows alike pieces is not alike. NaN of a constant series.

    Velichko et al. 2023 (Sensors 23(16) 7137).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.std() == 0 or len(values) <= (m + 1) * tau + 1:
        return float("nan")
    values = (values - values.mean()) / values.std()
    count = len(values) - m * tau
    phi = [_alike(values, length, count, r, n, tau) for length in (m, m + 1)]
    return float(np.log(phi[0]) - np.log(phi[1])) if min(phi) > 0 else float("inf")


def _alike(values: np.ndarray, m: int, count: int, r: float, n: float, tau: int) -> float:
    pieces = np.stack([values[k * tau : k * tau + count] for k in range(m)], axis=1)
    pieces = pieces - pieces.mean(1, keepdims=True)
    apart = np.abs(pieces[:, None] - pieces[None]).max(-1)
    similar = np.exp(-(apart**n) / r)
    np.fill_diagonal(similar, 0)
    return float(similar.sum() / (count * (count - 1)))
