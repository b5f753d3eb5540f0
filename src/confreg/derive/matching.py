"""How neurons of one model correlate with those of another: from sums over tokens.

With v_i the activation of a neuron of one model and V those of a layer of another, over T tokens,

    r_ij = cov(v_i, V_j) / (σ_i σ_j)                        Pearson's
    r̄_ij = (R C_i)_j / (σ_i √(R Σ Rᵀ)_jj)                    of the rotated layer R V

where C_i = cov(v_i, V), Σ = cov(V, V) and R is a matrix of Gaussian numbers: what neurons that are
random mixtures of the layer's would give. So a baseline needs no second pass over the text, and may
be drawn as often as one likes. (That rows of R have norm 1 in the paper changes no correlation.)

Gurnee et al. 2024, Universal Neurons in GPT2 Language Models, arXiv 2401.12181, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from confreg.errors import ConfregError

CONSTANT = 1e-12
"""Share of its mean square below which a variance is that of a constant, up to rounding."""
ROWS = 1024  # of R that are drawn at once; part of what a seed means


class Sums:
    """Sums over tokens of activations, of their squares and of their products with another's.

    Activations are taken less a provisional mean, that of the first block, so that no digits are
    lost where a mean is far from 0; products of one block are float32, or float64 of float64, and
    blocks are added in float64.

    Parameters
    ----------
    covariance : bool
        Whether to sum the other's products among themselves, too: Σ.
    """

    def __init__(self, covariance: bool = True) -> None:
        self.count = 0
        self.covariance = covariance
        self._mean: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, mine: torch.Tensor, theirs: torch.Tensor) -> None:
        """Add a block of tokens: activations (T, n) and (T, w).

        Raises
        ------
        ConfregError
            An activation is no finite number.
        """
        for some in (mine, theirs):
            wrong = int((~torch.isfinite(some)).sum())
            if wrong:
                raise ConfregError(
                    f"{wrong:,} of {some.numel():,} activations are no finite numbers: nothing "
                    "correlates with them. Try another --dtype."
                )
        theirs = theirs.to(mine.device)
        wide = torch.float64 if mine.dtype == theirs.dtype == torch.float64 else torch.float32
        mine, theirs = mine.to(wide), theirs.to(wide)
        if self._mean is None:
            self._mean = (mine.double().mean(0).to(wide), theirs.double().mean(0).to(wide))
            n, w = mine.shape[1], theirs.shape[1]
            new = {"dtype": torch.float64, "device": mine.device}
            self.product = torch.zeros(n, w, **new)
            self.among = torch.zeros(w, w, **new) if self.covariance else None
            self.first = [torch.zeros(size, **new) for size in (n, w)]
            self.second = [torch.zeros(size, **new) for size in (n, w)]
        a, b = mine - self._mean[0], theirs - self._mean[1]
        self.count += len(a)
        self.product += a.T @ b
        if self.among is not None:
            self.among += b.T @ b
        for number, values in enumerate((a, b)):
            self.first[number] += values.double().sum(0)
            self.second[number] += values.double().square().sum(0)

    def deviations(self) -> tuple[torch.Tensor, torch.Tensor]:
        """σ of each, (n,) and (w,) float64; 0 of what is constant."""
        assert self._mean is not None
        found = []
        for first, second, shift in zip(self.first, self.second, self._mean):
            mean = first / self.count
            variance = second / self.count - mean.square()
            size = (mean + shift).square() + variance.clamp_min(0)
            found.append(torch.where(variance > CONSTANT * size, variance, 0).sqrt())
        return found[0], found[1]

    def correlations(self) -> torch.Tensor:
        """Pearson's r, (n, w) float64; NaN where either is constant."""
        mine, theirs = self.deviations()
        return _ratio(self._crossed(), mine, theirs)

    def rotated(self, generator: np.random.Generator) -> torch.Tensor:
        """The largest correlation of each with a rotated layer, one draw: (n,) float64."""
        assert self.among is not None
        mine, _ = self.deviations()
        crossed, mean = self._crossed(), self.first[1] / self.count
        width = len(mean)
        within = self.among / self.count - torch.outer(mean, mean)
        largest = torch.full_like(mine, -torch.inf)
        for start in range(0, width, ROWS):
            drawn = generator.standard_normal((min(ROWS, width - start), width))
            mixed = torch.from_numpy(drawn).to(within)
            spread = ((mixed @ within) * mixed).sum(1).clamp_min(0).sqrt()
            found = _ratio(crossed @ mixed.T, mine, spread)
            largest = torch.fmax(largest, largest_of(found)[0])
        return torch.where(largest.isinf(), torch.nan, largest)

    def _crossed(self) -> torch.Tensor:
        """C, (n, w)."""
        mine, theirs = self.first
        return self.product / self.count - torch.outer(mine / self.count, theirs / self.count)


def _ratio(covariance: torch.Tensor, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    size = torch.outer(mine, theirs)
    return torch.where(size > 0, covariance / size, torch.nan).clamp(-1, 1)


def largest_of(correlation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row and where it is: (n,) float64 and int64; NaN and −1 where none is."""
    known = torch.where(correlation.isnan(), -torch.inf, correlation)
    value, place = known.max(1)
    none = value.isinf()
    return torch.where(none, torch.nan, value), torch.where(none, -1, place)


class Powers:
    """Sums of powers of activations, and how often they are above 0: moments, block by block.

    Central moments of blocks are merged in float64 (Pébay 2008, formulas for arbitrary order), with
    no bins and nothing clipped.
    """

    def __init__(self) -> None:
        self.count = 0
        self.above = self.mean = self.second = self.third = self.fourth = torch.zeros(())

    def add(self, block: torch.Tensor) -> None:
        """Add a block of tokens, (T, n)."""
        block = block.double()
        n, m, mean = self.count, len(block), block.mean(0)
        off = block - mean
        second, third, fourth = (off.pow(k).sum(0) for k in (2, 3, 4))
        self.above = self.above + (block > 0).sum(0)
        self.count = total = n + m
        if n == 0:
            self.mean, self.second, self.third, self.fourth = mean, second, third, fourth
            return
        d = mean - self.mean
        self.fourth = (
            self.fourth + fourth + d**4 * n * m * (n * n - n * m + m * m) / total**3
            + 6 * d**2 * (n * n * second + m * m * self.second) / total**2
            + 4 * d * (n * third - m * self.third) / total
        )  # fmt: skip
        self.third = (
            self.third + third + d**3 * n * m * (n - m) / total**2
            + 3 * d * (n * second - m * self.second) / total
        )  # fmt: skip
        self.second = self.second + second + d**2 * n * m / total
        self.mean = self.mean + d * m / total

    def moments(self) -> dict[str, torch.Tensor]:
        """Mean, σ, skew E[z³], kurtosis E[z⁴] (a Gaussian has 3) and share above 0: (n,) each.

        Population moments; skew and kurtosis of a constant are NaN.
        """
        variance = self.second / self.count
        still = variance <= CONSTANT * (self.mean.square() + variance)
        deviation = torch.where(still, 0, variance).sqrt()
        safe = torch.where(still, torch.nan, deviation)
        return {
            "activation_mean": self.mean,
            "activation_deviation": deviation,
            "activation_skew": self.third / self.count / safe**3,
            "activation_kurtosis": self.fourth / self.count / safe**4,
            "activation_frequency": self.above / self.count,
        }


@dataclass(frozen=True)
class Layers:
    """Layers of other models, laid end to end.

    Attributes
    ----------
    model : ndarray (p,) int
        Which of the other models each belongs to.
    layer : ndarray (p,) int
        Which layer of it.
    counts : tuple of int
        Layers of each of the other models.
    within : int or None
        How far from the same relative depth a layer may be; None: however far.
    """

    model: np.ndarray
    layer: np.ndarray
    counts: tuple[int, ...]
    within: int | None = None

    @classmethod
    def of(cls, counts: Sequence[int], within: int | None = None) -> Layers:
        """All layers of models that have so many each."""
        model = np.repeat(np.arange(len(counts)), counts)
        return cls(model, np.concatenate([np.arange(n) for n in counts]), tuple(counts), within)

    def like(self, layer: int, n_layers: int) -> np.ndarray:
        """Which may be matched with a layer of a model of ``n_layers``, (p,) bool."""
        if self.within is None:
            return np.ones(len(self.layer), dtype=bool)
        depth = layer / max(n_layers - 1, 1)
        middle = np.array([round(depth * (count - 1)) for count in self.counts])
        return np.abs(self.layer - middle[self.model]) <= self.within

    def reach(self, layers: Sequence[int], n_layers: int) -> np.ndarray:
        """How many of each model's layers some layer is matched with, at most: (m,) int.

        ``layers`` are those of the neurons that are matched, of a model of ``n_layers``.
        """
        some = [np.bincount(self.model[self.like(one, n_layers)], minlength=len(self.counts))
                for one in layers]  # fmt: skip
        return np.max(some, axis=0)


def generator(seed: int, model: int, layer: int, draw: int) -> np.random.Generator:
    """What draws the rotation of one layer: the same however work is cut into units."""
    return np.random.default_rng([seed, model, layer, draw])


def of_layer(
    sums: Sums, same: np.ndarray | None, seeds: Sequence[tuple[int, int, int, int]]
) -> dict[str, np.ndarray]:
    """What is kept of the correlations with one layer.

    Parameters
    ----------
    sums : Sums
        Of n neurons and a whole layer.
    same : ndarray (n,) int, or None
        Which of the layer's neurons are the n neurons' counterparts; None where none are.
    seeds : sequence
        Arguments of `generator`, one a draw.

    Returns
    -------
    dict of str to ndarray
        ``correlation`` (n,), ``index`` (n,), ``baseline`` (n, draws) and ``same`` (n,).
    """
    found = sums.correlations()
    value, place = largest_of(found)
    drawn = [sums.rotated(generator(*seed)) for seed in seeds]
    own = torch.full_like(value, torch.nan)
    if same is not None:
        places = torch.as_tensor(same, device=found.device)
        own = found.gather(1, places[:, None])[:, 0]
    return {
        "correlation": value.cpu().numpy(),
        "index": place.cpu().numpy(),
        "baseline": torch.stack(drawn, 1).cpu().numpy(),
        "same": own.cpu().numpy(),
    }


def reduced(layers: Layers, found: Mapping[str, np.ndarray], above: float) -> dict[str, np.ndarray]:
    """The best match of each neuron in each other model, and what is left beyond the baseline.

    Parameters
    ----------
    layers : Layers
        p layers of m models.
    found : mapping
        ``correlation``, ``index`` and ``same`` (n, p), ``baseline`` (n, p, draws).
    above : float
        Excess correlation from which a neuron counts as universal, exclusive.

    Returns
    -------
    dict of str to ndarray
        ``match_correlation``, ``match_layer``, ``match_index``, ``match_baseline``,
        ``match_baseline_spread`` and ``same_correlation`` (n, m); ``excess_correlation``,
        ``correlation_mean``, ``correlation_min`` and ``universal`` (n,).
    """
    shape = (len(found["correlation"]), len(layers.counts))
    out = {
        name: np.full(shape, np.nan)
        for name in ("correlation", "baseline", "baseline_spread", "same")
    }
    at = {name: np.full(shape, -1, dtype=np.int64) for name in ("layer", "index")}
    rows = np.arange(shape[0])
    for model in range(shape[1]):
        here = layers.model == model
        best = np.where(np.isnan(found["correlation"][:, here]), -np.inf,
                        found["correlation"][:, here])  # fmt: skip
        place = best.argmax(1)
        known = np.isfinite(best[rows, place])
        out["correlation"][:, model] = np.where(known, best[rows, place], np.nan)
        at["layer"][:, model] = np.where(known, layers.layer[here][place], -1)
        at["index"][:, model] = np.where(known, found["index"][:, here][rows, place], -1)
        # The largest of all rotated layers: one number a draw.
        drawn = np.fmax.reduce(found["baseline"][:, here], axis=1)
        out["baseline"][:, model] = drawn.mean(1)
        if drawn.shape[1] > 1:
            out["baseline_spread"][:, model] = drawn.std(1, ddof=1)
        out["same"][:, model] = np.fmax.reduce(found["same"][:, here], axis=1)
    excess = (out["correlation"] - out["baseline"]).mean(1)
    return {
        "match_correlation": out["correlation"],
        "match_layer": at["layer"],
        "match_index": at["index"],
        "match_baseline": out["baseline"],
        "match_baseline_spread": out["baseline_spread"],
        "same_correlation": out["same"],
        "excess_correlation": excess,
        "correlation_mean": out["correlation"].mean(1),
        "correlation_min": out["correlation"].min(1),
        "universal": excess > above,
    }


def chance(count: int, tokens: int) -> float:
    """The largest of ``count`` correlations that are none, over so many independent tokens: about
    √(2 ln N / T), at most 1."""
    return float(min(1.0, np.sqrt(2 * np.log(max(count, 2)) / max(tokens, 1))))
