"""What the tokens are at which a neuron fires, in words, from the activations that a store keeps.

>>> ds = confreg.open("runs/demo.zarr")  # run with --activations
>>> confreg.families(ds)[["family", "family_reduction"]]
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from confreg.derive.features import before, first_largest, information, usable
from confreg.errors import ConfregError
from confreg.results import activity


def families(
    ds: xr.Dataset,
    *,
    least: int = 30,
    shuffles: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """The feature of the token, or of the one before it, that explains most of each neuron.

    For a feature y that a share β of the tokens has, of a neuron's activation v,

        reduction = 1 − [(1 − β) Var(v | y = 0) + β Var(v | y = 1)] / Var(v)

    The largest of some hundred features always explains something. ``family_chance`` is the 99th
    percentile of the same maximum where the activations are shuffled over tokens, over all neurons
    and ``shuffles`` draws; a family is named where the reduction is above it.

    Gurnee et al. 2024, Universal Neurons in GPT2 Language Models (arXiv 2401.12181), equation 4 and
    section 4.3, there of pre-activations.

    Parameters
    ----------
    ds : Dataset
        With ``activation (neuron, token)``.
    least : int
        Features that fewer kept tokens have, or lack, are left out.
    shuffles, seed : int

    Returns
    -------
    Dataset
        ``family (neuron)``, in words, "" where nothing is above chance; ``family_mean`` and
        ``other_mean``, the mean activation at tokens of the family and at the others;
        ``family_reduction``; ``reduction (neuron, feature)``; ``feature_share (feature)``, β; and
        ``position_information (neuron)``, in nats: mean over positions p, weighted by their tokens,
        of Σ f_p ln(f_p/f), over on (activation above 0) and off. Attributes ``family_chance``,
        ``position_chance``.

    Raises
    ------
    ConfregError
        No activations, or no feature that ``least`` tokens have.
    """
    keep = activity.kept_tokens(ds, "families")
    names, marks = _marks(ds, keep, least)
    share = marks.mean(1)
    position = np.unique(ds["position"].values[keep], return_inverse=True)[1]
    draw = np.random.default_rng(seed)
    orders = [draw.permutation(int(keep.sum())) for _ in range(shuffles)]
    n = ds.sizes["neuron"]
    reduction = np.full((n, len(names)), np.nan)
    means = np.full((2, n), np.nan)
    information = np.full(n, np.nan)
    chance: list[np.ndarray] = []
    position_chance: list[np.ndarray] = []
    for rows, values in activity.spans(ds, keep):
        z = activity.standardised(values)
        constant = np.abs(z).max(1) == 0
        reduction[rows] = np.where(constant[:, None], np.nan, _reduction(z, marks, share))
        best = np.where(constant, 0, first_largest(reduction[rows]))
        there = marks[best]
        means[0, rows] = (values * there).sum(1) / there.sum(1)
        means[1, rows] = (values * ~there).sum(1) / (~there).sum(1)
        information[rows] = _position_information(values > 0, position)
        for order in orders:
            # A shuffle of the labels is one of the activations, and as good for all neurons.
            chance.append(_reduction(z, marks[:, order], share).max(1)[~constant])
            position_chance.append(_position_information(values > 0, position[order]))
    floor = float(np.quantile(np.concatenate(chance), 0.99)) if shuffles else 0.0
    largest = np.nan_to_num(reduction, nan=-1).max(1)
    best = first_largest(reduction)
    words = np.array(names, dtype=object)
    return xr.Dataset(
        {
            "family": ("neuron", np.where(largest > floor, words[best], ""),
                       {"long_name": "tokens that explain most of the activation"}),
            "family_reduction": ("neuron", np.where(largest < 0, np.nan, largest),
                                 {"long_name": "share of the variance that they explain",
                                  "units": "1"}),
            "family_mean": ("neuron", means[0],
                            {"long_name": "mean activation at those tokens", "units": "1"}),
            "other_mean": ("neuron", means[1],
                           {"long_name": "mean activation at the others", "units": "1"}),
            "position_information": ("neuron", information,
                                     {"long_name": "what the position says of whether it fires",
                                      "units": "nats"}),
            "reduction": (("neuron", "feature"), reduction,
                          {"long_name": "share of the variance explained", "units": "1"}),
            "feature_share": ("feature", share,
                              {"long_name": "share of kept tokens that have it", "units": "1"}),
        },
        coords={**activity.of_neurons(ds), "feature": ("feature", words)},
        attrs={
            "tokens": int(keep.sum()),
            "family_chance": floor,
            "position_chance": (
                float(np.quantile(np.concatenate(position_chance), 0.99)) if shuffles else 0.0
            ),
            "shuffles": shuffles,
            "seed": seed,
            "model": str(ds.attrs.get("model", "")),
        },
    )  # fmt: skip


def _reduction(z: np.ndarray, marks: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Of rows of mean 0 and norm 1, (n, T), and features (F, T): (n, F).

    The variance between is Σ over both sides of share · mean²; with mean 0 the means are s/(βT) and
    −s/((1 − β)T), s the sum over the tokens that have the feature.
    """
    total = z.shape[1]
    sums = z @ marks.T.astype(np.float64)
    return sums**2 / (share * (1 - share) * total)


def _position_information(on: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Mutual information of position and on or off, nats, (n,)."""
    size = np.bincount(position)
    order = np.argsort(position, kind="stable")
    starts = np.append(0, np.cumsum(size)[:-1])
    active = np.add.reduceat(on[:, order].astype(np.float64), starts, axis=1)
    return information(active, size)


def _marks(ds: xr.Dataset, keep: np.ndarray, least: int) -> tuple[list[str], np.ndarray]:
    """Features of tokens and of the tokens before them: names, and (F, T) bool."""
    texts = np.array([str(each) for each in ds["token_text"].values], dtype=object)
    sides = [
        np.unique(several[keep], return_inverse=True, return_counts=True)
        for several in (texts, before(texts, ds["position"].values, ""))
    ]
    found = usable([(used.tolist(), counts) for used, _, counts in sides], least)
    return [name for name, *_ in found], np.stack([has[sides[side][1]] for _, side, has in found])


def in_words(ds: xr.Dataset, axis: str, names: list[str]) -> dict[str, str]:
    """What some neurons' activations go with, in words, of those of which there is anything to say.

    Empty where the dataset has neither families nor activations of what lies along the axis, or too
    little text.
    """
    if axis != "neuron":
        return {}
    found = ds.isel(neuron=[ds["neuron"].values.tolist().index(name) for name in names])
    if "family" not in ds:
        if not {"keep", "token_text", "position"} <= set(ds.coords):
            return {}
        try:
            found = families(found)
        except ConfregError:
            return {}
    shares = zip(names, found["family"].values, found["family_reduction"].values)
    return {name: f"{family} ({share:.0%})" for name, family, share in shares if family}
