"""The part of the page about knowledge conflicts: whose answer the model gives, and when not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report.figures import chosen_and_random
from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, section
from confreg.report.styling import legend, styled
from confreg.report.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

TESTED = ("conversion_p_random", "conversion_q_random", "conversion_quantile")
SCORED = ("transition_p_random", "transition_q_random", "transition_quantile")


@section(
    needs={
        "transitions": ("set", "before", "after"),
        "conversion_ratio": ("set", "after"),
        "transition_score": ("set",),
        "answer_before": ("prompt",),
        "entropy_change": ("set", "before", "after"),
        **dict.fromkeys(TESTED, ("set", "after")),
        **dict.fromkeys(SCORED, ("set",)),
        **dict.fromkeys(("set_kind", "set_way", "set_control"), ("set",)),
    },
)
def conflicts(ds: xr.Dataset, options: Options) -> Section:
    """Show how many prompts chosen sets convert, against random sets."""
    classes = [str(name) for name in ds["after"].values]
    chosen = np.flatnonzero(ds["set_kind"].values == "chosen")
    counts = np.bincount(ds["answer_before"].values, minlength=len(classes))
    said = ", ".join(f"{n} {name}" for n, name in zip(counts, classes))
    lead = (
        f"Answers to {counts.sum()} prompts whose context contradicts what is known without it; "
        f"unablated {said}. A conversion ratio is the share of the prompts of other classes that "
        "become of the class; p the share of random sets that convert at least as many; n(s → k) "
        "prompts go from one class to another."
    )
    columns = [
        Column(f"→ {name}{what}", hint, False)
        for name in classes
        for what, hint in (
            ("", "conversion ratio"),
            (" p", "share of random sets that convert at least as many"),
            (" q", "Benjamini-Hochberg q of p over all chosen sets and classes"),
        )
    ]
    columns += [
        Column("changed", "share of prompts that change class"),
        Column("changed p", "share of random sets that change at least as many"),
    ]
    columns += [
        Column(f"n({one} → {other})", "prompts")
        for one in classes
        for other in classes
        if one != other
    ]
    rows = []
    for row in chosen:
        one = ds.isel(set=int(row))
        values = [
            float(one[name].values[k])
            for k in range(len(classes))
            for name in ("conversion_ratio", *TESTED[:2])
        ]
        values += [float(one["transition_score"]), float(one["transition_p_random"])]
        table = one["transitions"].transpose("before", "after").values
        values += [float(v) for (i, j), v in np.ndenumerate(table) if i != j]
        cells = [Cell(number(v), v if np.isfinite(v) else None) for v in values]
        rows.append((str(one["set"].values), False, cells))
    figures = [
        Figure(
            f"conversion-{name}",
            conversions(ds, k),
            f"Share of the other prompts whose answer becomes {name}, by what the neurons are "
            "fixed to.",
        )
        for k, name in enumerate(classes)
    ]
    data = Table(columns, rows, "set")
    return Section("conflicts", "Context against knowledge", lead, figures, "table", data)


def conversions(ds: xr.Dataset, k: int) -> go.Figure:
    """Draw the conversion ratio of one class, of chosen sets and of their random ones."""

    ways = [str(way) for way in ds["set_way"].values]
    names = list(dict.fromkeys(ways))
    at = np.array([names.index(way) for way in ways], dtype=float)
    ratio = ds["conversion_ratio"].transpose("set", "after").values[:, k]
    rows = np.flatnonzero(ds["set_kind"].values == "random")
    at[rows] += np.random.default_rng(0).uniform(-0.25, 0.25, len(rows))
    figure = chosen_and_random(ds, at, ratio, ".3f", opacity=0.5)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_yaxes(title=f"conversion ratio, {ds['after'].values[k]}", tickformat=".0%")
    return legend(styled(figure))
