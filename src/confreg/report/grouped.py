"""The part of the page about groups of tokens: what ablations do in each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report import contexts, figures
from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, has, section
from confreg.report.styling import BLUE, GOLD, GREEN, GREY, RED, VIOLET, legend, styled
from confreg.report.wording import number, plural
from confreg.results import axes, tables

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

FIGURES, DRAWN = 4, 6
COLOURS = (RED, BLUE, GOLD, GREEN, VIOLET, GREY)
GROUPS = 40  # columns of the table


@section(needs={"group_size": ("group",)})
def by_group(ds: xr.Dataset, options: Options) -> Section | None:
    """Show mean effects by group of tokens, of the strongest neurons or sets."""
    dim = axes.main_subject(ds)
    if dim is None or not has(ds, "effect_mean_by", (dim, "effect", "group")):
        return None
    by = str(ds.attrs.get("by", "group"))
    frame = tables.table(ds, dim)
    column = tables.rank_by(frame)
    ranked = frame.index if column is None else tables.ranked(frame, column)
    chosen = [str(name) for name in options.neurons or ranked][: options.details]
    detailed = set(contexts.shown(ds, options))
    names = [str(name) for name in ds["effect"].values]
    words = {name: figures.effect_words(ds, name)[0] for name in names}
    shown = [
        Figure(
            f"groups-{name}", draw(ds, dim, name, chosen[:DRAWN]),
            f"Mean {words[name]} over kept tokens of each {by}.",
        )
        for name in names[:FIGURES]
    ]  # fmt: skip
    groups = [str(value) for value in ds["group"].values][:GROUPS]
    sizes = ds["group_size"].values
    first = names[0]
    columns = [
        Column(group, f"mean {words[first]} over {size:,} kept tokens", False)
        for group, size in zip(groups, sizes)
    ]
    labels, rows = axes.texts(ds, dim), []
    means = ds["effect_mean_by"].sel(effect=first).transpose(dim, "group").values
    for name in chosen:
        values = [float(value) for value in means[labels.index(name)][:GROUPS]]
        cells = [Cell(number(value), value if np.isfinite(value) else None) for value in values]
        rows.append((name, name in detailed, cells))
    lead = (
        f"Kept tokens by {by}: "
        + ", ".join(f"{group} {size:,}" for group, size in zip(groups, sizes))
        + f". The table is of mean {words[first]}, of the strongest {plural(ds, dim)}."
    )
    shows = {"effect_mean_by", "effect_abs_mean_by", "group_size"}
    shows |= {"te_by", "de_by", "te_mediated_by", "mediated_by"} & set(map(str, ds))
    data = Table(columns, rows, dim)
    return Section("groups", f"By {by}", lead, shown, "table", data, frozenset(shows))


def draw(ds: xr.Dataset, dim: str, effect: str, chosen: list[str]) -> go.Figure:
    """Draw one effect's mean by group, a bar for each of the chosen entries.

    Needs ``effect_mean_by (subject, effect, group)``.
    """
    import plotly.graph_objects as go

    one = ds["effect_mean_by"].sel(effect=effect).transpose(dim, "group").values
    labels, groups = axes.texts(ds, dim), [str(value) for value in ds["group"].values]
    figure = go.Figure()
    for at, name in enumerate(chosen):
        figure.add_bar(
            x=groups, y=one[labels.index(name)], name=name,
            marker_color=COLOURS[at % len(COLOURS)],
        )  # fmt: skip
    figure.update_xaxes(title=str(ds.attrs.get("by", "group")), type="category")
    figure.update_yaxes(title=f"mean {figures.effect_words(ds, effect)[0]}")
    return legend(styled(figure))
