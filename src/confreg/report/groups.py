"""The part of the page about sets of neurons, or of heads, and their random controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report import contexts, figures
from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, has, section
from confreg.report.wording import deviations, number, sentence
from confreg.subjects.sets import controls_of

if TYPE_CHECKING:
    import xarray as xr


@section(
    needs={"effect_mean": ("set", "effect"), "effect_abs_mean": ("set", "effect")}
    | dict.fromkeys(("set_kind", "set_size"), ("set",)),
)
def sets(ds: xr.Dataset, options: Options) -> Section:
    """Show chosen sets against random sets of the same size."""
    chosen = np.flatnonzero(ds["set_kind"].values == "chosen")
    # What has no mean, such as the number of a token, is no size that sets could be compared by.
    known = np.isfinite(ds["effect_mean"].transpose("set", "effect").values).any(axis=0)
    names = [str(name) for name in ds["effect"].values[known]]
    words = {name: figures.effect_words(ds, name)[0] for name in names}
    shown = []
    for name in names:
        caption = words[name]
        if "effect_long_name" in ds:
            caption = sentence(str(ds["effect_long_name"].sel(effect=name).values))
        caption += ": mean over kept tokens, for chosen and for random sets."
        shown.append(Figure(f"sets-{name}", figures.sets(ds, name), caption))
    what = "heads" if has(ds, "set_heads", ("set",)) else "neurons"
    lead = _heads(ds) if what == "heads" else _neurons(ds)
    measures = [("effect_abs_mean", "|{}|", "mean absolute effect over kept tokens")]
    shows = frozenset[str]()
    if has(ds, "p_random", ("set", "effect")):
        shows = frozenset(["p_random", "q_random"])
        lead += (
            " p: (1 + random sets with at least as large a mean absolute effect) / (1 + random "
            "sets)."
        )
        measures.append(("p_random", "p", "share of random sets with at least as large an effect"))
    if has(ds, "q_random", ("set", "effect")):
        hint = "Benjamini-Hochberg q of p over all chosen sets, effect by effect"
        measures.append(("q_random", "q", hint))
    columns = [Column(what, "size of the set", False)]
    columns += [
        Column(title.format(words[name]), hint, False)
        for name in names
        for _, title, hint in measures
    ]
    rows = []
    detailed = set(contexts.shown(ds, options))
    for row in chosen:
        one = ds.isel(set=int(row))
        values = [float(one["set_size"])]
        values += [float(one[v].sel(effect=name)) for name in names for v, *_ in measures]
        cells = [Cell(number(value), value if np.isfinite(value) else None) for value in values]
        label = str(one["set"].values)
        rows.append((label, label in detailed, cells))
    data = Table(columns, rows, "set")
    return Section("sets", f"Sets of {what}", lead, shown, "table", data, shows)


def _neurons(ds: xr.Dataset) -> str:
    return (
        f"Each chosen set against {_controls(ds)} random sets of the same size from the same "
        f"layer{_likeness(ds)}. Neurons are replaced by {_values(ds)}, all of a set together."
    )


def _heads(ds: xr.Dataset) -> str:
    where = "of the same layers" if ds.attrs.get("controls", "same") == "same" else "of any layer"
    return (
        "Every chosen head, and all of them together, attend to the first token only, as do "
        f"{_controls(ds)} random sets of as many heads {where} each."
    )


def _controls(ds: xr.Dataset) -> str:
    """Say how many random sets a chosen set has."""
    counts = [int(same.sum()) for _, same in controls_of(ds)]
    few, most = min(counts, default=0), max(counts, default=0)
    return f"{few}" if few == most else f"{few} to {most}"


def _likeness(ds: xr.Dataset) -> str:
    if not has(ds, "set_norm_gap", ("set",)):
        return ""
    gap = float(ds["set_norm_gap"].values[ds["set_kind"].values == "random"].mean())
    return (
        f", whose neurons are like the chosen ones in ‖w_out‖ ({np.expm1(gap):.1%} off on average)"
    )


def _values(ds: xr.Dataset) -> str:
    if has(ds, "set_way", ("set",)):
        return "the value that the set's name says"
    if not has(ds, "set_clipped", ("set",)):
        return "their mean" + " plus k standard deviations" * bool(deviations(ds))
    return (
        "their mean over the first occurrence, everywhere (plain) or only on the side of it to "
        "which the repeat moves them (clipped)"
    )
