"""The report's figures, one function each: a dataset in, a plotly figure out.

They read only small variables, never the cube, and work in a notebook as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.report.sections import has
from confreg.report.styling import BLUE, CHOSEN, CONTROL, GOLD, GREEN, GREY, LAYERS, RED, SHARES
from confreg.report.styling import legend as _legend
from confreg.report.styling import styled as _styled
from confreg.report.wording import in_units, label, number, quantities, quantity_units, told
from confreg.results import tables

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import xarray as xr
    from numpy.typing import ArrayLike

MAX_POINTS = 12_000  # what a browser draws at once without effort
LETTER, LINE = 0.02, 0.06  # of a narrow plot's width and height
COVERED = 5  # points that a label may cover
NAMED = 6  # neurons whose label is written beside their point
FLOOR = -1.0  # mediated shares below are drawn at the edge


def weights(ds: xr.Dataset) -> go.Figure:
    """Draw ‖w_out‖ against LogitVar; entropy neurons are large, low and red.

    Needs ``w_out_norm`` and ``logit_var``. The colour is the layer, or the mediated share
    if there is one layer only.
    """
    frame = _drawable(tables.table(ds, "neuron"), "w_out_norm", "logit_var")
    figure = _scatter(ds, frame, frame["w_out_norm"], frame["logit_var"], log_y=True)
    figure.update_xaxes(title=label(ds, "w_out_norm"))
    figure.update_yaxes(title=label(ds, "logit_var"))
    return figure


def mediation(ds: xr.Dataset) -> go.Figure:
    """Draw TE against the mediated share 1 − DE/TE.

    Needs ``te`` and ``mediated``. A few far negative shares, at most a hundredth of all unless
    they are below −1, are triangles at the lower edge: 1 − DE/TE falls without end where TE
    is small.
    """
    frame = _drawable(tables.table(ds, "neuron"), "te", "mediated")
    share = frame["mediated"].to_numpy(dtype=float)
    floor = FLOOR
    if len(frame):
        floor = float(max(share.min(), FLOOR, min(-0.25, np.quantile(share, 0.01))))
    shown, below = np.maximum(share, floor), share < floor
    figure = _scatter(ds, frame, frame["te"], shown, log_x=True, below=below)
    figure.update_xaxes(title=label(ds, "te"))
    figure.update_yaxes(
        title="mediated share 1 − DE/TE", tickformat=".0%", range=[floor - 0.04, _top(frame) + 0.04]
    )
    return figure


def null_space(ds: xr.Dataset) -> go.Figure:
    """Draw the share of w_out in the unembedding's null space against TE.

    Needs ``null_fraction`` and ``te``. Dotted lines are what chance gives: :func:`null_chance`.
    """
    frame = _drawable(tables.table(ds, "neuron"), "te", "null_fraction")
    figure = _scatter(ds, frame, frame["te"], frame["null_fraction"], log_x=True)
    largest = f"largest of {ds.sizes['neuron']:,} random directions"
    for value, text in zip(null_chance(ds), ("a random direction", largest)):
        figure.add_hline(
            y=value,
            line={"dash": "dot", "width": 1.2, "color": CONTROL},
            annotation={"text": text, "font": {"size": 11}},
            annotation_position="top left",
        )
    figure.update_xaxes(title=label(ds, "te"))
    figure.update_yaxes(title="ρ, share of w_out in the null space", rangemode="tozero")
    return figure


def null_chance(ds: xr.Dataset) -> list[float]:
    """Return ρ of a random direction, and of the largest of as many as there are neurons.

    They are what the dataset says; one that does not say gives √(k/d) for the first, and
    nothing if it does not say k either.
    """
    names = ("null_fraction_chance", "null_fraction_chance_max")
    found = [float(ds[name]) for name in names if name in ds and ds[name].ndim == 0]
    null = int(ds.attrs.get("null_dims", 0))
    if not found and null and "component" in ds.sizes:
        found = [float(np.sqrt(null / ds.sizes["component"]))]
    return found


def frequency(ds: xr.Dataset) -> go.Figure:
    """Draw the cosine of what a neuron writes with the token-frequency direction against TE.

    Needs ``frequency_cosine`` and ``te``.
    """
    frame = _drawable(tables.table(ds, "neuron"), "te", "frequency_cosine")
    figure = _scatter(ds, frame, frame["te"], frame["frequency_cosine"], log_x=True)
    figure.update_xaxes(title=label(ds, "te"))
    figure.update_yaxes(title="cosine with the token-frequency direction")
    return figure


def frequency_shift(ds: xr.Dataset) -> go.Figure:
    """Draw the mean change of D(p_freq ‖ p_model) against the cosine.

    Needs ``frequency_cosine`` and ``effect_mean`` of the effect ``kl_frequency_total``.
    Neurons above 0 pull the prediction towards the unigrams.
    """
    frame = tables.table(ds, "neuron")
    shift = ds["effect_mean"].sel(effect="kl_frequency_total").transpose("neuron").values
    frame = _drawable(
        frame.assign(shift=np.asarray(shift, dtype=float)), "frequency_cosine", "shift"
    )
    figure = _scatter(ds, frame, frame["frequency_cosine"], frame["shift"])
    figure.update_xaxes(title="cosine with the token-frequency direction")
    figure.update_yaxes(title="mean Δ KL to unigrams (nats)")
    return figure


def frequency_layers(ds: xr.Dataset) -> go.Figure:
    """Draw how large |cosine| with the token-frequency direction gets in each layer.

    Needs ``frequency_cosine_all``; lines are quantiles over a layer's neurons.
    """
    import plotly.graph_objects as go

    size = np.abs(ds["frequency_cosine_all"].transpose("model_layer", "model_index").values)
    figure = go.Figure()
    for quantile, name, colour in (
        (1.0, "largest", RED),
        (0.99, "99 %", GOLD),
        (0.5, "median", GREY),
    ):
        figure.add_trace(
            go.Scatter(
                x=ds["model_layer"].values,
                y=np.nanquantile(size, quantile, axis=1),
                name=name,
                mode="lines+markers",
                line={"color": colour},
                hovertemplate=f"layer %{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
            )
        )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="|cosine| with the token-frequency direction", rangemode="tozero")
    return _legend(_styled(figure))


def effect_words(ds: xr.Dataset, effect: str) -> tuple[str, str]:
    """Return how an effect is written, "Δ loss", and its units, "" for pure numbers."""
    at = [str(name) for name in ds["effect"].values].index(effect)
    return quantities(ds, "effect")[at], quantity_units(ds, "effect")[at]


def sets(ds: xr.Dataset, effect: str) -> go.Figure:
    """Draw every set's mean effect by how it is ablated; chosen sets stand out.

    Needs ``effect_mean (set, effect)`` and the coordinates ``set_kind``, ``set_deviation``.
    """
    values = ds["effect_mean"].sel(effect=effect).values
    name, unit = effect_words(ds, effect)
    kinds, (step, names) = ds["set_kind"].values, _steps(ds)
    # Sets of one ablation value lie side by side, always in the same places.
    at = step + np.random.default_rng(0).uniform(-0.25, 0.25, len(values)) * (kinds == "random")
    figure = chosen_and_random(ds, at, values)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_yaxes(title=in_units(f"mean {name}", unit))
    return _legend(_styled(figure))


def chosen_and_random(
    ds: xr.Dataset, x: np.ndarray, y: np.ndarray, form: str = ".4g", opacity: float = 0.6
) -> go.Figure:
    """Draw a number of every set, random ones faint and chosen ones over them.

    Needs the coordinates ``set`` and ``set_kind``; ``form`` is how the number is told.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for kind, marker, names in (
        ("random", {"color": CONTROL, "size": 6, "opacity": opacity}, None),
        ("chosen", {"color": CHOSEN, "size": 11, "symbol": "diamond"}, _set_names(ds, x, y)),
    ):
        rows = ds["set_kind"].values == kind
        figure.add_trace(
            go.Scatter(
                x=x[rows],
                y=y[rows],
                name=kind,
                mode="markers+text" if names else "markers",
                marker=marker,
                text=names,
                textposition="middle right",
                textfont={"size": 11},
                cliponaxis=False,
                customdata=[str(label) for label in ds["set"].values[rows]],
                hovertemplate=f"<b>%{{customdata}}</b><br>%{{y:{form}}}<extra></extra>",
            )
        )
    return figure


def _set_names(ds: xr.Dataset, x: np.ndarray, y: np.ndarray) -> list[str] | None:
    """Return what to write beside the chosen sets where several lie at one place of an axis.

    That is their labels without the ablation value; of sets that lie on each other, the first is
    named.
    """
    rows = np.flatnonzero(ds["set_kind"].values == "chosen")
    if len(np.unique(x[rows])) == len(rows):
        return None
    labels = [str(label) for label in ds["set"].values[rows]]
    up = _fraction(y, False)[rows]
    names: list[str] = []
    for at in range(len(rows)):
        over = any(x[rows[i]] == x[rows[at]] and abs(up[i] - up[at]) < LINE for i in range(at))
        names.append("" if over else f"  {labels[at].partition(':')[0]}")
    return names


def _steps(ds: xr.Dataset) -> tuple[np.ndarray, list[str]]:
    """Return each set's place among the ways of ablation, and what those are called."""
    for needs, steps in (
        (("set_heads", "set_control"), _by_heads),
        (("set_clipped", "set_control"), _by_clipping),
    ):
        if all(has(ds, name, ("set",)) for name in needs):
            return steps(ds)
    if has(ds, "set_way", ("set",)):
        ways = [str(way) for way in ds["set_way"].values]
        names = list(dict.fromkeys(ways))
        return np.array([names.index(way) for way in ways]), names
    values, at = np.unique(ds["set_deviation"].values, return_inverse=True)
    return at, ["mean" if v == 0 else f"mean {v:+g}σ".replace("-", "−") for v in values]


def _by_heads(ds: xr.Dataset) -> tuple[np.ndarray, list[str]]:
    chosen = ds["set_kind"].values == "chosen"
    heads = [str(name).replace("+", "<br>+ ") for name in ds["set_heads"].values[chosen]]
    return ds["set_control"].values.astype(int), heads


def _by_clipping(ds: xr.Dataset) -> tuple[np.ndarray, list[str]]:
    control, clipped = ds["set_control"].values, ds["set_clipped"].values
    names = []
    for shared in range(int(control.max()) + 1):
        size = int(ds["set_size"].values[control == shared][0])
        who = "one neuron" if size == 1 else f"{size} together"
        names += [f"{who},<br>{way}" for way in ("plain", "clipped")]
    return 2 * control.astype(int) + clipped, names


def against_loss(ds: xr.Dataset, neuron: str) -> go.Figure:
    """Draw the change of loss against the loss before, at tokens where a neuron is active.

    Needs ``effects``, ``loss``, ``above_mean (neuron, token)``; the colour is the reciprocal
    rank of the correct token where the dataset has ``rank``. Reads one neuron of the cube.
    """
    import plotly.graph_objects as go

    row = [str(label) for label in ds["neuron"].values].index(neuron)
    effect = str(ds["effect"].values[0])
    change = np.asarray(ds["effects"].isel(neuron=row).sel(effect=effect).values)
    active = np.asarray(ds["above_mean"].isel(neuron=row).values, dtype=bool)
    rows = np.flatnonzero(active & ds["keep"].values & np.isfinite(change))[:MAX_POINTS]
    marker: dict[str, Any] = {"size": 5.5, "opacity": 0.7, "color": BLUE}
    if "rank" in ds:
        rank = 1 / (1 + ds["rank"].values[rows].astype(float))
        marker |= {"color": rank, "colorscale": SHARES, "cmin": 0, "cmax": 1}
    figure = go.Figure(
        go.Scatter(
            x=ds["loss"].values[rows],
            y=change[rows],
            mode="markers",
            marker=marker,
            text=[escape(repr(str(text))) for text in ds["token_text"].values[rows]],
            hovertemplate="after %{text}<br>loss %{x:.3f}<br>change %{y:.4f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="loss before (nats)")
    figure.update_yaxes(title=in_units(*effect_words(ds, effect)))
    return _styled(figure)


def spectrum(ds: xr.Dataset) -> go.Figure:
    """Draw the singular values of the folded unembedding, its null dimensions shaded.

    Needs ``singular_value``; the attribute ``null_dims`` says how many are shaded.
    """
    import plotly.graph_objects as go

    values = np.asarray(ds["singular_value"].values, dtype=float)
    count = len(values)
    figure = go.Figure(
        go.Scatter(
            x=np.arange(1, count + 1),
            y=values,
            mode="lines",
            line={"color": BLUE, "width": 2},
            hovertemplate="component %{x}<br>singular value %{y:.4g}<extra></extra>",
        )
    )
    null = int(ds.attrs.get("null_dims", 0))
    if 0 < null <= count:
        start, end = count - null + 0.5, count + 0.5
        figure.add_vrect(x0=start, x1=end, fillcolor=RED, opacity=0.18, line_width=0)
        figure.add_annotation(
            text=f"null space: {null} of {count}",
            x=start,
            y=1,
            yref="paper",
            xanchor="right",
            yanchor="top",
            showarrow=False,
            xshift=-6,
        )
    figure.update_xaxes(title="component, largest first", range=[0, count * 1.02])
    figure.update_yaxes(title="singular value", **_log(values))
    return _styled(figure)


def jobs(ds: xr.Dataset) -> go.Figure:
    """Draw what every remote job sent, received and computed.

    Needs some of ``job_bytes_up``, ``job_bytes_down`` and ``job_seconds``.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(specs=[[{"secondary_y": True}]])
    rows = [
        ("job_bytes_up", "sent", BLUE, False),
        ("job_bytes_down", "received", GREEN, False),
        ("job_seconds", "server time", RED, True),
    ]
    for name, title, colour, right in rows:
        if name not in ds:
            continue
        values = np.asarray(ds[name].values, dtype=float)
        unit = "s" if right else "B"
        figure.add_trace(
            go.Scatter(
                x=np.arange(1, len(values) + 1),
                y=values,
                name=title,
                mode="markers" if right else "lines",
                line={"color": colour, "shape": "hvh"},
                marker={"color": colour},
                hovertemplate=f"job %{{x}}<br>{title} %{{y:.4s}}{unit}<extra></extra>",
            ),
            secondary_y=right,
        )
    figure.update_xaxes(title="job")
    figure.update_yaxes(title="bytes", rangemode="tozero", exponentformat="SI", secondary_y=False)
    figure.update_yaxes(
        title="server seconds", rangemode="tozero", showgrid=False, secondary_y=True
    )
    return _legend(_styled(figure))


def _drawable(frame: pd.DataFrame, *needed: str) -> pd.DataFrame:
    """Keep rows that have the needed numbers, the strongest last: they are drawn on top.

    A logarithm needs a positive number: ``te`` and ``logit_var`` of 0 are left out. Too many
    rows are thinned out.
    """
    for name in needed:
        low = 0.0 if name in ("te", "logit_var") else -np.inf
        values = frame[name].to_numpy()
        frame = frame.loc[np.isfinite(values) & (values > low)]
    by = frame[tables.rank_by(frame) or needed[0]]
    frame = frame.iloc[np.argsort(np.where(np.isfinite(by), by, -np.inf), kind="stable")]
    if len(frame) <= MAX_POINTS:
        return frame
    tail = MAX_POINTS // 2
    rest = np.linspace(0, len(frame) - tail - 1, MAX_POINTS - tail).astype(int)
    return frame.iloc[np.append(rest, np.arange(len(frame) - tail, len(frame)))]


def _scatter(
    ds: xr.Dataset,
    frame: pd.DataFrame,
    x: ArrayLike,
    y: ArrayLike,
    log_x: bool = False,
    log_y: bool = False,
    below: np.ndarray | None = None,
) -> go.Figure:
    """Draw one point a neuron, coloured, named on hover; ``below`` marks points cut off."""
    import plotly.graph_objects as go

    marker: dict[str, Any] = {"size": 6.5, "opacity": 0.8, "line": {"width": 0}}
    marker |= _colour(ds, frame)
    if below is not None:
        marker["symbol"] = np.where(below, "triangle-down-open", "circle")
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    figure = go.Figure(
        go.Scatter(
            x=x,
            y=y,
            mode="markers",
            marker=marker,
            customdata=_labels(frame),
            text=_hover(ds, frame),
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.add_trace(_names(frame, x, y, log_x, log_y))
    if log_x:
        figure.update_xaxes(**_log(x))
    if log_y:
        figure.update_yaxes(**_log(y))
    return _styled(figure)


def _names(
    frame: pd.DataFrame, x: np.ndarray, y: np.ndarray, log_x: bool, log_y: bool
) -> go.Scatter:
    """Write the strongest neurons' labels beside their points, where there is room."""
    import plotly.graph_objects as go

    labels = _labels(frame)
    wanted = frame.index.get_indexer(tables.strongest(frame, 2 * NAMED))
    sides = beside(labels, _fraction(x, log_x), _fraction(y, log_y), wanted, NAMED)
    chosen = list(sides)
    return go.Scatter(
        x=x[chosen],
        y=y[chosen],
        mode="text",
        text=[f"  {labels[index]}  " for index in chosen],
        textposition=[f"middle {sides[index]}" for index in chosen],
        textfont={"size": 11},
        hoverinfo="skip",
        cliponaxis=False,
    )


def beside(
    labels: Sequence[str], across: np.ndarray, up: np.ndarray, wanted: Iterable[int], most: int
) -> dict[int, str]:
    """Choose points that have room for their labels, and on which side: "right" or "left".

    A label stands on the side where it covers fewer points, and nowhere if it would cover more
    than a few, or another label.

    Parameters
    ----------
    labels
        (n,) of all points.
    across, up
        (n,) where the points lie, from 0 to 1.
    wanted
        Points to be named, the first before the others.
    most
        How many get their names.
    """
    found: dict[int, str] = {}
    boxes: list[tuple[float, float, float]] = []  # middles of labels, and half their widths
    for point in wanted:
        half = LETTER * len(labels[point]) / 2
        sides = []
        for side, way in (("right", 1), ("left", -1)):
            middle = across[point] + way * (half + 2 * LETTER)
            inside = middle - half >= -LETTER and middle + half <= 1 + 4 * LETTER
            covers = (np.abs(across - middle) < half + LETTER) & (np.abs(up - up[point]) < LINE / 2)
            covers[point] = False
            over = any(
                abs(middle - x) < half + width and abs(up[point] - y) < LINE
                for x, y, width in boxes
            )
            if inside and not over and covers.sum() <= COVERED:
                sides.append((int(covers.sum()), -way, side, middle))
        if sides and len(found) < most:
            _, _, found[point], middle = min(sides)
            boxes.append((middle, up[point], half))
    return found


def _log(values: np.ndarray) -> dict[str, Any]:
    """Return a logarithmic axis with ticks at powers of ten, at 1, 2, 5 if those are few.

    Values that lie too near each other for these have evenly spaced ticks.
    """
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return {"type": "log"}
    low, high = np.floor(np.log10([values.min(), values.max()])).astype(int)
    steps = (1,) if high - low > 2 else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(low, high + 2) for step in steps]
    if sum(values.min() <= tick <= values.max() for tick in ticks) < 2:
        ticks = _even(float(values.min()), float(values.max()))
    return {"type": "log", "tickvals": ticks, "ticktext": [_tick(tick) for tick in ticks]}


def _even(low: float, high: float) -> list[float]:
    """Round numbers at equal distances, three to seven in all, from about low to about high."""
    width = (high - low) or low
    unit = 10.0 ** np.floor(np.log10(width))
    step = next(unit * part for part in (0.2, 0.5, 1, 2) if width / (unit * part) <= 5)
    count = range(int(np.floor(low / step)), int(np.ceil(high / step)) + 1)
    return [float(f"{each * step:.6g}") for each in count if each > 0]


def _tick(value: float) -> str:
    return number(value, 1).removeprefix("1×") if value < 1e-4 else f"{value:g}"


def _fraction(values: np.ndarray, log: bool) -> np.ndarray:
    """Return where on its axis each value lies, from 0 to 1."""
    scaled = np.log(values) if log else values
    low, high = (scaled.min(), scaled.max()) if len(scaled) else (0.0, 1.0)
    return (scaled - low) / ((high - low) or 1.0)


def _labels(frame: pd.DataFrame) -> list[str]:
    return [str(label) for label in frame.index]


def _colour(ds: xr.Dataset, frame: pd.DataFrame) -> dict[str, Any]:
    bar = {
        "orientation": "h",
        "thickness": 8,
        "len": 0.45,
        "x": 0.85,
        "xanchor": "right",
        "y": 1.0,
        "yanchor": "bottom",
        "outlinewidth": 0,
        "ticklen": 2,
        "tickangle": 0,
        "ypad": 0,
    }
    layer = ds["layer"].to_series().reindex(frame.index) if has(ds, "layer", ("neuron",)) else None
    if layer is not None and layer.nunique() > 1:
        ends = [int(layer.min()), int(layer.max())]
        ticks = {"tickvals": ends, "ticktext": [f"layer {end}" for end in ends]}
        return {"color": layer.to_numpy(), "colorscale": LAYERS, "colorbar": bar | ticks}
    if "mediated" in frame and np.isfinite(frame["mediated"]).any():
        share, top = np.nan_to_num(frame["mediated"].to_numpy()), _top(frame)
        least, most = "≤ " * bool((share < 0).any()), "≥ " * bool((share > top).any())
        ends = [f"{least}0", f"{most}{100 * top:.0f} % mediated"]
        ticks = {"tickvals": [0, top], "ticktext": ends}
        return {
            "color": share,
            "colorscale": SHARES,
            "cmin": 0,
            "cmax": top,
            "colorbar": bar | ticks,
        }
    return {"color": BLUE}


def _top(frame: pd.DataFrame) -> float:
    """Return the largest mediated share, rounded up to a tenth, at least 0.2."""
    share = float(np.nan_to_num(frame["mediated"].to_numpy()).max(initial=0.2))
    return min(1.0, np.ceil(10 * share) / 10)


def _hover(ds: xr.Dataset, frame: pd.DataFrame) -> list[str]:
    columns = [name for name in tables.numbers(frame) if tables.split_column(name)[1] is None][:8]
    names = [label(ds, name) for name in columns]
    rows = zip(*(frame[name] for name in columns), strict=True)
    return [
        f"<b>{neuron}</b><br>"
        + "<br>".join(
            f"{name}: {told(key, value)}" for key, name, value in zip(columns, names, row)
        )
        for neuron, row in zip(_labels(frame), rows, strict=True)
    ]
