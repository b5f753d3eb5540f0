"""The part of the page about calibration: how often the model is right when it is so sure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.derive.discovery import q_name
from confreg.report import contexts
from confreg.report.sections import Cell, Column, Figure, Options, Section, Table, has, section
from confreg.report.styling import CHOSEN, CONTROL, SLATE, faint, legend, styled
from confreg.report.wording import number, plural
from confreg.results import axes
from confreg.subjects.sets import controls

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

NUMBERS = (
    ("accuracy", "accuracy", "share of kept tokens that are predicted correctly"),
    ("mean_confidence", "confidence", "mean probability of the likeliest token"),
    ("ece", "ECE", "expected calibration error, bins of equal width"),
    ("ece_adaptive", "adaptive ECE", "expected calibration error, bins of equally many tokens"),
    ("mce", "MCE", "largest calibration error of a bin of equal width"),
    ("brier", "Brier", "mean square of confidence less correctness"),
)
TESTED = tuple(f"{name}_p_random" for name in ("accuracy", "mean_confidence", "ece", "brier"))
OF_BINS = ("bin_tokens", "bin_confidence", "bin_accuracy")
DIAGRAMS = 6


@section(
    needs=dict.fromkeys((f"unablated_{name}" for name in OF_BINS), ("bin",))
    | dict.fromkeys((f"unablated_{name}" for name, *_ in NUMBERS), ()),
)
def reliability(ds: xr.Dataset, options: Options) -> Section | None:
    """Show reliability diagrams and calibration errors, before and after ablations."""
    dim = axes.main_subject(ds)
    if dim is None or not all(has(ds, name, (dim, "bin")) for name in OF_BINS):
        return None
    chosen = _strongest(ds, dim, options)
    shown = [
        Figure(f"reliability-{at}", diagram(ds, name), f"{name}, before and after.")
        for at, name in enumerate(chosen[:DIAGRAMS])
    ]
    tested = [name for name in TESTED if has(ds, name, (dim,))]
    adjusted = [name for name in map(q_name, tested) if has(ds, name, (dim,))]
    columns = [Column(title, hint, False) for _, title, hint in NUMBERS]
    columns += [
        Column(f"p of {title}", "share of random sets that change it at least as much", False)
        for name, title, _ in NUMBERS
        if f"{name}_p_random" in tested
    ]
    columns += [
        Column(f"q of {title}", "Benjamini-Hochberg q of p over all chosen sets", False)
        for name, title, _ in NUMBERS
        if q_name(f"{name}_p_random") in adjusted
    ]
    names = [name for name, *_ in NUMBERS]
    rows = [("unablated", False, _cells([float(ds[f"unablated_{n}"]) for n in names], columns))]
    labels = axes.texts(ds, dim)
    for name in chosen:
        one = ds.isel({dim: labels.index(name)})
        numbers = [float(one[n]) for n in (*names, *tested, *adjusted)]
        rows.append((name, False, _cells(numbers, columns)))
    what = plural(ds, dim)
    total = int(np.nansum(ds["unablated_bin_tokens"].values))
    lead = (
        f"How often the likeliest token is the correct one, by how likely it is, over {total:,} "
        "kept tokens: on the diagonal confidence is neither too high nor too low. A point is a bin "
        "of confidence, as large as it holds tokens; few tokens leave a bin to chance. "
    )
    if has(ds, "set_kind", (dim,)):
        lead += "The band is where nine tenths of the random sets are that belong to the set."
    else:
        lead += f"The {what} are those whose ablation changes the mean confidence most."
    shows = frozenset([*OF_BINS, *names, *tested, *adjusted, "calibration_tokens"])
    shows |= {"unablated_calibration_tokens"} & set(map(str, ds))
    data = Table(columns, rows, dim)
    return Section("reliability", "Calibration", lead, shown, "table", data, shows)


def diagram(ds: xr.Dataset, name: str) -> go.Figure:
    """Draw a neuron's or a set's reliability diagram over that of the unablated model.

    Needs ``bin_tokens``, ``bin_confidence`` and ``bin_accuracy (subject, bin)`` and their like of
    the unablated model.
    """
    import plotly.graph_objects as go

    dim = str(axes.main_subject(ds))
    row = axes.texts(ds, dim).index(name)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", hoverinfo="skip", showlegend=False,
            line={"dash": "dot", "width": 1.2, "color": CONTROL},
        )
    )  # fmt: skip
    drawn = _controls(ds, dim, row)
    if len(drawn):
        _band(figure, ds["bin_accuracy"].values[drawn], ds["bin"].values)
    for prefix, one, colour in (
        ("unablated", ds[[f"unablated_{n}" for n in OF_BINS]], SLATE),
        ("ablated", ds[list(OF_BINS)].isel({dim: row}), CHOSEN),
    ):
        before = "unablated_" if prefix == "unablated" else ""
        n, sure, right = (one[before + part].values for part in OF_BINS)
        there = n > 0
        figure.add_trace(
            go.Scatter(
                x=sure[there],
                y=right[there],
                name=prefix,
                mode="lines+markers",
                line={"color": colour, "width": 1.4},
                marker={"color": colour, "size": 5 + 15 * np.sqrt(n[there] / n.max())},
                customdata=n[there],
                hovertemplate="confidence %{x:.3f}<br>correct %{y:.3f}<br>%{customdata} tokens"
                f"<extra>{prefix}</extra>",
            )
        )
    figure.update_xaxes(title="confidence", range=[-0.02, 1.02])
    figure.update_yaxes(title="share correct", range=[-0.04, 1.04])
    return legend(styled(figure))


def _band(figure: go.Figure, accuracy: np.ndarray, ends: np.ndarray) -> None:
    """Draw between which shares nine tenths of the random sets are, over each bin's middle."""
    import plotly.graph_objects as go

    there = np.isfinite(accuracy).any(axis=0)
    low, high = np.nanquantile(accuracy[:, there], (0.05, 0.95), axis=0)
    middle = (ends - (ends[1] - ends[0]) / 2)[there]
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([middle, middle[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            name="random sets",
            fill="toself",
            fillcolor=faint(CONTROL, 0.35),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
        )
    )


def _controls(ds: xr.Dataset, dim: str, row: int) -> np.ndarray:
    """Rows of the random sets that are ablated as a chosen one is."""
    if not has(ds, "set_kind", (dim,)):
        return np.array([], dtype=int)
    return np.flatnonzero(controls(ds, row))


def _strongest(ds: xr.Dataset, dim: str, options: Options) -> list[str]:
    """Those that the caller named, the chosen sets, or what changes the confidence most."""
    names = axes.texts(ds, dim)
    if has(ds, "set_kind", (dim,)):
        return [names[row] for row in np.flatnonzero(ds["set_kind"].values == "chosen")]
    if options.neurons is not None:
        return contexts.shown(ds, options)
    change = np.abs(ds["mean_confidence"].values - float(ds["unablated_mean_confidence"]))
    order = np.argsort(np.where(np.isfinite(change), -change, np.inf), kind="stable")
    return [names[row] for row in order[: options.details]]


def _cells(values: list[float], columns: list[Column]) -> list[Cell]:
    found = [Cell(number(v, 4), v if np.isfinite(v) else None) for v in values]
    return found + [Cell("", None)] * (len(columns) - len(found))
