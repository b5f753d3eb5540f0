"""Two stores side by side: two models, two checkpoints, two texts.

>>> base, tuned = confreg.open("runs/base.zarr"), confreg.open("runs/tuned.zarr")
>>> found = confreg.compare(base, tuned)
>>> print(found.attrs["compared"], found.attrs["left_out"])
>>> found.confreg.top("te_change")

What may be compared depends on what agrees. Where the models have the same layers and widths, a
neuron's numbers are held against those of the neuron of the same name; where the tokens agree too,
token by token, and differences get intervals by drawing documents anew; where neither does, only
distributions are compared. What cannot be is left out, with the reason.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from confreg.derive.means import of_sums
from confreg.errors import ConfregError
from confreg.results import axes, vocabulary
from confreg.results.groups import not_known, own_means
from confreg.results.overlap import by_chance
from confreg.results.resampling import Documents
from confreg.results.shape import unlike

ABLATED = (
    "te", "de", "mediated", "effect", "shift", "accuracy", "mean_confidence", "ece", "mce", "brier",
    "transition", "taken_back",
)  # fmt: skip
MEANS = ("ablation_value", "activation_deviation")
SETTINGS = {
    "ablation": ABLATED,
    "mean_over": (*ABLATED, *MEANS, "mean_activation", "above_share"),
    "mean_from_sha256": (*ABLATED, *MEANS),
    "counts_sha256": ("frequency_cosine", "de", "mediated", "te_mediated"),
    "centre_vocabulary": (
        "logit_var",
        "null_fraction",
        "vocab_",
        "singular_value",
        "frequency_cosine",
    ),
    "null_dims": ("null_fraction",),
    "parameter_kurtosis_above": ("role",),
    "parameter_variance_above": ("role",),
}
"""Attributes, and beginnings of names of variables that mean something else where they differ."""

ENDS = {
    "_change_low": "Δ {}, low", "_change_high": "Δ {}, high", "_change": "Δ {}",
    "_first": "{}, first", "_second": "{}, second",
}  # fmt: skip
"""What is written of a number of both stores, by the end of the variable's name."""

PER_TOKEN = ("loss", "entropy", "norm_scale", "confidence", "correct")
CHUNK = 64


@dataclass
class Terms:
    """What may be compared of two datasets.

    Attributes
    ----------
    subject : str
        The axis that both are about.
    rows : tuple of two ndarrays, or None
        Where the common entries stand in each; None where entries of one name are not the same.
    tokens : bool
        Whether both are about the same tokens, of which the same are kept.
    effects : list of str
        Those that are compared token by token.
    said, refused : list of str
        In words: what is compared, and what is not and why.
    """

    subject: str
    rows: tuple[np.ndarray, np.ndarray] | None = None
    tokens: bool = False
    effects: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def compare(
    first: xr.Dataset, second: xr.Dataset, *, top: int = 100, draws: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Compare two stores of one recipe.

    Parameters
    ----------
    first, second : Dataset
        As `confreg.open` returns them. Changes are the second less the first.
    top : int
        How many of the largest of each variable count as its top.
    draws : int
        Resamples of documents (of sequences, where no documents are known).
    seed : int

    Returns
    -------
    Dataset
        Along the subject, where it agrees: ``X_first``, ``X_second`` and ``X_change`` of every
        number X that both have; where tokens agree and are kept in the stores, of activations
        ``activation_correlation``, ``activation_shift`` (change of the mean in standard deviations
        of the first), ``deviation_ratio`` and ``frequency_change``; of effects
        ``effect_mean_change`` and ``effect_abs_mean_change (subject, effect)``; of both, of ``te``
        and of ``mediated``, ``…_low`` and ``…_high``, a 95 % percentile interval by resampling
        documents. ``w_out_cosine`` where both keep output weights.
        Along ``variable``: medians, ``rank_correlation`` (Spearman), ``top_shared``,
        ``top_jaccard`` and ``top_p`` (hypergeometric: so many shared or more by chance), ``ks`` and
        ``ks_p`` (two-sided Kolmogorov and Smirnov) of the distributions.
        Along ``prediction``: means over kept tokens of loss, entropy and the like, their change and
        its interval.
        The attributes ``compared`` and ``left_out`` say what was compared, and what was not and
        why.

    Raises
    ------
    ConfregError
        A run is not finished, the datasets are about different things, or nothing agrees.
    """
    if draws < 1 or top < 1:
        raise ConfregError("draws and top are at least 1.")
    terms = agree(first, second)
    found = _numbers(first, second, terms, top)
    if terms.tokens:
        documents = Documents(first, draws, seed, least=1)
        found |= _per_token(first, second, documents)
        if terms.rows is not None:
            found |= _activations(first, second, terms, documents)
            found |= _effects(first, second, terms, documents)
        if len(documents) > 1:
            terms.said.append(
                f"intervals by drawing {len(documents)} {documents.what}s anew, {draws:,} times"
            )
        else:
            terms.refused.append(f"intervals: the kept tokens are of one {documents.what}")
            found = {k: v for k, v in found.items() if not k.endswith(("_low", "_high"))}
    if terms.rows is not None and all("w_out" in ds for ds in (first, second)):
        found["w_out_cosine"] = _cosine(first, second, terms)
    if not found:
        raise ConfregError(
            "The two stores have no number in common to compare: " + "; ".join(terms.refused) + "."
        )
    coords = _labels(first, terms)
    names = [_named(ds) for ds in (first, second)]
    commands = [str(ds.attrs.get("command_line", "")) for ds in (first, second)]
    texts = dict.fromkeys(str(ds.attrs.get("corpus", "")) for ds in (first, second))
    recipe = str(first.attrs.get("recipe", ""))
    made = xr.Dataset(
        found,
        coords=coords,
        attrs={
            "title": f"{names[0]} against {names[1]}",
            "recipe": f"comparison of {recipe}",
            "first": names[0],
            "second": names[1],
            "first_command": commands[0],
            "second_command": commands[1],
            "delta": "the second, less the first",
            "corpus": "; ".join(filter(None, texts)),
            "compared": "; ".join(terms.said),
            "left_out": "; ".join(terms.refused),
            "draws": draws,
            "seed": seed,
            "complete": 1,
        },
    )
    return _call(made)


def _named(ds: xr.Dataset) -> str:
    """How a store is called: its file's name, as far as it is known, and its model."""
    source, model = Path(ds.encoding.get("source", "")).name, str(ds.attrs.get("model", ""))
    return f"{source} ({model})" if source else model


def _call(found: xr.Dataset) -> xr.Dataset:
    """Write each number that both stores have by its shared word."""
    for name, array in found.data_vars.items():
        for end, text in ENDS.items():
            of = str(name).removesuffix(end)
            if of != name and of in vocabulary.WORDS:
                symbol = text.format(vocabulary.word(of).symbol)
                array.attrs |= {"symbol": symbol, "number_of": of}
                break
    return found


def agree(first: xr.Dataset, second: xr.Dataset) -> Terms:
    """What may be compared of two datasets, and why not the rest.

    Raises
    ------
    ConfregError
        A run is not finished, or the datasets are of different recipes or about different axes.
    """
    both = (first, second)
    for ds, word in zip(both, ("first", "second")):
        if not ds.attrs.get("complete", 1):
            raise ConfregError(f"The {word} store is not finished: run its command again.")
    recipes = [str(ds.attrs.get("recipe", "")) for ds in both]
    if recipes[0] != recipes[1]:
        raise ConfregError(
            f"The stores are of different recipes, {recipes[0]} and {recipes[1]}: their numbers "
            "are not the same things."
        )
    subjects = [axes.main_subject(ds) for ds in both]
    if subjects[0] is None or subjects[0] != subjects[1]:
        words = [f"{subject}s" if subject else "nothing" for subject in subjects]
        raise ConfregError(
            f"The first store is about {words[0]} and the second about {words[1]}: there is "
            "nothing to hold against each other."
        )
    terms = Terms(subjects[0])
    _agree_on_subjects(first, second, terms)
    _agree_on_tokens(first, second, terms)
    return terms


def _agree_on_subjects(first: xr.Dataset, second: xr.Dataset, terms: Terms) -> None:
    dim = terms.subject
    labels = [axes.texts(ds, dim) for ds in (first, second)]
    common = set(labels[0]) & set(labels[1])
    if shapes := unlike(first, second):
        terms.refused.append(f"{dim}s one by one: the models are of different shapes ({shapes})")
    elif not common:
        terms.refused.append(f"{dim}s one by one: the stores have none in common")
    else:
        places = [{name: i for i, name in enumerate(names)} for names in labels]
        order = [name for name in labels[0] if name in common]
        terms.rows = tuple(np.array([p[name] for name in order]) for p in places)  # type: ignore[assignment]
        terms.said.append(f"{len(order):,} {dim}s, by name")
        for one, word in zip(labels, ("first", "second")):
            if len(one) > len(order):
                alone = len(one) - len(order)
                terms.refused.append(f"{alone:,} {dim}s that only the {word} store has")
    if terms.rows is None:
        terms.said.append(f"distributions over {len(labels[0]):,} and {len(labels[1]):,} {dim}s")


def _agree_on_tokens(first: xr.Dataset, second: xr.Dataset, terms: Terms) -> None:
    text = axes.text(first)
    if text is None and axes.text(second) is None:
        return
    reason = ""
    if text != axes.text(second) or text is None:
        reason = "only one store has tokens"
    elif first.attrs.get("corpus_sha256") != second.attrs.get("corpus_sha256"):
        reason = "the texts are different"
    elif not np.array_equal(first["token_id"].values, second["token_id"].values):
        reason = "the text is cut into different tokens"
    elif not np.array_equal(first["keep"].values, second["keep"].values):
        reason = "means are over different tokens (keep)"
    if reason:
        terms.refused.append(f"token by token: {reason}")
        return
    terms.tokens = True
    terms.said.append(f"{int(first['keep'].sum()):,} kept tokens, one by one")


def _comparable(first: xr.Dataset, second: xr.Dataset, terms: Terms) -> list[str]:
    """Names of the numbers along the subject that mean the same in both."""
    dim = terms.subject

    def own(ds: xr.Dataset) -> list[str]:
        return [
            str(name) for name, v in ds.data_vars.items()
            if v.dims == (dim,) and axes.is_number(v)
        ]  # fmt: skip

    found, others = own(first), own(second)
    for names, there, word in ((found, others, "first"), (others, found, "second")):
        if alone := [name for name in names if name not in there]:
            terms.refused.append(f"{', '.join(alone)}: only the {word} store has it")
    both = [name for name in found if name in others]
    for attribute, beginnings in SETTINGS.items():
        if not _differ(first, second, attribute):
            continue
        away = [name for name in both if name.startswith(beginnings)]
        if away:
            terms.refused.append(f"{', '.join(away)}: {_settings(first, second, attribute)}")
        both = [name for name in both if name not in away]
    return both


def _differ(first: xr.Dataset, second: xr.Dataset, attribute: str) -> bool:
    return first.attrs.get(attribute) != second.attrs.get(attribute)


def _settings(first: xr.Dataset, second: xr.Dataset, attribute: str) -> str:
    """How a setting differs; of contents that a digest tells apart, what they are called too."""
    name = attribute.removesuffix("_sha256")
    said = []
    for ds in (first, second):
        value = str(ds.attrs.get(attribute, "not given"))
        named = name != attribute and name in ds.attrs
        said.append(f"{ds.attrs[name]} ({value[:8]})" if named else value)
    return f"{name.removeprefix('parameter_')} is {' and '.join(said)}"


def _numbers(first: xr.Dataset, second: xr.Dataset, terms: Terms, top: int) -> dict[str, Any]:
    from scipy import stats

    dim, found, rows = terms.subject, {}, []
    names = vocabulary.ordered(_comparable(first, second, terms))
    for name in names:
        one, other = (ds[name].values.astype(np.float64) for ds in (first, second))
        units = {"units": str(first[name].attrs.get("units", "1"))}
        text = str(first[name].attrs.get("long_name", name))
        row = {
            "median_first": _median(one),
            "median_second": _median(other),
            "rank_correlation": np.nan, "top_shared": np.nan, "top_jaccard": np.nan,
            "top_p": np.nan, "ks": np.nan, "ks_p": np.nan,
        }  # fmt: skip
        known = [x[np.isfinite(x)] for x in (one, other)]
        if all(len(x) for x in known):
            exact = max(map(len, known)) <= 1000
            with warnings.catch_warnings():  # where it cannot be exact, scipy says so, and is not
                warnings.filterwarnings("ignore", ".*Exact calculation unsuccessful")
                ks: Any = stats.ks_2samp(known[0], known[1], method="exact" if exact else "asymp")
            row |= {"ks": float(ks.statistic), "ks_p": float(ks.pvalue)}
        if terms.rows is not None:
            one, other = one[terms.rows[0]], other[terms.rows[1]]
            for side, values in (("first", one), ("second", other)):
                found[f"{name}_{side}"] = (dim, values, {"long_name": f"{text}, {side}", **units})
            change = {"long_name": f"change of: {text}", **units}
            found[f"{name}_change"] = (dim, other - one, change)
            row |= _ranks(one, other, top)
        rows.append(row)
    if not rows:
        return found
    words = {
        "median_first": ("median, first", "median of the first"),
        "median_second": ("median, second", "median of the second"),
        "rank_correlation": ("rank correlation", "Spearman's rank correlation"),
        "top_shared": ("shared top", "shared among the largest of each"),
        "top_jaccard": ("Jaccard", "Jaccard overlap of the largest of each"),
        "top_p": ("p (shared)", "hypergeometric p of so many shared"),
        "ks": ("KS", "largest difference of the cumulative distributions"),
        "ks_p": ("p (KS)", "p of KS, two-sided"),
    }  # fmt: skip
    for key, (symbol, text) in words.items():
        values = np.array([row[key] for row in rows], dtype=float)
        if np.isfinite(values).any():
            attrs = {"long_name": text, "units": "1", "symbol": symbol}
            found[key] = ("variable", values, attrs)
    label = {"long_name": "number that both stores have", "axis_kind": "subject"}
    found["variable"] = ("variable", np.array(names, dtype=object), label)
    return found


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _ranks(one: np.ndarray, other: np.ndarray, top: int) -> dict[str, float]:
    """Rank correlation, and how many of the largest are shared against what chance gives."""
    from scipy import stats

    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]
    count = len(one)
    if count < 3:
        return {}
    top = min(top, count)
    largest = [set(np.argsort(-x, kind="stable")[:top].tolist()) for x in (one, other)]
    shared = len(largest[0] & largest[1])
    constant = np.ptp(one) == 0 or np.ptp(other) == 0
    spearman: Any = None if constant else stats.spearmanr(one, other)
    jaccard, p = by_chance(shared, top, count)
    return {
        "rank_correlation": float("nan") if constant else float(spearman.statistic),
        "top_shared": float(shared),
        "top_jaccard": jaccard,
        "top_p": p,
    }


def _per_token(first: xr.Dataset, second: xr.Dataset, documents: Documents) -> dict[str, Any]:
    """Means over kept tokens of what each prediction has, their change and its interval."""
    names = [n for n in PER_TOKEN if all(n in ds and ds[n].ndim == 1 for ds in (first, second))]
    if not names:
        return {}
    values = [
        np.stack([ds[n].values[documents.keep].astype(np.float64) for n in names])
        for ds in (first, second)
    ]
    defined = np.isfinite(values[0]) & np.isfinite(values[1])
    sums = [documents.sums(np.where(defined, each, 0.0)) for each in values]
    counts = documents.sums(defined)
    means = [each.sum(-1) / counts.sum(-1) for each in sums]
    change, low, high = documents.interval(
        lambda weights: (sums[1] @ weights - sums[0] @ weights) / (counts @ weights)
    )
    units = [str(first[n].attrs.get("units", "1")) for n in names]
    said = [str(first[n].attrs.get("long_name", n)) for n in names]
    rows = {
        "token_mean_first": (means[0], "mean over kept tokens, first"),
        "token_mean_second": (means[1], "mean over kept tokens, second"),
        "token_mean_change": (change, "change of the mean over kept tokens"),
        "token_mean_low": (low, "2.5 % of that over resampled documents"),
        "token_mean_high": (high, "97.5 % of that over resampled documents"),
    }
    kind = {"axis_kind": "subject", "long_name": "quantity of each prediction"}
    return {
        **{k: ("prediction", v, {"long_name": text, "units": "see prediction_unit"})
           for k, (v, text) in rows.items()},
        "prediction": ("prediction", np.array(names, dtype=object), kind),
        "prediction_unit": ("prediction", np.array(units, dtype=object), {"long_name": "units"}),
        "prediction_meaning": (
            "prediction", np.array(said, dtype=object), {"long_name": "meaning"}
        ),
    }  # fmt: skip


def _activations(
    first: xr.Dataset, second: xr.Dataset, terms: Terms, documents: Documents
) -> dict[str, Any]:
    dim = terms.subject
    if not all("activation" in ds and set(ds["activation"].dims) == {dim, "token"}
               for ds in (first, second)):  # fmt: skip
        terms.refused.append("activations token by token: a store keeps none (--activations)")
        return {}
    parts: list[list[np.ndarray]] = []
    for a, b in _chunks(first, second, "activation", terms, documents.keep):
        defined = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(defined, a, 0.0), np.where(defined, b, 0.0)
        n = defined.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = [x.sum(-1) / n for x in (a, b)]
            centred = [np.where(defined, x - m[:, None], 0) for x, m in zip((a, b), means)]
            sd = [_spread(x, y, n) for x, y in zip(centred, (a, b))]
            scale = [np.where(x > 0, x, np.nan) for x in sd]
            r = (centred[0] * centred[1]).sum(-1) / n / (scale[0] * scale[1])
            counts = documents.sums(defined)
            moved = documents.sums(b - a)
            fires = documents.sums((b > 0).astype(float) - (a > 0))

            def share(
                weights: np.ndarray, total: np.ndarray = moved, k: np.ndarray = counts
            ) -> Any:
                return (total @ weights) / (k @ weights)

            shift = [x / scale[0] for x in documents.interval(share)]
            frequency = documents.interval(lambda w, f=fires, k=counts: (f @ w) / (k @ w))
            parts.append([r, sd[1] / scale[0], *shift, *frequency])
    r, ratio, shift, s_low, s_high, fires, f_low, f_high = map(np.concatenate, zip(*parts))
    over = "over resampled documents"
    return {
        "activation_correlation": (dim, r, _said("correlation of the activations, token by token")),
        "deviation_ratio": (dim, ratio, _said("σ of the activation, second over first")),
        "activation_shift": (
            dim, shift, _said("change of the mean activation in σ of the first")
        ),
        "activation_shift_low": (dim, s_low, _said(f"2.5 % of activation_shift {over}")),
        "activation_shift_high": (dim, s_high, _said(f"97.5 % of activation_shift {over}")),
        "frequency_change": (dim, fires, _said("change of the share of tokens above 0")),
        "frequency_change_low": (dim, f_low, _said(f"2.5 % of frequency_change {over}")),
        "frequency_change_high": (dim, f_high, _said(f"97.5 % of frequency_change {over}")),
    }  # fmt: skip


def _spread(centred: np.ndarray, values: np.ndarray, n: np.ndarray) -> np.ndarray:
    """σ of each row; 0 where it is constant up to rounding, or is there at one token only."""
    squares = np.square(centred).sum(-1)
    constant = squares <= 1e-12 * np.square(values).sum(-1)
    return np.where(constant, 0.0, np.sqrt(squares / n))


def _effects(
    first: xr.Dataset, second: xr.Dataset, terms: Terms, documents: Documents
) -> dict[str, Any]:
    dim = terms.subject
    for ds, word in ((first, "first"), (second, "second")):
        if "effects" not in ds or ds["effects"].dims != (dim, "token", "effect"):
            if "effect" in ds.dims or "te" in ds:
                terms.refused.append(
                    f"intervals of effects: the {word} store keeps none at single tokens "
                    "(--reduce token)"
                )
            return {}
    if any(_differ(first, second, each) for each, names in SETTINGS.items() if "effect" in names):
        return {}  # refused with the variables that follow from them
    names = [str(n) for n in first["effect"].values if n in second["effect"].values]
    if _differ(first, second, "counts_sha256"):
        if away := [name for name in names if "frequency" in name]:
            said = _settings(first, second, "counts_sha256")
            terms.refused.append(f"{', '.join(away)}: {said}")
        names = [name for name in names if name not in away]
    if not names:
        terms.refused.append("effects: the stores have none in common")
        return {}
    terms.effects = names
    first, second = (ds.sel(effect=names) for ds in (first, second))
    own = own_means(first, names)
    if unknown := [name for name, mean in own.items() if mean is not_known]:
        terms.refused.append(
            f"{', '.join(unknown)}: no mean of the tokens' values; what it is of is not stored"
        )
    mean = functools.partial(of_sums, names=names, own=own)
    pathways = [names.index(first.attrs[k]) for k in ("mediated_total", "mediated_direct")
                if first.attrs.get(k) in names]  # fmt: skip
    parts: list[list[np.ndarray]] = []
    for a, b in _chunks(first, second, "effects", terms, documents.keep):
        parts.append(_changes(a, b, documents, mean, pathways))
    columns = [np.concatenate(each) for each in zip(*parts)]
    over = "over resampled documents"
    found: dict[str, Any] = {}
    for at, (name, text) in enumerate(
        (("effect_mean_change", "change of the mean effect"),
         ("effect_abs_mean_change", "change of the mean absolute effect"))
    ):  # fmt: skip
        for column, word in enumerate(("", "_low", "_high")):
            said = text if not word else f"{('2.5', '97.5')[column - 1]} % of {name} {over}"
            attrs = {"long_name": said, "units": "see effect_units"}
            found[name + word] = ((dim, "effect"), columns[3 * at + column], attrs)
    if len(pathways) == 2:
        for column, word in enumerate(("low", "high"), 1):
            percent = ("2.5", "97.5")[column - 1]
            found[f"te_change_{word}"] = (
                dim, columns[3 + column][:, pathways[0]],
                {"long_name": f"{percent} % of te_change {over}", "units": "nats"},
            )  # fmt: skip
            found[f"mediated_change_{word}"] = (
                dim, columns[6 + column], _said(f"{percent} % of mediated_change {over}")
            )  # fmt: skip
    return found


def _changes(
    a: np.ndarray, b: np.ndarray, documents: Documents, mean: Callable[..., np.ndarray],
    pathways: list[int],
) -> list[np.ndarray]:  # fmt: skip
    """Of effects (n, T, E): how means change, those of absolute values and the mediated share.

    Each with both ends of its interval; ``mean`` as `of_sums`.
    """
    a, b = (np.moveaxis(x, 1, -1) for x in (a, b))
    defined = np.isfinite(a) & np.isfinite(b)
    counts = documents.sums(defined)
    both = [np.where(defined, x, 0.0) for x in (a, b)]
    signed, size = ([documents.sums(f(x)) for x in both] for f in (np.positive, np.abs))

    def change(weights: np.ndarray) -> np.ndarray:
        one, other = (mean(x @ weights, counts @ weights) for x in signed)
        return other - one

    def change_of_size(weights: np.ndarray) -> np.ndarray:
        one, other = (
            mean(x @ weights, counts @ weights, signed=y @ weights) for x, y in zip(size, signed)
        )
        return other - one

    def change_of_share(weights: np.ndarray) -> np.ndarray:
        te, de = ([x[:, at] @ weights / (counts[:, at] @ weights) for x in size] for at in pathways)
        return (1 - de[1] / te[1]) - (1 - de[0] / te[0])

    with np.errstate(invalid="ignore", divide="ignore"):
        wanted = (change, change_of_size, *[change_of_share] * (len(pathways) == 2))
        return [each for statistic in wanted for each in documents.interval(statistic)]


def _cosine(first: xr.Dataset, second: xr.Dataset, terms: Terms) -> Any:
    dim, parts = terms.subject, []
    for a, b in _chunks(first, second, "w_out", terms, None):
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    return dim, np.concatenate(parts), _said("cosine of the two output weights")


def _chunks(
    first: xr.Dataset, second: xr.Dataset, name: str, terms: Terms, keep: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both arrays some entries of the subject at a time, float64, at kept tokens."""
    assert terms.rows is not None
    for start in range(0, len(terms.rows[0]), CHUNK):
        found = []
        for ds, rows in zip((first, second), terms.rows):
            some = rows[start : start + CHUNK]
            array = ds[name]
            array = array.transpose(terms.subject, *(d for d in array.dims if d != terms.subject))
            low = int(some.min())
            values = array[low : int(some.max()) + 1].values[some - low].astype(np.float64)
            found.append(values if keep is None else values[:, keep])
        yield found[0], found[1]


def _said(text: str) -> dict[str, str]:
    return {"long_name": text, "units": "1"}


def _labels(first: xr.Dataset, terms: Terms) -> dict[str, Any]:
    """The coordinates of what is compared one by one, as the first store has them."""
    if terms.rows is None:
        return {}
    some = first.isel({terms.subject: terms.rows[0]})
    if terms.effects:
        some = some.sel(effect=terms.effects)
    dims = {terms.subject, *["effect"] * bool(terms.effects)}
    return {
        str(name): value
        for name, value in some.coords.items()
        if set(value.dims) <= dims and value.dims
    }
