"""The part of the page about attention heads that are ablated, and the neurons they move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.derive import repeats
from confreg.derive.means import deviation_where_there
from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, has, section
from confreg.report.styling import CHOSEN, CONTROL, legend, styled
from confreg.report.wording import number, percent, signed

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

WATCHES: dict[str, tuple[str, ...]] = {
    "activation_change_mean": ("set", "neuron"),
    "activation_change_abs_mean": ("set", "neuron"),
    "set_heads": ("set",),
    "set_kind": ("set",),
    "set_control": ("set",),
    "set_size": ("set",),
}
WATCHED = 30  # neurons that are drawn and listed


@section(
    needs={"prefix_score": ("model_layer", "head"), "set_heads": ("set",), "set_kind": ("set",)}
)
def prefix(ds: xr.Dataset, options: Options) -> Section:
    """Show every head's prefix-matching score."""
    caption = (
        "Mean attention, over the second half of random tokens that come twice, to the token that "
        "followed the last time. Diamonds: the heads that are ablated."
    )
    lead = f"Chosen of {ds['prefix_score'].size:,} heads: {ds.attrs.get('heads', 'by name')}."
    return Section(
        "prefix", "Induction heads", lead, [Figure("prefix", scores(ds), caption, wide=True)]
    )


@section(
    needs=WATCHES,
)
def watched(ds: xr.Dataset, options: Options) -> Section:
    """Show what the ablated heads do to the watched neurons."""
    own, controls = together(ds)
    shown = loudest(ds, own)
    name = str(ds["set_heads"].values[own])
    unit = "in standard deviations of the activation, " if _active(ds) else ""
    caption = (
        f"Mean change of the activation at the repeat, {unit}with {name} attending to the first "
        f"token only, against {len(controls)} random sets of as many heads."
    )
    lead = ""
    if len(shown) < ds.sizes["neuron"]:
        lead = f"The {len(shown)} of {ds.sizes['neuron']:,} neurons that change most."
    if _active(ds):
        lead += (
            " Taken back: how much of the way from the first occurrence to the repeat the ablation "
            "undoes, −change / (repeat − first)."
        )
    back = _taken_back(ds)
    rows = [_row(ds, own, controls, int(row), back) for row in shown]
    data = Table(_columns(ds), rows, "neuron")
    shows = frozenset(
        n for n in ("activation_p_random", "activation_q_random", "taken_back") if n in ds
    )
    figure = Figure("watched", changes(ds), caption, wide=True)
    return Section(
        "watched", "Neurons that they move", lead.strip(), [figure], "table", data, shows
    )


def together(ds: xr.Dataset) -> tuple[int, np.ndarray]:
    """Return the row of the largest chosen set, and the rows of its controls."""
    chosen = np.flatnonzero(ds["set_kind"].values == "chosen")
    own = int(chosen[np.argmax(ds["set_size"].values[chosen])])
    same = ds["set_control"].values == ds["set_control"].values[own]
    return own, np.flatnonzero(same & (ds["set_kind"].values == "random"))


def spread(ds: xr.Dataset) -> np.ndarray:
    """Return the unit of each neuron's change: σ of its activation where that is there, NaN where
    it never is, and 1 where it does not vary or activations are not kept."""
    if not _active(ds):
        return np.ones(ds.sizes["neuron"])
    found = deviation_where_there(ds["activation"].values.astype(float))
    return np.where(found == 0, 1.0, found)


def loudest(ds: xr.Dataset, own: int) -> np.ndarray:
    """Return the rows of the watched neurons that a set changes most, in their own order."""
    change = np.abs(ds["activation_change_mean"].values[own]) / spread(ds)
    return np.sort(np.argsort(-change, kind="stable")[:WATCHED])


def scores(ds: xr.Dataset) -> go.Figure:
    """Draw every head's prefix-matching score by layer; chosen heads stand out.

    Needs ``prefix_score (model_layer, head)`` and the coordinates ``set_kind``, ``set_heads``.
    """
    import plotly.graph_objects as go

    score = ds["prefix_score"].values
    names = set("+".join(ds["set_heads"].values[ds["set_kind"].values == "chosen"]).split("+"))
    every = [(layer, head) for layer, head in np.ndindex(score.shape)]
    figure = go.Figure()
    for kind, marker, mode in (
        ("other heads", {"color": CONTROL, "size": 6, "opacity": 0.7}, "markers"),
        ("chosen", {"color": CHOSEN, "size": 11, "symbol": "diamond"}, "markers+text"),
    ):
        drawn = [at for at in every if (f"{at[0]}.{at[1]}" in names) == (kind == "chosen")]
        labels = [f"{layer}.{head}" for layer, head in drawn]
        # Names of one layer's heads on either side of them.
        sides = ["middle right" if i % 2 == 0 else "middle left" for i in range(len(drawn))]
        figure.add_trace(
            go.Scatter(
                x=[layer for layer, _ in drawn],
                y=[score[at] for at in drawn],
                name=kind,
                mode=mode,
                marker=marker,
                text=labels,
                textposition=sides,
                hovertemplate="<b>%{text}</b><br>%{y:.3f}<extra></extra>",
            )
        )
    if str(ds.attrs.get("heads", "")).startswith("above:"):
        limit = float(ds.attrs["heads"].removeprefix("above:"))
        figure.add_hline(y=limit, line={"dash": "dot", "width": 1, "color": CONTROL})
    figure.update_xaxes(title="layer", range=[-0.7, score.shape[0] + 0.7])
    figure.update_yaxes(title="prefix-matching score", range=[-0.03, 1.03])
    return legend(styled(figure))


def changes(ds: xr.Dataset) -> go.Figure:
    """Draw how all chosen heads together change watched neurons, against random sets of heads.

    Needs ``activation_change_mean (set, neuron)``; in units of σ where ``activation`` is kept.
    """
    import plotly.graph_objects as go

    own, controls = together(ds)
    shown = loudest(ds, own)
    change = ds["activation_change_mean"].values[:, shown] / spread(ds)[shown]
    names = [str(name) for name in ds["neuron"].values[shown]]
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, (len(controls), len(shown)))
    figure = go.Figure()
    for kind, rows, marker in (
        ("random heads", controls, {"color": CONTROL, "size": 5, "opacity": 0.6}),
        ("chosen heads", np.array([own]), {"color": CHOSEN, "size": 10, "symbol": "diamond"}),
    ):
        shift = jitter if kind == "random heads" else np.zeros((1, len(shown)))
        figure.add_trace(
            go.Scatter(
                x=(np.arange(len(shown)) + shift).ravel(),
                y=change[rows].ravel(),
                name=kind,
                mode="markers",
                marker=marker,
                customdata=[
                    f"{ds['set_heads'].values[row]} on {name}" for row in rows for name in names
                ],
                hovertemplate="<b>%{customdata}</b><br>%{y:.4g}<extra></extra>",
            )
        )
    unit = "σ" if _active(ds) else "its own units"
    figure.update_xaxes(tickvals=list(range(len(shown))), ticktext=names, tickangle=-60)
    figure.update_yaxes(title=f"mean change of the activation ({unit})", zeroline=True)
    return legend(styled(figure))


def _columns(ds: xr.Dataset) -> list[Column]:
    found = []
    if _active(ds):
        found = [
            ("first", "mean activation over the first occurrence"),
            ("repeat", "mean activation over the repeat"),
        ]
    found += [
        ("change", "mean change at the repeat when the heads are ablated"),
        ("random: lowest", "least mean change under a random set of heads"),
        ("highest", "largest mean change under a random set of heads"),
        ("|change|", "mean absolute change at the repeat"),
        ("p", "(1 + random sets with at least as large a mean absolute change) / (1 + sets)"),
    ]
    if _active(ds):
        found.append(("taken back", "−change / (repeat − first)"))
    return [Column(title, hint, False) for title, hint in found]


Back = tuple[np.ndarray, np.ndarray, np.ndarray]


def _active(ds: xr.Dataset) -> bool:
    """Say whether the activations of the watched neurons were kept."""
    return has(ds, "activation", ("neuron", "token"))


def _taken_back(ds: xr.Dataset) -> Back | None:
    """Return mean activations at both occurrences, (n,), and what is taken back, (S, n)."""
    if not _active(ds):
        return None
    along = (ds[name].values for name in ("occurrence", "compared"))
    first, second = repeats.occurrence_means(ds["activation"].values, *along)
    if has(ds, "taken_back", ("set", "neuron")):
        return first, second, ds["taken_back"].transpose("set", "neuron").values
    change = ds["activation_change_mean"].transpose("set", "neuron").values
    return first, second, repeats.taken_back(change, first, second)


def _row(
    ds: xr.Dataset, own: int, controls: np.ndarray, neuron: int, back: Back | None
) -> tuple[str, bool, list[Cell]]:
    change = ds["activation_change_mean"].values[:, neuron].astype(float)
    random = change[controls] if len(controls) else np.array([np.nan])
    size = float(ds["activation_change_abs_mean"].values[own, neuron])
    p = float(ds["activation_p_random"].values[own, neuron]) if len(controls) else np.nan
    values = [change[own], random.min(), random.max(), size, p]
    cells = [Cell(signed(v) if i < 3 else number(v), _sortable(v)) for i, v in enumerate(values)]
    if back is not None:
        first, second, share = back[0][neuron], back[1][neuron], back[2][own, neuron]
        before = [Cell(number(value), _sortable(value)) for value in (first, second)]
        cells = [*before, *cells, Cell(percent(share), _sortable(share))]
    return str(ds["neuron"].values[neuron]), False, cells


def _sortable(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
