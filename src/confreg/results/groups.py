"""Effects by groups of tokens, of a stored cube: means, and differences with what chance gives."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from confreg.derive.discovery import q_values
from confreg.derive.means import Reduced, of_sums, reduced
from confreg.derive.mediated import mediated
from confreg.errors import ConfregError
from confreg.results.resampling import DRAWS, resampled

_CHUNK = 64  # entries that are read at once


def mean(ds: xr.Dataset, by: str) -> xr.Dataset:
    """Means of effects over the kept tokens of each group.

    Parameters
    ----------
    ds : Dataset
        With ``effects (subject, token, effect)``.
    by : str
        A coordinate of ``token``, whose values are the groups.

    Returns
    -------
    Dataset
        ``effect_mean_by`` and ``effect_abs_mean_by (subject, effect, group)``, over the tokens at
        which the effect is defined, see also `own_means`; ``group_size (group)``, kept tokens; and
        where the run had both pathways, ``te_by``, ``de_by``, ``te_mediated_by`` and ``mediated_by
        (subject, group)``. The coordinate ``group`` has the values of ``by``.

    Raises
    ------
    ConfregError
        The dataset holds no such effects or labels, or the label is none of tokens.
    """
    effects, labels = _checked(ds, by)
    keep = ds["keep"].values
    groups, codes = np.unique(labels[keep], return_inverse=True)
    one = np.eye(len(groups))[codes]  # (kept, group)
    names = effects["effect"].values.tolist()
    own = own_means(ds, names)
    signed, absolute = [], []
    for block in _blocks(effects, keep):
        defined = np.isfinite(block)
        block = np.where(defined, block, 0.0)
        count, sums = _summed(defined, one), _summed(block, one)
        signed.append(of_sums(sums, count, names, own))
        absolute.append(of_sums(_summed(np.abs(block), one), count, names, own, sums))
    subject = effects.dims[0]
    dims, units = (subject, "effect", "group"), {"units": "see effect_units"}
    over = f"over kept tokens of one {by}"
    found = xr.Dataset(
        {
            "effect_mean_by": (
                dims, np.concatenate(signed), {"long_name": f"mean effect {over}", **units}
            ),
            "effect_abs_mean_by": (
                dims, np.concatenate(absolute),
                {"long_name": f"mean absolute effect {over}", **units},
            ),
            "group_size": (
                "group", np.bincount(codes, minlength=len(groups)),
                {"long_name": f"kept tokens of one {by}", "units": "1"},
            ),
        },
        coords={
            "group": ("group", groups, {"long_name": str(ds[by].attrs.get("long_name", by))}),
            **{k: v for k, v in effects.coords.items() if "token" not in v.dims},
        },
        attrs={"by": by},
    )  # fmt: skip
    return found.assign(_mediation(ds, found))


def _mediation(ds: xr.Dataset, found: xr.Dataset) -> dict[str, Any]:
    names = [ds.attrs.get(f"mediated_{pathway}") for pathway in ("total", "direct")]
    if not all(name in found["effect"].values for name in names):
        return {}
    te, de = (
        found["effect_abs_mean_by"].sel(effect=name).reset_coords(drop=True) for name in names
    )
    words = {
        "te_by": "mean absolute total effect, by group",
        "de_by": "mean absolute direct effect, by group",
        "te_mediated_by": "te_by - de_by, by group",
        "mediated_by": "share of the total effect that is mediated",
    }
    every = mediated(te, de, "_by")
    return {name: array.assign_attrs(long_name=words[name]) for name, array in every.items()}


def compare(
    ds: xr.Dataset, first: Any, second: Any, by: str, draws: int = 2000, seed: int = 0
) -> xr.Dataset:
    """How mean effects differ between two groups of documents.

    What is drawn are documents, never tokens of one: two tokens of a document are no two pieces of
    evidence.

    Parameters
    ----------
    ds : Dataset
        With ``effects (subject, token, effect)``.
    first, second
        Values of ``by``.
    by : str
        A coordinate of ``token`` that has one value in each document.
    draws : int
        Permutations, and resamples.
    seed : int

    Returns
    -------
    Dataset
        ``difference (subject, effect)``, the mean over kept tokens of the first group less that
        of the second; ``p``, the share of permutations of the documents' groups whose difference
        is at least as large in absolute value, (1 + count) / (1 + draws), of the draws that leave
        both groups a token at which the effect is defined; ``q``, Benjamini and
        Hochberg's, of the p of one effect over all subjects; ``low`` and ``high``, a 95 %
        percentile interval by resampling documents within each group. ``documents
        (side)`` says how many there are.

    Raises
    ------
    ConfregError
        As `mean`; no kept token has a value, a document is in both groups, or a group has fewer
        than two documents.
    """
    effects, labels = _checked(ds, by)
    if draws < 1:
        raise ConfregError(f"draws is at least 1, not {draws}.")
    there = np.unique(labels[ds["keep"].values])
    for value in (first, second):
        if value not in there:
            some = ", ".join(map(repr, there.tolist()[:12]))
            raise ConfregError(f"No kept token has {by} {value!r}; there are {some}.")
    used = ds["keep"].values & ((labels == first) | (labels == second))
    document = ds["document" if "document" in ds.coords else "sequence"].values[used]
    names, codes = np.unique(document, return_inverse=True)
    is_first = np.zeros(len(names), dtype=bool)
    is_first[codes[labels[used] == first]] = True
    if (is_first[codes] != (labels[used] == first)).any():
        raise ConfregError(
            f"{by!r} is not the same throughout a document: {first!r} and {second!r} cannot be "
            "compared over documents."
        )
    sizes = [int(is_first.sum()), int((~is_first).sum())]
    if min(sizes) < 2:
        raise ConfregError(
            f"{first!r} has {sizes[0]} and {second!r} {sizes[1]} documents: a comparison needs two "
            "of each."
        )
    generator = np.random.default_rng(seed)
    permuted = np.stack([generator.permutation(is_first) for _ in range(draws)]).astype(np.float64)
    weights = [resampled(generator, mask, draws) for mask in (is_first, ~is_first)]
    one = np.eye(len(names))[codes]
    of = effects["effect"].values.tolist()
    mean = functools.partial(of_sums, names=of, own=own_means(ds, of))
    parts = []
    for block in _blocks(effects, used):
        defined = np.isfinite(block)
        sums, counts = _summed(np.where(defined, block, 0.0), one), _summed(defined, one)
        parts.append(_compared(sums, counts, mean, is_first, permuted, weights))
    dims = (effects.dims[0], "effect")
    long_names = {
        "difference": f"mean effect where {by} is {first} less that where it is {second}",
        "p": "share of permutations of documents that differ at least as much",
        "q": f"Benjamini-Hochberg q of p over all {effects.dims[0]}s, effect by effect",
        "low": "2.5 % percentile of the difference over resampled documents",
        "high": "97.5 % percentile of the difference over resampled documents",
    }
    units = {name: "1" if name in ("p", "q") else "see effect_units" for name in long_names}
    columns = [np.concatenate(column) for column in zip(*parts)]
    numbers: list[str] = ["difference", "p", "low", "high"]
    values = dict(zip(numbers, columns))
    values["q"] = q_values(values["p"])
    found = {
        name: (dims, values[name], {"long_name": text, "units": units[name]})
        for name, text in long_names.items()
    }
    return xr.Dataset(
        {**found, "documents": ("side", sizes, {"long_name": "documents compared", "units": "1"})},
        coords={
            "side": ("side", ["first", "second"]),
            **{k: v for k, v in effects.coords.items() if "token" not in v.dims},
        },
        attrs={"by": by, "first": str(first), "second": str(second), "draws": draws, "seed": seed},
    )


def _compared(
    sums: np.ndarray,
    counts: np.ndarray,
    mean: Callable[[np.ndarray, np.ndarray], np.ndarray],
    is_first: np.ndarray,
    permuted: np.ndarray,
    weights: list[np.ndarray],
) -> tuple[np.ndarray, ...]:
    """Difference, p, low and high, each (n, E), from documents' sums and counts (n, E, D)."""

    def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        first, second = (mean(sums @ some.T, counts @ some.T) for some in (one, other))
        return first - second

    mask = is_first[None].astype(np.float64)
    seen = difference(mask, 1 - mask)  # (n, E, 1)
    larger, known = np.zeros((2, *seen.shape[:2]))
    # What rounds otherwise in another order of the sum is as large.
    least = np.abs(seen) * (1 - 1e-12)
    for start in range(0, len(permuted), DRAWS):
        some = permuted[start : start + DRAWS]
        size = np.abs(difference(some, 1 - some))
        larger += (size >= least).sum(-1)
        known += np.isfinite(size).sum(-1)  # not where a group has no token that says anything
    drawn = np.concatenate(
        [
            difference(weights[0][start : start + DRAWS], weights[1][start : start + DRAWS])
            for start in range(0, len(permuted), DRAWS)
        ],
        axis=-1,
    )
    with warnings.catch_warnings():  # an effect that is defined in no document has no interval
        warnings.filterwarnings("ignore", "All-NaN slice")
        low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=-1)
    p = np.where(np.isnan(seen[..., 0]), np.nan, (1 + larger) / (1 + known))
    return seen[..., 0], p, low, high


def _summed(block: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Sums (n, E, groups) of a block (n, kept, E) over the tokens of each group."""
    return np.einsum("nte,tg->neg", block, one, optimize=True)


def _blocks(effects: xr.DataArray, tokens: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, effects.shape[0], _CHUNK):
        yield effects[start : start + _CHUNK].values[:, tokens].astype(np.float64)


def own_means(ds: xr.Dataset, names: Sequence[str]) -> Reduced:
    """What effects of a store are over several tokens, where not the mean of the tokens' values.

    ``temperature_share`` is 1 − Σ D_tempered / Σ D: of means, never a mean of shares. NaN of an
    effect for which only its recipe knows it, or of which what it follows from is not there.
    """
    # Stores from before there was the attribute have no other that a recipe of confreg measures.
    said = str(ds.attrs.get("effects_reduced", "temperature_share")).split()
    wanted = [name for name in said if name in names]
    if not wanted:
        return {}
    from confreg.effects import temperature_share

    effect = temperature_share.total
    there = set(effect.needs) <= set(names)
    known = reduced([effect]) if there else {}
    return {name: known.get(name, not_known) for name in wanted}


def not_known(sums: Any) -> float:
    """What stands for a mean that only a recipe knows: NaN."""
    return np.nan


def checked_effects(ds: xr.Dataset) -> xr.DataArray:
    """The effects at single tokens.

    Raises
    ------
    ConfregError
        The dataset holds none.
    """
    if "effects" not in ds or ds["effects"].dims[1:] != ("token", "effect"):
        raise ConfregError(
            "The dataset holds no effects at single tokens (it was reduced, or has others): run "
            "without --reduce token."
        )
    return ds["effects"]


def _checked(ds: xr.Dataset, by: str) -> tuple[xr.DataArray, np.ndarray]:
    effects = checked_effects(ds)
    if by not in ds.coords or ds[by].dims != ("token",):
        known = ", ".join(str(name) for name in ds.coords if ds[name].dims == ("token",))
        raise ConfregError(f"Tokens have no label {by!r}; they have {known}.")
    return effects, ds[by].values
