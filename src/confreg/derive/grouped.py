"""Means of effects over groups of kept tokens, where the text is in groups (``--by``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Variable
from confreg.derive.means import of_sums, reduced
from confreg.derive.mediated import mediated
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr

    from confreg.effects import Effect
    from confreg.tokens.groups import Groups


def means(subject: str, effects: Sequence[Effect], groups: Groups) -> Derivation:
    """``effect_mean_by`` and ``effect_abs_mean_by (subject, effect, group)``, ``group_size``.

    From ``effect_sum_by``, ``effect_abs_sum_by`` and ``effect_undefined_by``; over the tokens at
    which the effect is defined.
    """
    sizes, names, own = groups.sizes, [effect.name for effect in effects], reduced(effects)

    def means_by_group(ds: xr.Dataset) -> dict[str, Any]:
        count = sizes - ds["effect_undefined_by"].values
        signed, absolute = (ds[f"effect_{name}_by"].values for name in ("sum", "abs_sum"))
        return {
            "group_size": sizes,
            "effect_mean_by": of_sums(signed, count, names, own),
            "effect_abs_mean_by": of_sums(absolute, count, names, own, signed),
        }

    dims, over = (subject, "effect", "group"), f"over kept tokens of one {groups.by}"
    units = "see effect_units"
    return Derivation(
        means_by_group,
        gives=(
            Variable("effect_mean_by", dims, f"mean effect {over}", units),
            Variable("effect_abs_mean_by", dims, f"mean absolute effect {over}", units),
            Variable("group_size", ("group",), f"kept tokens of one {groups.by}", dtype="int64"),
        ),
        along=(groups.axis,),
        reads=("effect_sum_by", "effect_abs_sum_by", "effect_undefined_by"),
        attributes={"by": groups.by},
    )


def mediation(
    subject: str, effects: Sequence[Effect], total: Effect, direct: Effect, groups: Groups
) -> Derivation:
    """``te_by``, ``de_by``, ``te_mediated_by`` and ``mediated_by (subject, group)``."""
    names, sizes = [effect.name for effect in effects], groups.sizes
    columns = [names.index(effect.name) for effect in (total, direct)]

    def mediation_by_group(ds: xr.Dataset) -> dict[str, Any]:
        with np.errstate(invalid="ignore", divide="ignore"):
            te, de = (
                ds["effect_abs_sum_by"].values[:, i]
                / (sizes - ds["effect_undefined_by"].values[:, i])
                for i in columns
            )
        return mediated(te, de, "_by")

    dims, over = (subject, "group"), f"over kept tokens of one {groups.by}"
    return Derivation(
        mediation_by_group,
        gives=(
            Variable("te_by", dims, f"mean absolute total effect {over}", total.units),
            Variable("de_by", dims, f"mean absolute direct effect {over}", total.units),
            Variable("te_mediated_by", dims, f"te_by - de_by, {over}", total.units),
            Variable("mediated_by", dims, f"share of the total effect that is mediated, {over}"),
        ),
        along=(groups.axis,),
        reads=("effect_abs_sum_by", "effect_undefined_by"),
    )
