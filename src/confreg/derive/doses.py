"""Dose-response curves: what sets of neurons do, by what they are fixed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Axis, Label, Variable
from confreg.sweep.layout import resolve
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr

    from confreg.subjects.sets import LaterSets, SetAxis
    from confreg.subjects.ways import Way


def dose_response(sets: SetAxis | LaterSets, ways: Sequence[Way]) -> Derivation:
    """Mean effects as curves: ``response`` and ``response_abs (curve, value, effect)``.

    Gives also ``fixed_to (neuron, value)``, what each neuron is fixed to; where its activation
    takes part, what is added to α times it.

    Parameters
    ----------
    sets : Axis
        Of `Study.fixed_sets`: the values of a set stand side by side.
    ways : sequence of Way
        The same.
    """
    assumed, subject = resolve(sets, None), sets.name
    kind = assumed.labels["set_kind"].values[:: len(ways)]
    control = assumed.labels["set_control"].values[:: len(ways)]
    behind = f":{ways[0].label}"
    names = [str(name).removesuffix(behind) for name in assumed.index[:: len(ways)]]
    curve = Axis(
        "curve",
        {
            "curve": Label(np.array(names, dtype=object), "set of neurons that is fixed"),
            "curve_kind": Label(kind, "chosen, or a random control"),
            "curve_control": Label(control, "number that chosen sets and their controls share"),
        },
    )
    value, neurons = value_axis(ways), sets.neurons

    def dose_response(ds: xr.Dataset) -> dict[str, Any]:
        found = {}
        for name, of in (("response", "effect_mean"), ("response_abs", "effect_abs_mean")):
            table = ds[of].transpose(subject, "effect").values
            found[name] = table.reshape(len(curve), len(ways), -1)
        stored = {way.source: ds[way.source].values for way in ways if way.source}
        every = np.arange(len(neurons))
        found["fixed_to"] = np.stack([way.value(stored, every) for way in ways], axis=1)
        return found

    dims, read = (curve.name, value.name, "effect"), ("effect_mean", "effect_abs_mean")
    return Derivation(
        dose_response,
        reads=(*read, *dict.fromkeys(way.source for way in ways if way.source)),
        along=(curve, value, neurons),
        gives=(
            Variable("response", dims, "mean effect over kept tokens", "see effect_units"),
            Variable("response_abs", dims, "mean absolute effect over kept tokens",
                     "see effect_units"),
            Variable("fixed_to", (neurons.name, value.name), "what the neuron is fixed to"),
        ),
    )  # fmt: skip


def value_axis(ways: Sequence[Way]) -> Axis:
    """Ways as the axis ``value``: by their numbers, where these are of one kind and ascend."""
    labels, numbers = [way.label for way in ways], [way.number for way in ways]
    kinds = {way.kind for way in ways}
    ascending = bool(np.all(np.diff(numbers) > 0))  # not where one is missing
    text = "what the neurons are fixed to: a value, a quantile, or α of mean + α(a - mean)"
    if len(kinds) > 1 or not ascending or not np.isfinite(numbers).all():
        return Axis.of("value", np.array(labels, dtype=object), text)
    named = Label(np.array(labels, dtype=object), "as it was written")
    return Axis.of("value", np.array(numbers), text, "1", value_name=named)
