"""Effects as an axis, and what follows from their sums over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Axis, Label, Variable
from confreg.derive.means import of_sums, reduced
from confreg.effects import Effect
from confreg.effects.tally import ROUTED
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr


def effect_axis(effects: Sequence[Effect]) -> Axis:
    """Effects as an axis, labelled by what they are of and by which pathway."""
    columns = {
        "effect": ("effect of the edit on the prediction", [e.name for e in effects]),
        "quantity": ("what is measured of a prediction", [e.quantity for e in effects]),
        "pathway": ("through what the edit acts", [e.pathway for e in effects]),
        "effect_units": ("units of the effect", [e.units for e in effects]),
        "effect_long_name": ("description of the effect", [e.long_name for e in effects]),
    }
    return Axis(
        "effect",
        {name: Label(np.array(of, dtype=object), text) for name, (text, of) in columns.items()},
    )


def effect_means(
    subject: str, effects: Sequence[Effect], kept: int, unanswered: int = 0
) -> Derivation:
    """Means of effects, and of their absolute values, over kept tokens.

    Of those ``unanswered`` have no next token: that they have no loss is no news.
    """
    names, own = [effect.name for effect in effects], reduced(effects)

    def means(ds: xr.Dataset) -> dict[str, Any]:
        found: dict[str, Any] = {"effects_undefined": undefined(ds)}
        signed, size = (ds[name].values for name in ("effect_sum", "effect_abs_sum"))
        count = kept - ds["effect_undefined"].values
        found["effect_mean"] = of_sums(signed, count, names, own)
        found["effect_abs_mean"] = of_sums(size, count, names, own, signed)
        return found

    def undefined(ds: xr.Dataset) -> str:
        counts = ds["effect_undefined"].values.sum(axis=0)
        known = unanswered * len(ds["effect_undefined"])
        counts = np.where(counts >= known, counts - known, counts)
        return "; ".join(
            f"{effect.name} is no finite number at {count:,} kept pairs"
            for effect, count in zip(effects, counts)
            if count and effect.measure.tilted
        )

    dims = (subject, "effect")
    return Derivation(
        means,
        gives=(
            Variable(
                "effect_abs_mean", dims, "mean absolute effect over kept tokens", "see effect_units"
            ),
            Variable("effect_mean", dims, "mean effect over kept tokens", "see effect_units"),
            Variable("effects_undefined", (), "effects that are left out of means", "", "str"),
        ),
        reads=("effect_sum", "effect_abs_sum", "effect_undefined"),
    )


def routed_means(subject: str, effects: Sequence[Effect]) -> Derivation:
    """Means over the kept tokens that are routed to a neuron's expert: NaN where there is none."""
    names, own = [effect.name for effect in effects], reduced(effects)

    def means_where_routed(ds: xr.Dataset) -> dict[str, np.ndarray]:
        signed, size, count = (ds[name].values for name in ROUTED)
        return {
            "effect_mean_routed": of_sums(signed, count, names, own),
            "effect_abs_mean_routed": of_sums(size, count, names, own, signed),
        }

    dims, of = (subject, "effect"), "over kept tokens that are routed to the neuron's expert"
    return Derivation(
        means_where_routed,
        gives=(
            Variable("effect_mean_routed", dims, f"mean effect {of}", "see effect_units"),
            Variable(
                "effect_abs_mean_routed", dims, f"mean absolute effect {of}", "see effect_units"
            ),
        ),
        reads=ROUTED,
    )


def change_means(subject: str, neuron: str, kept: int, routed: bool) -> Derivation:
    """Means of activations' changes, and of their absolute values, over kept tokens.

    Where a model has experts (``routed``) over ``activation_change_count`` of them: those at which
    there is one.
    """

    def activation_changes(ds: xr.Dataset) -> dict[str, np.ndarray]:
        count = ds["activation_change_count"].values if routed else kept
        with np.errstate(invalid="ignore"):
            return {
                "activation_change_mean": ds["activation_change_sum"].values / count,
                "activation_change_abs_mean": ds["activation_change_abs_sum"].values / count,
            }

    dims = (subject, neuron)
    of = "change of the neuron's activation over kept tokens"
    of += " at which it is there with the edit and without it" * routed
    return Derivation(
        activation_changes,
        gives=(
            Variable("activation_change_mean", dims, f"mean {of}"),
            Variable("activation_change_abs_mean", dims, f"mean absolute {of}"),
        ),
    )


def errors(effects: Sequence[Effect], tolerance: float) -> Derivation:
    """How far the closed forms were off, by the pairs that were recomputed in float64.

    ``error_max`` and ``error_mean`` are over the effects in nats, as the tolerance is;
    ``effect_error`` is of each effect by itself, in its units.
    """
    nats = [column for column, effect in enumerate(effects) if effect.units == "nats"]

    def errors_measured(ds: xr.Dataset) -> dict[str, Any]:
        pairs, recomputed, sampled = (float(ds[n]) for n in ("pairs", "recomputed", "sampled"))
        each = ds["error_largest"].values
        largest = float(each[nats].max()) if nats else float("nan")
        mean = float(ds["error_sum"].values[nats].max()) if nats else float("nan")
        warning = ""
        if largest > 10 * tolerance:
            warning = (
                f"The largest error measured, {largest:.1e} nats, is more than ten times "
                f"the tolerance, {tolerance:.1e}."
            )
        return {
            "recomputed_share": recomputed / max(pairs, 1),
            "error_sampled_pairs": sampled,
            "effect_error": each if sampled else np.full_like(each, np.nan),
            "error_max": largest if sampled else float("nan"),
            "error_mean": mean / sampled if sampled else float("nan"),
            "error_warning": warning,
        }

    sampled = "of the pairs that were recomputed in float64"
    return Derivation(
        errors_measured,
        gives=(
            Variable(
                "recomputed_share",
                (),
                "share of pairs that the series left to exact sums",
                "1",
                "float64",
            ),
            Variable(
                "error_sampled_pairs", (), "pairs that were recomputed in float64", "1", "float64"
            ),
            Variable(
                "effect_error",
                ("effect",),
                f"largest error {sampled} "
                "(ranks and likeliest tokens can differ by 1 or more at near ties)",
                "see effect_units",
                "float64",
            ),
            Variable("error_max", (), f"largest error {sampled}, in nats", "nats", "float64"),
            Variable(
                "error_mean",
                (),
                "mean error of those pairs, for the effect (in nats) where it is largest",
                "nats",
                "float64",
            ),
            Variable("error_warning", (), "what to know of the error", "", "str"),
        ),
    )
