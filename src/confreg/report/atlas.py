"""The part of the page about many models on the same axes: `confreg atlas`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, section
from confreg.report.styling import CYCLE, GREY, legend, styled
from confreg.report.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr


def by_depth(ds: xr.Dataset, name: str, title: str, role: str = "") -> go.Figure:
    """Draw a number against relative depth, a line a model."""
    import plotly.graph_objects as go

    figure = go.Figure()
    array = ds[name].sel(role_name=role) if role else ds[name]
    for at, model in enumerate(ds["model"].values):
        figure.add_scatter(
            x=ds["depth"].values, y=array.isel(model=at).values, name=str(model),
            mode="lines+markers", line={"color": CYCLE[at % len(CYCLE)], "width": 2},
            connectgaps=True,  # fewer layers than bins
            hovertemplate=f"{model}<br>depth %{{x:.2f}}<br>%{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="relative depth", range=[0, 1])
    figure.update_yaxes(title=title)
    return legend(styled(figure))


def points(ds: xr.Dataset) -> go.Figure:
    """Draw norm against LogitVar, a point a neuron, a colour a model."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for at, model in enumerate(ds["model"].values):
        figure.add_scatter(
            x=ds["point_norm"].values[at], y=ds["point_variance"].values[at], name=str(model),
            mode="markers", marker={"color": CYCLE[at % len(CYCLE)], "size": 4, "opacity": 0.5},
            hovertemplate=f"{model}<br>%{{x:.3g}}, %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="‖w_out‖")
    figure.update_yaxes(title="LogitVar", type="log")
    return legend(styled(figure))


def rho(ds: xr.Dataset) -> go.Figure:
    """Draw ρ of the last layers against chance: by training step where there are steps."""
    import plotly.graph_objects as go

    step = ds["training_step"].values
    steps = np.isfinite(step).sum() > 1
    figure = go.Figure()
    for at, family in enumerate(dict.fromkeys(ds["family"].values.tolist())):
        rows = np.flatnonzero(ds["family"].values == family)
        rows = rows[np.argsort(step[rows], kind="stable")]
        x = step[rows] if steps else [str(m) for m in ds["model"].values[rows]]
        for name, said, dash in (
            ("rho_largest", "largest", "solid"), ("rho_99", "99 %", "dash"),
            ("rho_chance_max", "chance", "dot"),
        ):  # fmt: skip
            if name not in ds:
                continue
            colour = GREY if dash == "dot" else CYCLE[at % len(CYCLE)]
            figure.add_scatter(
                x=x, y=ds[name].values[rows], name=f"{family}, {said}", mode="lines+markers",
                line={"color": colour, "dash": dash},
                hovertemplate="%{x}<br>" + said + " %{y:.3f}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title="training step" if steps else "model")
    figure.update_yaxes(title="ρ in the last two layers", rangemode="tozero")
    return legend(styled(figure))


def strongest(ds: xr.Dataset) -> go.Figure:
    """Draw TE against the mediated share of the strongest neurons of each model."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for at, model in enumerate(ds["model"].values):
        figure.add_scatter(
            x=ds["te_top"].values[at], y=ds["mediated_top"].values[at], name=str(model),
            mode="markers", marker={"color": CYCLE[at % len(CYCLE)], "size": 8},
            customdata=[str(n) for n in ds["top_names"].values[at]],
            hovertemplate=f"{model} %{{customdata}}<br>%{{x:.3g}}, %{{y:.0%}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="TE (nats)", type="log")
    figure.update_yaxes(title="mediated share", tickformat=".0%")
    return legend(styled(figure))


@section(needs={"neurons": ("model",), "top_names": ("model", "place")}, shows=())
def atlas(ds: xr.Dataset, options: Options) -> Section:
    """Show all models on the same axes."""
    figures = []
    if "role_share" in ds:
        figures += [
            Figure(f"share-{role}", by_depth(ds, "role_share", "share of neurons", str(role)),
                   f"{role} neurons by relative depth.")
            for role in ds["role_name"].values
            if np.nanmax(ds["role_share"].sel(role_name=role).values) > 0
        ]  # fmt: skip
    for name, title in (("median_kurtosis", "kurtosis"), ("median_cosine", "cos(in, out)")):
        if name in ds:
            figures.append(
                Figure(name, by_depth(ds, name, title), f"{title}, median by relative depth.")
            )
    if "rho_largest" in ds:
        caption = "ρ of the last two layers, and of the largest of as many random directions."
        figures.append(Figure("rho", rho(ds), caption))
    if "point_norm" in ds and "point_variance" in ds:
        caption = "The largest norms of each model, and an even sample of its other neurons."
        figures.append(Figure("points", points(ds), caption))
    if "te_top" in ds:
        figures.append(
            Figure("strongest", strongest(ds), "The ten strongest by what is mediated, by model.")
        )
    numbers = {
        "neurons": "neurons", "rho_largest": "largest ρ", "rho_99": "99 % of ρ",
        "rho_above": "share above chance", "rho_chance_max": "ρ by chance",
    }  # fmt: skip
    there = [name for name in numbers if name in ds]
    columns = [Column(numbers[name], str(ds[name].attrs["long_name"])) for name in there]
    rows = []
    for at, model in enumerate(ds["model"].values):
        values = [float(ds[name].values[at]) for name in there]
        cells = [Cell(number(x), x if np.isfinite(x) else None) for x in values]
        rows.append((str(model), False, cells))
    lead = f"{ds.sizes['model']} models; depth is relative, from the first layer to the last."
    if ds.attrs.get("unfinished"):
        lead += f" Not finished, and left out: {ds.attrs['unfinished']}."
    shows = frozenset(map(str, ds.data_vars))
    return Section("atlas", "Atlas", lead, figures, "table",
                   Table(columns, rows, "model"), shows)  # fmt: skip
