"""The part of the page about what happens where a text comes again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report import figures, profiles
from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, section
from confreg.report.wording import number, signed

if TYPE_CHECKING:
    import xarray as xr

OCCURRENCES = dict.fromkeys(("occurrence", "aligned", "matched", "compared", "keep"), ("token",))
CLIPPED = dict.fromkeys(("set_kind", "set_control", "set_size", "set_clipped"), ("set",))


@section(
    needs=OCCURRENCES
    | {"activation": ("neuron", "token"), "member": ("set", "neuron"), "set_kind": ("set",)}
    | dict.fromkeys(("mean_first", "mean_second", "ablation_value"), ("neuron",)),
    shows=("activation", "mean_first", "mean_second"),
)
def repeats(ds: xr.Dataset, options: Options) -> Section:
    """Show the model and the chosen neurons along both occurrences."""
    count = len(np.unique(ds["sequence"].values))
    band = f"Bands: ± one standard deviation over the tokens of {count} sequences."
    chosen = profiles.chosen_neurons(ds)
    others = int(profiles.drawn_neurons(ds).sum())
    shown = [
        Figure(
            "repeat-baseline",
            profiles.baseline(ds),
            f"The unablated model, by position in the occurrence. {band}",
            wide=True,
        ),
        Figure(
            "repeat-activations",
            profiles.activations(ds),
            f"Chosen neurons, by position in the occurrence. {band} Dotted: what the activation "
            "is ablated to.",
            wide=True,
        ),
    ]
    if others:
        caption = (
            "Second occurrence minus first, token by token, averaged; in standard deviations of "
            f"the activation. Against {others} random neurons of the layer."
        )
        shown.append(Figure("repeat-shift", profiles.shift(ds), caption))
    lead = (
        f"Each of {count} sequences has a text twice. Tokens of the same place in both occurrences "
        "are compared."
    )
    data = Table(_columns(others), _rows(ds, chosen), "neuron")
    return Section("repeats", "Where the text comes again", lead, shown, "table", data)


def _columns(others: int) -> list[Column]:
    found = [
        ("first", "mean activation over the first occurrence"),
        ("second", "mean activation over the second occurrence"),
        ("change", "second minus first, token by token: mean"),
        ("sd of change", "standard deviation of that change over tokens"),
        ("change (σ)", "mean change over the standard deviation of the activation"),
    ]
    if others:
        hint = f"(1 + random neurons that change as much in σ) / (1 + {others} random neurons)"
        found.append(("p", hint))
    return [Column(title, hint, False) for title, hint in found]


def _rows(ds: xr.Dataset, chosen: np.ndarray) -> list[tuple[str, bool, list[Cell]]]:
    found, p = profiles.shifts(ds), profiles.shift_ps(ds)
    rows = []
    for row in np.flatnonzero(chosen):
        before, after = (float(ds[f"mean_{name}"].values[row]) for name in ("first", "second"))
        values = [before, after, found.mean[row], found.sd[row], found.sigma[row]]
        if profiles.drawn_neurons(ds).any():
            values.append(p[row])
        texts = [signed(v) if i in (2, 4) else number(v) for i, v in enumerate(values)]
        cells = [Cell(text, float(value)) for text, value in zip(texts, values, strict=True)]
        rows.append((str(ds["neuron"].values[row]), False, cells))
    return rows


@section(
    needs=OCCURRENCES
    | CLIPPED
    | {"effects": ("set", "token", "effect"), "member": ("set", "neuron")},
    shows=(),
)
def effects_along(ds: xr.Dataset, options: Options) -> Section:
    """Show a set's effects along the second occurrence."""
    drawn = profiles.ways(ds)
    size, controls = int(ds["set_size"].values[drawn[0][1]]), len(drawn[0][2])
    who = f"{size} chosen neurons together" if size > 1 else "The first chosen neuron"
    kind = "sets of the same size" if size > 1 else "neurons"
    names = [str(n) for n in ds["effect"].values if str(n) in ("entropy_total", "loss_total")]
    shown = [
        Figure(
            f"along-{name}",
            profiles.along(ds, name),
            f"{figures.effect_words(ds, name)[0]} when ablated, by position in the second "
            f"occurrence. {who}, against {controls} random {kind} of the layer.",
            wide=True,
        )
        for name in names
    ]
    lead = (
        "Plain: activations are replaced by their mean over the first occurrence everywhere. "
        "Clipped: only where the neuron is on the side of it to which the repeat moves it."
    )
    return Section("along", "Ablated where the text comes again", lead, shown)
