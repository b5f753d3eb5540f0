"""Figures of datasets in which a text comes again: both occurrences, aligned token by token.

Means and standard deviations are over tokens, never over what was averaged before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.derive.repeats import Shift, shift_p
from confreg.derive.repeats import shift as shift_of
from confreg.report.figures import effect_words
from confreg.report.sections import has
from confreg.report.styling import CONTROL, FIRST, OTHERWISE, SECOND, SLATE, faint, legend, styled
from confreg.report.wording import in_units, label

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

POINTS = 50  # along an occurrence; longer ones are drawn in bins of several positions
SHOWN = 6  # neurons whose activations are drawn


@dataclass(frozen=True)
class Profile:
    """Mean and standard deviation over the tokens of each bin of positions, B bins.

    Attributes
    ----------
    at
        Middle of each bin: (B,).
    mean, sd
        Over the bin's tokens: (..., B).
    """

    at: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


def profile(ds: xr.Dataset, values: np.ndarray, where: np.ndarray) -> Profile:
    """Average values (..., T) by aligned position over the tokens of a mask (T,)."""
    aligned = ds["aligned"].values
    width = -(-(int(aligned.max()) + 1) // POINTS)
    bins = np.where(where, aligned // width, -1)
    used = np.unique(bins[where])
    parts = [values[..., bins == one] for one in used]
    return Profile(
        used * width + (width - 1) / 2,
        np.stack([part.mean(axis=-1, dtype=float) for part in parts], axis=-1),
        np.stack([part.std(axis=-1, dtype=float) for part in parts], axis=-1),
    )


def second_occurrences(ds: xr.Dataset) -> list[tuple[str, str, np.ndarray]]:
    """Return the second occurrences' compared tokens: a name, a colour and a mask for each kind.

    There are two kinds where n-grams go on as before in some texts, and otherwise in others.
    """
    keep, matched = ds["keep"].values, ds["matched"].values
    kinds = [
        ("second, goes on alike", SECOND, keep & matched),
        ("second, goes on otherwise", OTHERWISE, keep & ~matched),
    ]
    kinds = [kind for kind in kinds if kind[2].any()]
    return kinds if len(kinds) > 1 else [("second", SECOND, keep)]


def occurrences(ds: xr.Dataset) -> list[tuple[str, str, np.ndarray]]:
    """Return the compared tokens of all occurrences, as :func:`second_occurrences` does."""
    first = ds["compared"].values & (ds["occurrence"].values == 0)
    return [("first", FIRST, first), *second_occurrences(ds)]


def shifts(ds: xr.Dataset) -> Shift:
    """What the repeat does to each neuron's activation, token by token.

    Returns
    -------
    confreg.derive.repeats.Shift
        As the dataset holds it in ``shift``, ``shift_sd`` and ``shift_sigma``; worked out from
        ``activation`` where it does not: (n,) each.
    """
    names = ("shift", "shift_sd", "shift_sigma")
    if all(has(ds, name, ("neuron",)) for name in names):
        return Shift(*(np.asarray(ds[name].values, dtype=float) for name in names))
    along = (ds[name].values for name in ("sequence", "aligned", "occurrence", "compared"))
    return shift_of(ds["activation"].values, *along)


def shift_ps(ds: xr.Dataset) -> np.ndarray:
    """Return how often a random neuron shifts as much as each chosen one: ``shift_p``, (n,)."""
    if has(ds, "shift_p", ("neuron",)):
        return np.asarray(ds["shift_p"].values, dtype=float)
    return shift_p(shifts(ds).sigma, chosen_neurons(ds))


def chosen_neurons(ds: xr.Dataset) -> np.ndarray:
    """Return which neurons are in a chosen set: (n,) bool."""
    return np.asarray(ds["member"].values[ds["set_kind"].values == "chosen"].any(axis=0))


def drawn_neurons(ds: xr.Dataset) -> np.ndarray:
    """Return which neurons are in random sets, and in no chosen one: (n,) bool."""
    return np.asarray(ds["member"].values.any(axis=0)) & ~chosen_neurons(ds)


def baseline(ds: xr.Dataset) -> go.Figure:
    """Draw entropy, loss and norm scale of the unablated model along both occurrences."""
    from plotly.subplots import make_subplots

    names = [name for name in ("entropy", "loss", "norm_scale") if name in ds]
    titles = ["norm scale" if name == "norm_scale" else label(ds, name) for name in names]
    figure = make_subplots(cols=len(names), subplot_titles=titles, horizontal_spacing=0.08)
    for column, name in enumerate(names, start=1):
        for kind, colour, where in occurrences(ds):
            found = profile(ds, ds[name].values, where)
            _line(figure, found, kind, colour, 1, column, column == 1)
    figure.update_xaxes(title="position")
    return _above(styled(figure))


def activations(ds: xr.Dataset) -> go.Figure:
    """Draw the first chosen neurons' activations along both occurrences."""
    from plotly.subplots import make_subplots

    rows = np.flatnonzero(chosen_neurons(ds))[:SHOWN]
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    names = [str(name) for name in ds["neuron"].values[rows]]
    figure = make_subplots(
        rows=lines, cols=columns, subplot_titles=names, shared_xaxes=True,
        horizontal_spacing=0.06, vertical_spacing=0.14,
    )  # fmt: skip
    for number, row in enumerate(rows):
        at = (number // columns + 1, number % columns + 1)
        for kind, colour, where in occurrences(ds):
            found = profile(ds, ds["activation"].values[row], where)
            _line(figure, found, kind, colour, *at, number == 0)
        value = float(ds["ablation_value"].values[row])
        figure.add_hline(y=value, line={"dash": "dot", "width": 1.5, "color": SLATE},
                         row=at[0], col=at[1])  # pyright: ignore[reportArgumentType]  # fmt: skip
    figure.update_xaxes(title="position", row=lines)
    figure.update_yaxes(title="activation", col=1)
    return _above(styled(figure)).update_layout(height=140 + 230 * lines)


def shift(ds: xr.Dataset) -> go.Figure:
    """Draw how far the repeat moves chosen and random neurons, in standard deviations."""
    import plotly.graph_objects as go

    relative = shifts(ds).sigma
    chosen = chosen_neurons(ds)
    spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(chosen))
    figure = go.Figure()
    for place, (kind, rows, marker) in enumerate(
        (
            ("random", drawn_neurons(ds), {"color": CONTROL, "size": 6, "opacity": 0.6}),
            ("chosen", chosen, {"color": SECOND, "size": 10, "symbol": "diamond"}),
        )
    ):
        figure.add_trace(
            go.Scatter(
                x=place + spread[rows],
                y=relative[rows],
                mode="markers",
                marker=marker,
                name=kind,
                customdata=ds["neuron"].values[rows].astype(str),
                hovertemplate="<b>%{customdata}</b><br>%{y:.3f} σ<extra></extra>",
            )
        )
    figure.update_xaxes(tickvals=[0, 1], ticktext=["random neurons", "chosen neurons"])
    figure.update_yaxes(title="mean change at the repeat (σ of the activation)")
    return styled(figure)


def ways(ds: xr.Dataset) -> list[tuple[str, int, np.ndarray]]:
    """Return the set to draw, plain and clipped: a name, its row, and the rows of its controls.

    It is the first joint set, or where there is none the first chosen neuron.
    """
    kinds, control = ds["set_kind"].values, ds["set_control"].values
    sizes, clipped = ds["set_size"].values, ds["set_clipped"].values
    chosen = np.flatnonzero(kinds == "chosen")
    joint = chosen[sizes[chosen] > 1]
    own = int((joint if len(joint) else chosen)[0])
    found = []
    for name, way in (("plain", False), ("clipped", True)):
        same = (control == control[own]) & (clipped == way) & (sizes == sizes[own])
        member = ds["member"].values
        twin = same & (kinds == "chosen") & (member == member[own]).all(axis=1)
        found.append(
            (name, int(np.flatnonzero(twin)[0]), np.flatnonzero(same & (kinds != "chosen")))
        )
    return found


def along(ds: xr.Dataset, effect: str) -> go.Figure:
    """Draw a set's effect along the second occurrence, plain and clipped, against its controls.

    Reads the rows of the cube that it draws.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    kinds, drawn = second_occurrences(ds), ways(ds)
    titles = [f"{name}{kind.removeprefix('second')}" for kind, *_ in kinds for name, *_ in drawn]
    figure = make_subplots(
        rows=len(kinds), cols=len(drawn), subplot_titles=titles, shared_xaxes=True,
        horizontal_spacing=0.04, vertical_spacing=0.16,
    )  # fmt: skip
    cube = ds["effects"].sel(effect=effect)
    for row, (_, _, where) in enumerate(kinds, start=1):
        for column, (_, own, controls) in enumerate(drawn, start=1):
            first = row == column == 1
            if len(controls):
                random = profile(ds, cube.isel(set=controls).values, where)
                low, high = random.mean.min(axis=0), random.mean.max(axis=0)
                _band(figure, random.at, low, high, CONTROL, row, column)
                figure.add_trace(
                    go.Scatter(
                        x=random.at, y=np.median(random.mean, axis=0), mode="lines",
                        line={"color": CONTROL, "width": 1.5}, name="random sets: all, and median",
                        legendgroup="random", showlegend=first,
                    ), row=row, col=column,
                )  # fmt: skip
            found = profile(ds, cube.isel(set=own).values, where)
            _line(figure, found, "chosen: mean ± sd over tokens", SECOND, row, column, first)
    figure.update_xaxes(title="position", row=len(kinds))
    figure.update_yaxes(matches="y").update_yaxes(title=in_units(*effect_words(ds, effect)), col=1)
    return _above(styled(figure)).update_layout(height=140 + 280 * len(kinds))


def _above(figure: go.Figure) -> go.Figure:
    """Show the legend above the titles of a figure's parts."""
    return legend(figure).update_layout(
        legend={"y": 1, "yref": "container", "yanchor": "top"}, margin={"t": 72}
    )


def _line(
    figure: go.Figure, found: Profile, name: str, colour: str, row: int, column: int, named: bool
) -> None:
    """Draw a mean with a band of one standard deviation around it."""
    import plotly.graph_objects as go

    _band(figure, found.at, found.mean - found.sd, found.mean + found.sd, colour, row, column)
    mode = "lines" if len(found.at) > 12 else "lines+markers"
    trace = go.Scatter(
        x=found.at, y=found.mean, mode=mode, line={"color": colour, "width": 2}, name=name,
        legendgroup=name, showlegend=named, customdata=found.sd,
        hovertemplate="position %{x}<br>%{y:.4g} ± %{customdata:.3g}<extra>" + name + "</extra>",
    )  # fmt: skip
    figure.add_trace(trace, row=row, col=column)


def _band(
    figure: go.Figure, at: np.ndarray, low: Any, high: Any, colour: str, row: int, column: int
) -> None:
    import plotly.graph_objects as go

    trace = go.Scatter(
        x=np.concatenate([at, at[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself",
        fillcolor=faint(colour), line={"width": 0}, mode="lines",
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    figure.add_trace(trace, row=row, col=column)
