"""Which tokens explain a neuron's activation, from sums by token: no activation is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Axis, Label, Spans, Variable
from confreg.derive.features import before, first_largest, information, usable
from confreg.errors import ConfregError
from confreg.steps.values import activation_unit, read_activations, refuse_experts
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import xarray as xr

    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis
    from confreg.tokens.axis import Text

SUMS = ("token", "before")
FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Groups:
    """Which of some groups each token is in, −1 where it does not count, and their sizes."""

    of: np.ndarray
    sizes: np.ndarray
    texts: list[str]

    @classmethod
    def by(cls, values: np.ndarray, keep: np.ndarray, texts: np.ndarray | None = None) -> Groups:
        """Kept tokens of one value are a group, (T,)."""
        _, first, where, sizes = np.unique(
            values[keep], return_index=True, return_inverse=True, return_counts=True
        )
        of = np.full(len(keep), -1)
        of[keep] = where
        said = [] if texts is None else [str(each) for each in texts[keep][first]]
        return cls(of, sizes, said)


def families(study: Study, neurons: NeuronAxis, tokens: Text, least: int = 30) -> list[Item]:
    """The feature of the token, or of the one before it, that explains most of each neuron.

    Gives over ``neuron`` ``family``, ``family_reduction``, ``family_mean``, ``other_mean`` and
    ``position_information``, over ``neuron`` and ``feature`` ``reduction``, and ``feature_share``:
    as `confreg.families` does, from sums of activations by token, by the token before, and by
    position, which units of work add up in float64. A feature is a set of tokens, so its sums are
    sums of theirs.

    A family is named where the reduction is above ``family_chance``, an attribute: the q-quantile
    of χ²₁/T with q = 1 − 0.01/F of F features over T tokens, which a shuffled label's reduction
    follows if T is large. Tokens of a text are not independent, and rare features of activations
    with heavy tails exceed it more often.

    Parameters
    ----------
    study : Study
    neurons : NeuronAxis
    tokens : Text
    least : int
        Features that fewer kept tokens have, or lack, are left out.

    Raises
    ------
    ConfregError
        No feature is left, or the model has experts.
    """
    refuse_experts(study.model, "shares of their variance over all of them say little.")
    table, keep = tokens.table, tokens.keep
    previous, said = (
        before(of, table.position, nothing)
        for of, nothing in ((table.token_id, -1), (table.text, ""))
    )
    groups = {
        "token": Groups.by(table.token_id, keep, table.text),
        "before": Groups.by(previous, keep, said),
        "position": Groups.by(table.position, keep),
    }
    total = int(keep.sum())
    names, members, share = _features(groups, least, total)
    axes = {
        name: Axis(
            f"{name}_group",
            {f"{name}_group": Label(np.arange(len(each.sizes)), "tokens alike", kind="other")},
            kept=False,
        )
        for name, each in groups.items()
    }
    feature = Axis("feature", {"feature": Label(names, "what tokens have", kind="other")})

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Unit:
        part = spans[tokens.name]
        cuts = {name: (each.of[part], len(each.sizes)) for name, each in groups.items()}
        return Unit(activation_unit(neurons, tokens, spans, {}), cuts)

    n = (neurons.name,)
    added: Any = {"dtype": "float64", "added_over": (tokens.name,), "kept": False}
    step = Step(
        sums,
        over=(neurons, tokens),
        along=tuple(axes.values()),
        unit=unit,
        name="sums by token",
        gives=(
            *(Variable(f"sum_by_{name}", (*n, axes[name].name), f"sum by {name}", **added)
              for name in SUMS),
            Variable("on_by_position", (*n, "position_group"), "tokens it is on at", **added),
            Variable("sum_of_squares", n, "sum of squares", **added),
        ),
    )  # fmt: skip
    floor = _floor(len(names), total)

    def explained(ds: xr.Dataset) -> dict[str, Any]:
        by = np.concatenate([ds[f"sum_by_{name}"].values for name in SUMS], axis=1)
        mean = ds["sum_by_token"].values.sum(1, keepdims=True) / total
        variance = ds["sum_of_squares"].values / total - mean[:, 0] ** 2
        still = variance <= 1e-12 * ds["sum_of_squares"].values / total
        of_feature = by @ members.T.astype(np.float64)
        there = of_feature / (share * total)
        away = (mean * total - of_feature) / ((1 - share) * total)
        between = share * (1 - share) * (there - away) ** 2
        found = between / np.where(still, np.nan, variance)[:, None]
        best = first_largest(found)
        row = np.arange(len(best))
        largest = found[row, best]
        return {
            "family": np.where(np.nan_to_num(largest) > floor, np.array(names, object)[best], ""),
            "family_reduction": largest,
            "family_mean": there[row, best],
            "other_mean": away[row, best],
            "position_information": information(
                ds["on_by_position"].values, groups["position"].sizes
            ),
            "reduction": found,
            "feature_share": share,
        }

    said = Derivation(
        explained,
        along=(feature,),
        reads=(*(f"sum_by_{name}" for name in SUMS), "on_by_position", "sum_of_squares"),
        attributes={"family_chance": floor, "family_tokens": total},
        gives=(
            Variable("family", n, "tokens that explain most of the activation", "", "str"),
            Variable("family_reduction", n, "share of the variance that they explain"),
            Variable("family_mean", n, "mean activation at those tokens"),
            Variable("other_mean", n, "mean activation at the others"),
            Variable("position_information", n, "what the position says of whether it fires",
                     "nats"),
            Variable("reduction", (*n, "feature"), "share of the variance explained"),
            Variable("feature_share", ("feature",), "share of kept tokens that have it"),
        ),
    )  # fmt: skip
    return [step, said]


def _features(
    groups: Mapping[str, Groups], least: int, total: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, which groups of tokens and of tokens before have each, (F, U + U'), and shares."""
    sides = [(groups[name].texts, groups[name].sizes) for name in SUMS]
    found = usable(sides, least)
    members = np.zeros((len(found), sum(len(sizes) for _, sizes in sides)), dtype=bool)
    shares = np.zeros(len(found))
    for row, (_, side, has) in enumerate(found):
        start = len(sides[0][1]) * side
        members[row, start : start + len(has)] = has
        shares[row] = sides[side][1][has].sum() / total
    return [name for name, *_ in found], members, shares


def _floor(count: int, total: int) -> float:
    from scipy import stats

    return float(stats.chi2.isf(FALSE_ALARMS / count, 1)) / total


@dataclass(frozen=True)
class Unit:
    """What a unit carries: activations to be read, and the groups of its tokens."""

    reading: Any
    cuts: Mapping[str, tuple[np.ndarray, int]]


def sums(model: Any, unit: Unit) -> dict[str, Any]:
    """Activations of some neurons in one pass up to the layer, added up by group of tokens."""
    values = np.asarray(read_activations(model, unit.reading), dtype=np.float64)
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ConfregError(
            f"{wrong:,} of {values.size:,} activations of layer {unit.reading.layer} are no finite "
            "numbers. Try another --dtype."
        )
    on = (values > 0).astype(np.float64)
    kept = unit.cuts["token"][0] >= 0
    return {
        **{f"sum_by_{name}": _added(values, *unit.cuts[name]) for name in SUMS},
        "on_by_position": _added(on, *unit.cuts["position"]),
        "sum_of_squares": (values[:, kept] ** 2).sum(1),
    }


def _added(values: np.ndarray, of: np.ndarray, size: int) -> np.ndarray:
    """Sums over tokens of each group, (n, T) to (n, size)."""
    found = np.zeros((size, len(values)))
    np.add.at(found, of[of >= 0], values[:, of >= 0].T)
    return found.T
