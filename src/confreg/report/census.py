"""The part of the page about what neurons read and write, by weights alone: `census`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, section
from confreg.report.styling import BLUE, CYCLE, GREY, RED, VIOLET, legend, styled
from confreg.report.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

ROLES: tuple[str, ...] = ("prediction", "suppression", "partition", "entropy")
SHOWN = 8
"""Neurons of each role in the table."""
COLOURS: dict[str, str] = dict(zip(ROLES, (CYCLE[0], CYCLE[1], CYCLE[3], CYCLE[2])))
CLASSES = {
    "enrichment": RED,
    "conditional enrichment": "#eca283",
    "proportional change": CYCLE[2],
    "orthogonal output": GREY,
    "conditional depletion": "#8fb6de",
    "depletion": BLUE,
}


def by_layer(ds: xr.Dataset, name: str, kinds: dict[str, str], share: bool) -> go.Figure:
    """Draw how many neurons of each layer, or which share of them, are of each kind."""
    import plotly.graph_objects as go

    layer, said = ds["layer"].values, ds[name].values.astype(str)
    layers = np.unique(layer)
    totals = np.array([(layer == one).sum() for one in layers])
    figure = go.Figure()
    shown = ".1%" if share else ",d"
    for kind, colour in kinds.items():
        here = np.char.endswith(said, kind) if kind in CLASSES else said == kind
        if kind in ("enrichment", "depletion"):
            here &= ~np.char.endswith(said, f"conditional {kind}")
        counts = np.array([(here & (layer == one)).sum() for one in layers])
        figure.add_bar(
            x=layers, y=counts / totals if share else counts, name=kind, marker={"color": colour},
            hovertemplate=f"layer %{{x}}<br>{kind} %{{y:{shown}}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.1)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="share of the neurons" if share else "neurons")
    if share:
        figure.update_yaxes(tickformat=".0%")
    return legend(styled(figure))


def moments(ds: xr.Dataset, name: str, title: str, log: bool) -> go.Figure:
    """Draw quantiles over a layer's neurons against the layer."""
    import plotly.graph_objects as go

    layer, values = ds["layer"].values, ds[name].values.astype(float)
    layers = np.unique(layer)
    figure = go.Figure()
    quantiles = ((1.0, RED), (0.99, CYCLE[2]), (0.5, BLUE), (0.01, VIOLET))
    for quantile, colour in quantiles:
        y = [np.nanquantile(values[layer == one], quantile) for one in layers]
        said = {1.0: "largest", 0.5: "median"}.get(quantile, f"{100 * quantile:.0f} %")
        figure.add_scatter(
            x=layers, y=y, name=said, mode="lines+markers", line={"color": colour, "width": 2},
            hovertemplate=f"layer %{{x}}<br>{said} %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title=title, type="log" if log else "linear")
    return legend(styled(figure))


def _strongest(ds: xr.Dataset) -> list[int]:
    """Rows of the table: of each role those that are most so."""
    role = ds["role"].values.astype(str)
    by = {
        "prediction": ds["vocab_kurtosis"].values,
        "suppression": ds["vocab_kurtosis"].values,
        "partition": ds["logit_var"].values,
        "entropy": ds["null_fraction"].values,
    }
    found: list[int] = []
    for name in ROLES:
        rows = np.flatnonzero(role == name)
        found += rows[np.argsort(-by[name][rows], kind="stable")][:SHOWN].tolist()
    return found


@section(
    needs=dict.fromkeys(
        ("role", "layer", "vocab_kurtosis", "vocab_skew", "logit_var", "null_fraction",
         "raised_text", "lowered_text"),
        ("neuron",),
    ),
    shows=(),
)  # fmt: skip
def census(ds: xr.Dataset, options: Options) -> Section:
    """Show roles by layer, moments against the layer, and the strongest of each role."""
    share = {name: float((ds["role"] == name).mean()) for name in (*ROLES, "other")}
    figures = [
        Figure("roles", by_layer(ds, "role", COLOURS, share=False),
               f"Roles by layer; {share['other']:.1%} of the neurons have none."),
        Figure("kurtosis-layers", moments(ds, "vocab_kurtosis", "kurtosis", log=True),
               "Kurtosis over the vocabulary of what neurons write: a Gaussian has 3."),
        Figure("variance-layers", moments(ds, "logit_var", "LogitVar", log=True),
               "Variance over the vocabulary of what neurons write."),
    ]  # fmt: skip
    if "input_output" in ds:
        figures.append(
            Figure("input-output", by_layer(ds, "input_output", CLASSES, share=True),
                   "What gated neurons do to the direction that they read, atypical ones too.")
        )  # fmt: skip
    if "in_out_cosine" in ds:
        figures.append(
            Figure("in-out", moments(ds, "in_out_cosine", "cos(in, out)", log=False),
                   "Cosine of input and output weight: above 0 a neuron writes what it reads.")
        )  # fmt: skip
    columns = [
        Column("role", text=True),
        Column("kurtosis", "over the vocabulary, of cos(w_out, unembedding)"),
        Column("skew", "likewise"),
        Column("LogitVar", "variance, likewise"),
        Column("ρ", "share of w_out in the unembedding's null space"),
        Column("raises most", text=True),
        Column("lowers most", text=True),
    ]
    rows = []
    for row in _strongest(ds):
        numbers = [
            float(ds[name].values[row])
            for name in ("vocab_kurtosis", "vocab_skew", "logit_var", "null_fraction")
        ]
        role, raised, lowered = (
            str(ds[name].values[row]) for name in ("role", "raised_text", "lowered_text")
        )
        cells = [
            Cell(role, role),
            *(Cell(number(value), value) for value in numbers),
            Cell(raised, raised),
            Cell(lowered, lowered),
        ]
        rows.append((str(ds["neuron"].values[row]), False, cells))
    lead = (
        f"By weights alone. The table has the {SHOWN} strongest of each role: by kurtosis, by "
        "variance, by ρ. Thresholds are the run's parameters."
    )
    ids = frozenset(["raised", "lowered"])  # their texts are in the tables
    return Section("census", "What neurons write", lead, figures, "table",
                   Table(columns, rows, "neuron"), ids)  # fmt: skip
