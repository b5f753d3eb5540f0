"""The part of the page about two stores side by side: `confreg.compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, section
from confreg.report.styling import BLUE, GREY, RED, styled
from confreg.report.wording import in_units, label, number, signed, unit, units

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

DRAWN = 6
"""Figures of one number each."""
FIRST = ("te", "mediated", "null_fraction", "logit_var", "w_out_norm", "vocab_kurtosis")
POINTS = 8_000


def scatter(ds: xr.Dataset, name: str) -> go.Figure:
    """Draw a number in the second store against the first."""
    import plotly.graph_objects as go

    one, other = (ds[f"{name}_{side}"].values for side in ("first", "second"))
    (dim,) = ds[f"{name}_change"].dims
    known = np.flatnonzero(np.isfinite(one) & np.isfinite(other))
    # The largest changes, and an even sample of the rest.
    order = known[np.argsort(np.abs(other - one)[known], kind="stable")]
    if len(order) > POINTS:
        tail = POINTS // 2
        rest = np.linspace(0, len(order) - tail - 1, POINTS - tail).astype(int)
        order = np.append(order[rest], order[-tail:])
    ends = [float(min(one[known].min(), other[known].min())),
            float(max(one[known].max(), other[known].max()))]  # fmt: skip
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"},
                       hoverinfo="skip")  # fmt: skip
    figure.add_scatter(
        x=one[order], y=other[order], mode="markers", marker={"color": BLUE, "size": 5,
        "opacity": 0.6}, customdata=[str(label) for label in ds[dim].values[order]],
        hovertemplate="<b>%{customdata}</b><br>%{x:.4g} → %{y:.4g}<extra></extra>",
    )  # fmt: skip
    for update, side in ((figure.update_xaxes, "first"), (figure.update_yaxes, "second")):
        update(title=f"{side}: {ds.attrs[side]}")
    return styled(figure)


def intervals(ds: xr.Dataset, name: str) -> go.Figure:
    """Draw the largest changes of a number with their intervals."""
    import plotly.graph_objects as go

    change, low, high = (ds[f"{name}{end}"].values for end in ("", "_low", "_high"))
    (dim,) = ds[name].dims
    known = np.flatnonzero(np.isfinite(change))
    rows = known[np.argsort(-np.abs(change[known]), kind="stable")][:30][::-1]
    apart = (low[rows] > 0) | (high[rows] < 0)
    figure = go.Figure()
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot"})
    figure.add_scatter(
        x=change[rows], y=[str(label) for label in ds[dim].values[rows]], mode="markers",
        marker={"color": np.where(apart, RED, GREY), "size": 7},
        error_x={"type": "data", "symmetric": False, "array": high[rows] - change[rows],
                 "arrayminus": change[rows] - low[rows], "thickness": 1, "color": GREY},
        hovertemplate="<b>%{y}</b><br>%{x:.4g}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title=str(ds[name].attrs.get("long_name", name)))
    figure.update_yaxes(type="category")
    return styled(figure).update_layout(height=620)


@section(needs={"median_first": ("variable",), "median_second": ("variable",)})
def comparison(ds: xr.Dataset, options: Options) -> Section:
    """Show what was compared, and how the numbers of two stores differ."""
    names = [str(name) for name in ds["variable"].values]
    lead = f"Compared: {ds.attrs['compared']}."
    if ds.attrs["left_out"]:
        lead += f" Left out: {ds.attrs['left_out']}."
    figures = []
    chosen = [name for name in FIRST if name in names]
    chosen += [name for name in names if name not in chosen]
    for name in [n for n in chosen if f"{n}_first" in ds][:DRAWN]:
        caption = f"{_of_both(ds, name)}, second against first."
        figures.append(Figure(f"pair-{name}", scatter(ds, name), caption))
    for name in ("te_change", "mediated_change", "activation_shift"):
        if f"{name}_low" in ds and name in ds:
            caption = f"The largest of {label(ds, name)}, with 95 % intervals over documents; red: "
            figures.append(Figure(f"interval-{name}", intervals(ds, name), f"{caption}without 0."))
    there = [str(key) for key in ds.data_vars if ds[key].dims == ("variable",)]
    columns = [Column(label(ds, key), str(ds[key].attrs.get("long_name", key))) for key in there]
    rows = []
    for at, name in enumerate(names):
        values = [float(ds[key].values[at]) for key in there]
        rows.append((_of_both(ds, name), False, [
            Cell(number(x), x if np.isfinite(x) else None) for x in values
        ]))  # fmt: skip
    shows = frozenset(there)
    return Section("comparison", "Side by side", lead, figures, "table",
                   Table(columns, rows, "number"), shows)  # fmt: skip


def _of_both(ds: xr.Dataset, name: str) -> str:
    """Write a number that both stores have, with its units."""
    return in_units(label(ds, name, unit=False), units(ds, f"{name}_first") or units(ds, name))


@section(
    needs=dict.fromkeys(
        ("token_mean_first", "token_mean_second", "token_mean_change"), ("prediction",)
    ),
)
def predictions(ds: xr.Dataset, options: Options) -> Section:
    """Show how the unedited predictions differ, with intervals where there are any."""
    spans = all(f"token_mean_{end}" in ds for end in ("low", "high"))
    columns = [Column("first"), Column("second"), Column("change")]
    columns += [Column("95 %")] * spans
    rows = []
    for at, name in enumerate(map(str, ds["prediction"].values)):
        one = ds.isel(prediction=at)
        first, second, change = (
            float(one[f"token_mean_{end}"]) for end in ("first", "second", "change")
        )
        cells = [Cell(number(first), first), Cell(number(second), second)]
        cells.append(Cell(signed(change), change))
        if spans:
            low, high = (float(one[f"token_mean_{end}"]) for end in ("low", "high"))
            cells.append(Cell(f"{signed(low)} to {signed(high)}", low))
        unit_ = unit(str(one["prediction_unit"].values)) if "prediction_unit" in one else ""
        rows.append((in_units(label(ds, name, unit=False), unit_), False, cells))
    lead = "Means over kept tokens of the unedited models, and the change"
    lead += " with its interval." if spans else "."
    named = ("token_mean_low", "token_mean_high", "prediction_unit", "prediction_meaning")
    shows = frozenset(name for name in named if name in ds.data_vars)
    return Section("predictions", "Predictions", lead, [], "table",
                   Table(columns, rows, "prediction"), shows)  # fmt: skip
