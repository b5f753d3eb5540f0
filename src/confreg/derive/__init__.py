"""Derivations that recipes share: what follows from stored variables.

Each function returns a `Derivation`, or None where its effects were not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Axis, Later, Variable
from confreg.derive import grouped, repeats
from confreg.derive.conflicts import conflict as conflict
from confreg.derive.discovery import q_values, q_variable
from confreg.derive.doses import dose_response as dose_response
from confreg.derive.gates import input_output as input_output
from confreg.derive.means import mean_where_there
from confreg.derive.mediated import mediated
from confreg.derive.reliability import calibration as calibration
from confreg.derive.roles import roles as roles
from confreg.derive.roles import within_layer as within_layer
from confreg.derive.traits import traits as traits
from confreg.subjects.sets import controls_of
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr

    from confreg.effects import Effect
    from confreg.subjects.neurons import NeuronAxis
    from confreg.subjects.sets import LaterSets, SetAxis
    from confreg.tokens.axis import Text


def mediation(
    subjects: Axis | Later, tokens: Text, effects: Sequence[Effect], total: Effect, direct: Effect
) -> list[Derivation]:
    """How much of an effect goes through what the direct pathway freezes.

    Gives ``te`` and ``de``, the means over kept tokens of the absolute effects, ``te_mediated``,
    TE − DE, and ``mediated``, 1 − DE/TE: a ratio of means, never a mean of ratios. Where tokens are
    in groups, also ``te_by`` and so on, of each. Nothing where the effects were not measured.

    Stolfo et al. 2024 (arXiv 2406.16254), section 3.
    """
    if not _has(effects, total, direct):
        return []
    kept, subject = int(tokens.keep.sum()), subjects.name

    def mediation(ds: xr.Dataset) -> dict[str, Any]:
        te, de = (_mean(ds, "effect_abs_sum", effects, e, kept) for e in (total, direct))
        return mediated(te, de)

    found = Derivation(
        mediation,
        reads=("effect_abs_sum", "effect_undefined"),
        attributes={"mediated_total": total.name, "mediated_direct": direct.name},
        gives=(
            Variable("te", (subject,), "mean absolute total effect over kept tokens", total.units),
            Variable("de", (subject,), "mean absolute direct effect over kept tokens", total.units),
            Variable("mediated", (subject,), "share of the total effect that is mediated"),
            Variable(
                "te_mediated", (subject,), "te - de: mediated part of the total effect", total.units
            ),
        ),
    )
    if tokens.groups is None:
        return [found]
    return [found, grouped.mediation(subject, effects, total, direct, tokens.groups)]


def temperature_share(
    subjects: Axis | Later, effects: Sequence[Effect], divergence: Effect, tempered: Effect
) -> Derivation | None:
    """What share of the divergence from the edited prediction the best temperatures remove.

    Gives ``temperature_share``: of the means over kept tokens.
    """
    if not _has(effects, divergence, tempered):
        return None

    def temperature_share(ds: xr.Dataset) -> dict[str, Any]:
        kl, left = (_column(ds, "effect_sum", effects, e) for e in (divergence, tempered))
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"temperature_share": 1 - left / kl}

    text = "share of the mean D(p ‖ p') that each token's best temperature removes"
    gives = (Variable("temperature_share", (subjects.name,), text),)
    return Derivation(temperature_share, gives, reads=("effect_sum",))


def against_controls(subjects: Axis | Later, tokens: Text) -> Derivation:
    """How often a random control does at least as much as each chosen entry: ``p_random``.

    Beside it ``q_random``, Benjamini and Hochberg's, of one effect over all chosen entries.

    (1 + count)/(1 + controls), of mean absolute effects, over the controls of the same chosen entry
    that are edited as it is; NaN for the controls themselves. Controls have the label ``set_kind``
    "random"; what they share with theirs are the labels ``set_control``, ``set_deviation`` and
    ``set_clipped``, as far as they are there.
    """
    kept = int(tokens.keep.sum())

    def p_random(ds: xr.Dataset) -> dict[str, Any]:
        counts = kept - ds["effect_undefined"].values
        with np.errstate(invalid="ignore"):  # an effect that is defined at no kept token
            p = p_values(ds, ds["effect_abs_sum"].values / counts)
        return {"p_random": p, "q_random": q_values(p)}

    text = "share of random sets whose mean absolute effect is at least as large"
    p = Variable("p_random", (subjects.name, "effect"), text)
    q = q_variable(p, f"all chosen {subjects.name}s, effect by effect")
    return Derivation(p_random, (p, q), reads=("effect_abs_sum", "effect_undefined"))


def changes_against_controls(subjects: Axis | Later, neurons: NeuronAxis) -> Derivation:
    """As `against_controls`, of the watched neurons' activations: ``activation_p_random``."""

    def p_random(ds: xr.Dataset) -> dict[str, Any]:
        p = p_values(ds, ds["activation_change_abs_mean"].values)
        return {"activation_p_random": p, "activation_q_random": q_values(p, None)}

    text = "share of random sets whose mean absolute change of the activation is at least as large"
    p = Variable("activation_p_random", (subjects.name, neurons.name), text)
    q = q_variable(p, f"all chosen {subjects.name}s and watched {neurons.name}s")
    return Derivation(p_random, (p, q), reads=("activation_change_abs_mean",))


def p_values(ds: xr.Dataset, magnitude: np.ndarray) -> np.ndarray:
    """How often a random control does at least as much as each chosen entry, (n, E) float32.

    Controls whose magnitude is NaN are not counted. NaN for the controls themselves, where the
    chosen entry's magnitude is NaN, and where all of its controls' are.

    Parameters
    ----------
    ds : Dataset
        With the labels of `against_controls`.
    magnitude : ndarray (n, E)
    """
    found = np.full(magnitude.shape, np.nan, dtype=np.float32)
    for i, same in controls_of(ds):
        controls, own = magnitude[same], magnitude[i]
        known = (~np.isnan(controls)).sum(axis=0)
        p = (1 + (controls >= own).sum(axis=0)) / (1 + known)
        found[i] = np.where(np.isnan(own) | (known < min(len(controls), 1)), np.nan, p)
    return found


def above_mean(neurons: NeuronAxis, tokens: Text, over: str) -> Derivation:
    """On which tokens a neuron is above its mean, and what its ablation does there.

    Gives ``mean_activation`` over the tokens of ``over``, ``above_mean (neuron, token)``,
    ``above_share``, of kept tokens, and ``effect_mean_above (neuron, effect)``. An expert's neuron
    is above its mean, which is over the tokens that are routed there, at none but these.
    """
    keep, mask = tokens.keep, tokens.over(over)

    def above_mean(ds: xr.Dataset) -> dict[str, Any]:
        activation = ds["activation"].values
        mean = mean_where_there(activation[:, mask])
        above = activation > mean[:, None]
        counted = above & keep
        effects = ds["effects"].values.astype(np.float64)
        # Kept tokens may have no next token, and then no loss.
        defined = counted[..., None] & np.isfinite(effects)
        with np.errstate(invalid="ignore"):  # a neuron that is above its mean on no kept token
            reduced = np.where(defined, effects, 0).sum(axis=1) / defined.sum(axis=1)
        return {
            "mean_activation": mean,
            "above_mean": above,
            "above_share": counted.sum(axis=1) / keep.sum(),
            "effect_mean_above": reduced,
        }

    one, both = (neurons.name,), (neurons.name, tokens.name)
    return Derivation(
        above_mean,
        by=neurons.name,
        reads=("activation", "effects"),
        gives=(
            Variable("mean_activation", one, "mean activation over the tokens of mean_over"),
            Variable(
                "above_mean", both, "whether the neuron is above its mean activation", "", "bool"
            ),
            Variable("above_share", one, "share of kept tokens that are above the mean"),
            Variable(
                "effect_mean_above",
                (neurons.name, "effect"),
                "mean effect over kept tokens on which the neuron is above its mean",
                "see effect_units",
            ),
        ),
    )


def repeat_shift(sets: SetAxis | LaterSets, tokens: Text) -> list[Derivation]:
    """What a repeat does to activations, token by token, and whether random neurons move as much.

    Gives ``shift``, ``shift_sd``, ``shift_sigma``, ``shift_p`` and ``shift_q (neuron)``, see
    `confreg.derive.repeats`; those that are in random sets only are the controls.
    """
    neurons, marks = sets.neurons, tokens.table.marks

    def repeat_shift(ds: xr.Dataset) -> dict[str, Any]:
        found = repeats.shift(
            ds["activation"].values, tokens.table.sequence, marks["aligned"], marks["occurrence"],
            marks["compared"],
        )  # fmt: skip
        return {"shift": found.mean, "shift_sd": found.sd, "shift_sigma": found.sigma}

    def shift_p(ds: xr.Dataset) -> dict[str, Any]:
        member: np.ndarray = ds["member"].values
        is_chosen = np.flatnonzero(ds["set_kind"].values == "chosen")
        chosen = np.any(member[is_chosen], axis=0, keepdims=True)[0]
        used = np.any(member, axis=0, keepdims=True)[0]
        p = np.full(len(used), np.nan)
        p[used] = repeats.shift_p(ds["shift_sigma"].values[used], chosen[used])
        return {"shift_p": p, "shift_q": q_values(p)}

    one = (neurons.name,)
    shifted = Variable("shift_p", one, "share of random neurons that shift at least as much")
    between = "activation at the second occurrence less that at the first"
    return [
        Derivation(
            repeat_shift,
            by=neurons.name,
            reads=("activation",),
            gives=(
                Variable("shift", one, f"mean over tokens of the {between}"),
                Variable("shift_sd", one, f"standard deviation over tokens of the {between}"),
                Variable("shift_sigma", one, "shift over the activation's standard deviation"),
            ),
        ),
        Derivation(
            shift_p,
            reads=("shift_sigma",),
            gives=(shifted, q_variable(shifted, "all chosen neurons")),
        ),
    ]


def taken_back(sets: Axis | Later, neurons: NeuronAxis, tokens: Text) -> Derivation:
    """How much of a repeat's shift of an activation an edit undoes: ``taken_back``.

    −change / (second − first), of means over compared tokens. Needs activations and their changes.
    """
    marks = tokens.table.marks

    def taken_back(ds: xr.Dataset) -> dict[str, Any]:
        first, second = repeats.occurrence_means(
            ds["activation"].values, marks["occurrence"], marks["compared"]
        )
        change = ds["activation_change_mean"].values
        return {"taken_back": repeats.taken_back(change, first, second)}

    text = "share of the repeat's shift of the activation that the edit undoes"
    gives = (Variable("taken_back", (sets.name, neurons.name), text),)
    return Derivation(
        taken_back, gives, by=neurons.name, reads=("activation", "activation_change_mean")
    )


def _has(effects: Sequence[Effect], *wanted: Effect) -> bool:
    names = [effect.name for effect in effects]
    return all(effect.name in names for effect in wanted)


def _column(ds: xr.Dataset, name: str, effects: Sequence[Effect], effect: Effect) -> np.ndarray:
    """One effect's sums, (n,)."""
    return ds[name].values[:, [e.name for e in effects].index(effect.name)]


def _mean(
    ds: xr.Dataset, name: str, effects: Sequence[Effect], effect: Effect, kept: int
) -> np.ndarray:
    """One effect's mean over the kept tokens at which it is a number, (n,)."""
    undefined = _column(ds, "effect_undefined", effects, effect)
    with np.errstate(invalid="ignore"):
        return _column(ds, name, effects, effect) / (kept - undefined)
