"""A section for every axis: a table of all that is known along it, and plots of any pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.report import contexts, wording
from confreg.report.columns import Measured, known_labels, measured, tells_apart
from confreg.report.placing import shown_as
from confreg.report.sections import (
    TABLE_ROWS,
    Cell,
    Column,
    Figure,
    Options,
    Section,
    Table,
)
from confreg.report.styling import CHANGES, CYCLE, SHARES, styled
from confreg.report.wording import axis_title, number, plural, sentence, told
from confreg.results import axes, tables, vocabulary

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

EXPLORED = 6_000  # points of a plot whose axes are chosen by the reader
EXPLORED_FROM = 5  # fewer points than that are read off the table
LIKE = 0.98  # rank correlation from which one number is as good as the other
PANELS = 24  # lines along a scale, one a panel


def sections(ds: xr.Dataset, options: Options, shown: frozenset[str]) -> list[Section]:
    """Make a section for each axis along which there is something to tell."""
    main = axes.main_subject(ds)
    order = [main] if main else []
    order += [dim for dim in axes.of_kind(ds, "subject") if dim != main]
    order += [*axes.of_kind(ds, "other"), *axes.of_kind(ds, "quantity")]
    found = []
    for dim in order:
        own = shown_as(ds, "table", dim)
        around = [name for name in map(str, ds.data_vars) if dim in ds[name].dims]
        tell = own if axes.kind(ds, dim) != "subject" else around
        if dim == main or not set(tell) <= shown:
            found.append(_section(ds, dim, dim == main, options, own))
    return [section for section in found if section is not None]


def _section(
    ds: xr.Dataset, dim: str, is_main: bool, options: Options, own: list[str]
) -> Section | None:
    columns = measured(ds, dim)
    if not columns and not is_main:
        return None
    labels = [c for c in known_labels(ds, dim) if tells_apart(ds, dim, c)]
    numbers = [c for c in columns if c.is_number and np.isfinite(c.values).any()]
    key = "table" if is_main else f"along-{dim}"
    many = plural(ds, dim)
    if not numbers and not columns:
        return Section(key, _title(ds, dim, is_main), f"The dataset has no number per {dim}.")
    figures = []
    if axes.is_scale(ds, dim) and numbers:
        caption = f"Everything that is one number per {dim.replace('_', ' ')}, against it."
        figures = [Figure(f"lines-{dim}", lines(ds, dim, numbers), caption, wide=True)]
    by = ranking(numbers)
    rows = _order(ds, dim, by, numbers)
    table = _table(ds, dim, [*labels, *columns], rows, by, options, is_main)
    data = {"table": table, "explore": _explored(ds, dim, columns, by)}
    said = f"{len(rows):,} of {ds.sizes[dim]:,} {many}"
    if len(rows) == ds.sizes[dim]:
        said = f"All {ds.sizes[dim]:,} {many}"
    if by is not None and not axes.is_scale(ds, dim):
        said += (
            f": the first by {by.label}" if len(rows) < ds.sizes[dim] else f", ranked by {by.label}"
        )
        te = any(column.key == "te" for column in numbers) and by.key != "te"
        said += " and by TE" if te and len(rows) < ds.sizes[dim] else ""
    shows = frozenset(own)
    said += "." + _bars(columns)
    return Section(key, _title(ds, dim, is_main), said, figures, "subject", data, shows)


def _title(ds: xr.Dataset, dim: str, is_main: bool) -> str:
    many = plural(ds, dim)
    if is_main and not axes.is_scale(ds, dim):
        return f"Strongest {many}"
    return f"By {dim.replace('_', ' ')}" if axes.is_scale(ds, dim) else sentence(many)


def ranking(numbers: list[Measured]) -> Measured | None:
    """Return the column by which rows are ranked, as :func:`confreg.results.tables.rank_by`."""
    for wanted in vocabulary.RANKED_BY:
        for column in numbers:
            if tables.split_column(column.key)[0] == wanted:
                return column
    for start in ("largest |", "mean |"):
        for column in numbers:
            if column.key.startswith(start):
                return column
    return numbers[0] if numbers else None


def _order(ds: xr.Dataset, dim: str, by: Measured | None, numbers: list[Measured]) -> list[int]:
    """Return the rows that the table has, in the order in which they stand at first."""
    count = ds.sizes[dim]
    if by is None or (axes.is_scale(ds, dim) and count <= TABLE_ROWS):
        return list(range(min(count, TABLE_ROWS)))

    def ranked(column: Measured, size: bool = False) -> list[int]:
        values = np.abs(column.values) if size else column.values
        values = np.where(np.isfinite(values), values, -np.inf)
        return [int(row) for row in np.argsort(-values, kind="stable") if np.isfinite(values[row])]

    first = ranked(by)
    te = next((column for column in numbers if column.key == "te"), None)
    # Rows that lead by TE belong in a table that can be sorted by it; so do the most negative.
    second = ranked(te) if te is not None else ranked(by, size=True)
    half = TABLE_ROWS // 2
    chosen = dict.fromkeys([*first[:half], *second[:half], *first, *range(count)])
    rows = list(chosen)[:TABLE_ROWS]
    place_of = {row: rank for rank, row in enumerate(first)}
    return sorted(rows, key=lambda row: place_of.get(row, count))


def _table(
    ds: xr.Dataset,
    dim: str,
    columns: list[Measured],
    rows: list[int],
    by: Measured | None,
    options: Options,
    is_main: bool,
) -> Table:
    labels = wording.labels(ds, dim)
    detailed = set(contexts.shown(ds, options)) if is_main else set()
    scale = axes.is_scale(ds, dim)
    headings = [Column(c.label, c.hint, c is by and not scale, not c.is_number) for c in columns]
    tops = {c.key: float(np.nanmax(c.values, initial=0.0)) for c in columns if c.is_number}
    cells = [[cell(column, row, tops.get(column.key, 0.0)) for column in columns] for row in rows]
    body = [
        (labels[row], labels[row] in detailed, one) for row, one in zip(rows, cells, strict=True)
    ]
    return Table(headings, body, dim.replace("_", " "), ids=is_main)


def cell(column: Measured, row: int, top: float) -> Cell:
    """Write one cell; shares of effects and TE have a bar behind them."""
    if not column.is_number:
        return Cell(column.texts[row], column.texts[row])
    value = float(column.values[row])
    if not np.isfinite(value):
        return Cell(number(value), None)
    text = told(column.key, value)
    if column.percent:
        return Cell(text, value, 100 * float(np.clip(value, 0, 1)))
    if column.key == "te" and top > 0:
        return Cell(text, value, 100 * max(0.0, value / top))
    return Cell(text, value)


def _bars(columns: list[Measured]) -> str:
    """Say what the bars behind numbers are relative to."""
    shares = [c.label for c in columns if c.percent]
    parts = ["of TE are relative to the largest"] if any(c.key == "te" for c in columns) else []
    parts += [f"of {', '.join(shares)} to 100\u00a0%"] if shares else []
    return f" Bars {', '.join(parts)}." if parts else ""


def lines(ds: xr.Dataset, dim: str, columns: list[Measured]) -> go.Figure:
    """Draw every column against the numbers along an axis, a panel each."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    drawn = columns[:PANELS]
    across = min(3, len(drawn))
    down = -(-len(drawn) // across)
    figure = make_subplots(
        rows=down, cols=across, subplot_titles=[column.label for column in drawn],
        shared_xaxes=True, horizontal_spacing=0.09, vertical_spacing=min(0.18, 0.3 / down),
    )  # fmt: skip
    x = axes.labels(ds, dim)
    mode = "lines+markers" if len(x) <= 40 else "lines"
    for place_, column in enumerate(drawn):
        trace = go.Scatter(
            x=x, y=column.values, mode=mode, line={"color": CYCLE[0], "width": 2},
            hovertemplate=f"{dim} %{{x}}<br>{column.label} %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace, row=place_ // across + 1, col=place_ % across + 1)
    for column_ in range(across):
        last = (len(drawn) - column_ - 1) // across + 1
        figure.update_xaxes(
            title=axis_title(ds, dim, 44), showticklabels=True, row=last, col=column_ + 1
        )
    figure = styled(figure).update_layout(height=90 + 240 * down)
    return figure.update_annotations(font={"size": 13})


def _explored(
    ds: xr.Dataset, dim: str, columns: list[Measured], by: Measured | None
) -> dict[str, Any] | None:
    """Return what a plot of any two columns needs, None if there are not two to choose."""
    import plotly.graph_objects as go

    columns = [*columns, *known_labels(ds, dim)]
    if axes.is_scale(ds, dim):
        columns.insert(0, Measured(dim, axis_title(ds, dim), "", axes.labels(ds, dim)))
    count = ds.sizes[dim]
    numbers = [c for c in columns if c.is_number and len(np.unique(c.values)) > 1]
    if len(numbers) < 2 or count < EXPLORED_FROM:
        return None
    rows = _sample(by, count)
    offered = sorted((c for c in columns if c in numbers or c.is_category), key=_is_text)
    x, y, colour = _unlike(numbers)
    labels = axes.texts(ds, dim)
    return {
        "key": dim,
        "noun": dim.replace("_", " "),
        "drawn": len(rows),
        "count": count,
        "x": x,
        "y": y,
        "colour": colour,
        "labels": [labels[row] for row in rows],
        "columns": [
            {
                "label": c.label,
                "hint": c.hint,
                "number": c.is_number,
                "percent": c.percent,
                "values": _short(c.values[rows]) if c.is_number else [c.texts[row] for row in rows],
            }
            for c in offered
        ],
        "layout": styled(go.Figure()).to_plotly_json()["layout"],
        "scales": {"signed": CHANGES, "unsigned": SHARES},
        "cycle": CYCLE,
        "plain": CYCLE[0],
    }


def _is_text(column: Measured) -> bool:
    return not column.is_number


def _unlike(numbers: list[Measured]) -> tuple[int, int, int]:
    """Choose columns for both axes and the colour that are no function of each other, if any are.

    The colour is −1 where there is none.
    """
    chosen = [0]
    ranks = [_ranks(c.values) for c in numbers]
    for at in range(1, len(numbers)):
        if len(chosen) < 3 and all(abs(np.corrcoef(ranks[at], ranks[i])[0, 1]) < LIKE
                                   for i in chosen):  # fmt: skip
            chosen.append(at)
    chosen += [1] * (len(chosen) == 1)
    return chosen[0], chosen[1], chosen[2] if len(chosen) > 2 else -1


def _ranks(values: np.ndarray) -> np.ndarray:
    known = np.where(np.isfinite(values), values, -np.inf)
    return np.unique(known, return_inverse=True)[1].astype(float)


def _sample(by: Measured | None, count: int) -> np.ndarray:
    """Return rows to draw, the strongest last: half of them the strongest if there are many."""
    size = np.arange(count, dtype=float) if by is None else np.asarray(by.values, dtype=float)
    order = np.argsort(np.where(np.isfinite(size), size, -np.inf), kind="stable")
    if count <= EXPLORED:
        return order
    tail = EXPLORED // 2
    rest = np.linspace(0, count - tail - 1, EXPLORED - tail).astype(int)
    return np.append(order[rest], order[-tail:])


def _short(values: np.ndarray) -> list[float | None]:
    """Round to what a plot can show; what is no number is nothing."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values.astype(float)]
