"""What the tokens are at which a neuron fires, in words, from the activations that a store keeps.

>>> ds = confreg.open("runs/demo.zarr")  # run with --activations
>>> confreg.families(ds)[["family", "family_reduction"]]
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr

from confreg.errors import ConfregError
from confreg.results import activity

SYMBOLS = tuple(".,;:!?'\"`()[]{}<>-_/\\|@#$%&*+=~^")
ENDINGS = ("ing", "ed", "s", "ly", "er", "est", "ion", "ment", "able", "ive", "al", "ful", "ity")
BEGINNINGS = ("un", "re", "in", "dis", "pre", "con", "de", "ex", "en", "over", "sub", "trans")


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
    names, marks = _features(ds, keep, least)
    if not names:
        raise ConfregError(
            f"No feature of the tokens is there at {least} kept tokens and absent at as many: give "
            "more text, or a lower least."
        )
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
        best = np.where(constant, 0, np.nan_to_num(reduction[rows], nan=-1).argmax(1))
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
    best = np.nan_to_num(reduction, nan=-1).argmax(1)
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
    found = np.zeros(len(on))
    for count in (active, size - active):
        every = count.sum(1, keepdims=True)
        ratio = np.divide(count * on.shape[1], size * every, out=np.ones_like(count),
                          where=count > 0)  # fmt: skip
        found += (count * np.log(ratio)).sum(1) / on.shape[1]
    return np.maximum(found, 0)


def _features(ds: xr.Dataset, keep: np.ndarray, least: int) -> tuple[list[str], np.ndarray]:
    """Features of tokens and of the tokens before them: names, and (F, T) bool."""
    texts = [str(each) for each in ds["token_text"].values]
    before = np.append("", texts[:-1])
    starts = ds["position"].values == 0
    before[starts] = ""
    names, rows = [], []
    for prefix, several in (("", texts), ("after ", before.tolist())):
        for name, marks in _of_texts(several):
            marks = marks[keep]
            if least <= marks.sum() <= len(marks) - least:
                names.append(prefix + name)
                rows.append(marks)
    return names, np.array(rows, dtype=bool).reshape(len(rows), int(keep.sum()))


def _of_texts(texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    used, where = np.unique(np.array(texts, dtype=object), return_inverse=True)
    for name, has in _rules():
        yield name, np.array([has(text) for text in used], dtype=bool)[where]
    words = np.array([text.strip().lower() for text in used], dtype=object)
    spelled, which = np.unique(words, return_inverse=True)
    counts = np.bincount(which[where], minlength=len(spelled))
    for number in np.argsort(-counts, kind="stable")[:200]:
        if spelled[number]:
            yield f"the token {str(spelled[number])!r}", which[where] == number


def _rules() -> Iterator[tuple[str, Callable[[str], bool]]]:
    """What can be said of a token's text; what holds for every language comes first."""
    yield "begins with a space", lambda t: t[:1] == " "
    yield "begins with a letter", lambda t: t[:1].isalpha()
    yield "white space", lambda t: bool(t) and t.isspace()
    yield "has a line break", lambda t: "\n" in t
    yield "letters", lambda t: t.strip().isalpha()
    yield "lower case", lambda t: t.strip().isalpha() and t.strip().islower()
    yield "ALL CAPITALS", lambda t: len(t.strip()) > 1 and t.strip().isalpha() and t.isupper()
    yield "Capitalised", lambda t: t.strip()[:1].isupper() and not t.strip()[1:2].isupper()
    yield "a single letter", lambda t: len(t.strip()) == 1 and t.strip().isalpha()
    yield "digits", lambda t: t.strip().isdecimal()
    yield "has a digit", lambda t: any(map(str.isdecimal, t))
    yield "symbols", lambda t: bool(t.strip()) and not any(map(str.isalnum, t))
    yield "letters and others", lambda t: not t.strip().isalpha() and any(map(str.isalpha, t))
    yield "outside ASCII", lambda t: not t.isascii()
    yield "no character of its own", lambda t: "\\x" in t
    for kind, said in (("P", "punctuation"), ("S", "a mathematical or currency sign")):
        yield said, lambda t, kind=kind: len(t.strip()) == 1 and _category(t.strip()) == kind
    for length in (1, 2, 3, 4):
        yield f"{length} characters long", lambda t, k=length: len(t.strip()) == k
    yield "5 to 7 characters long", lambda t: 5 <= len(t.strip()) <= 7
    yield "8 characters or longer", lambda t: len(t.strip()) >= 8
    for symbol in SYMBOLS:
        yield f"has {symbol!r}", lambda t, s=symbol: s in t
    for ending in ENDINGS:
        yield (
            f"ends in -{ending}",
            lambda t, e=ending: _word(t).endswith(e) and len(_word(t)) > len(e),
        )
    for first in BEGINNINGS:
        yield f"begins with {first}-", lambda t, f=first: t[:1] == " " and _word(t).startswith(f)


def _word(text: str) -> str:
    text = text.strip().lower()
    return text if text.isalpha() else ""


def _category(character: str) -> str:
    return unicodedata.category(character)[0]


def in_words(ds: xr.Dataset, axis: str, names: list[str]) -> dict[str, str]:
    """What some neurons' activations go with, in words, of those of which there is anything to say.

    Empty where the dataset keeps no activations of what lies along the axis, or too little text.
    """
    if axis != "neuron" or not {"keep", "token_text", "position"} <= set(ds.coords):
        return {}
    some = ds.isel(neuron=[ds["neuron"].values.tolist().index(name) for name in names])
    try:
        found = families(some)
    except ConfregError:
        return {}
    shares = zip(names, found["family"].values, found["family_reduction"].values)
    return {name: f"{family} ({share:.0%})" for name, family, share in shares if family}
