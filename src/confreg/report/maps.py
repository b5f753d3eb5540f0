"""Heat maps of variables along two axes, and their strongest pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.report import reading
from confreg.report.columns import of_quantity
from confreg.report.placing import Place, place, shown_as
from confreg.report.sections import Cell, Column, Figure, Options, Section, Table
from confreg.report.styling import SIGNED, UNSIGNED, styled
from confreg.report.wording import (
    axis_title,
    in_units,
    label,
    labels,
    long_name,
    number,
    over,
    plural,
    sentence,
    units,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

CELLS = 240  # cells along either side; larger variables are drawn in blocks
PAIRS = 40  # of the largest size, listed
LAYERS = 12  # quantities that are drawn
BRIGHT = 0.995  # quantile of sizes at which colours end


@dataclass(frozen=True)
class Grid:
    """A variable in at most CELLS × CELLS cells, and its largest entries.

    Attributes
    ----------
    cells
        Each block's entry of the largest size: (rows, columns, layers).
    block
        How many entries a cell stands for, down and across.
    pairs
        Rows and columns of the entries of the largest size of the first layer: (k, 2).
    values
        The entries of ``pairs``: (k, layers).
    """

    cells: np.ndarray
    block: tuple[int, int]
    pairs: np.ndarray
    values: np.ndarray


def sections(ds: xr.Dataset, options: Options, shown: frozenset[str]) -> list[Section]:
    """Make a section for every variable along two axes that nothing shows yet."""
    names = [name for name in shown_as(ds, "map") if name not in shown]
    return [_section(ds, name) for name in names if ds[name].size and ds[name].dtype.kind in "fiub"]


def _section(ds: xr.Dataset, name: str) -> Section:
    at = place(ds, name)
    found = grid(ds, name)
    named = layers(ds, name, at)
    across = [plural(ds, dim) for dim in (at.rows, at.columns)]
    lead = sentence(long_name(ds, name) or label(ds, name, unit=False))
    lead += f", of {ds.sizes[at.rows]:,} {across[0]} and {ds.sizes[at.columns]:,} {across[1]}."
    if at.averaged:
        lead += f" Mean over {over(ds, at.averaged)}."
    caption = f"{sentence(label(ds, name, unit=False))} by {at.rows} and {at.columns}."
    caption = caption.replace("_", " ")
    if found.block != (1, 1):
        down, right = found.block
        caption += f" A cell is the entry of the largest size of {down} × {right}."
    figure = Figure(
        f"map-{name}", heat_map(ds, name, found), caption, wide=True,
        choices=[text for text, _ in named] if len(named) > 1 else (),
    )  # fmt: skip
    table = _pairs(ds, at, found, named)
    title = f"{sentence(label(ds, name, unit=False))} by {at.rows} and {at.columns}"
    title = title.replace("_", " ")
    return Section(f"map-{name}", title, lead, [figure], "table", table, frozenset([name]))


def layers(ds: xr.Dataset, name: str, at: Place) -> list[tuple[str, str]]:
    """Return how each heat map of a variable is called, and its units."""
    if not at.layers:
        return [(label(ds, name, unit=False), units(ds, name))]
    count = min(ds.sizes[at.layers], LAYERS)
    return [of_quantity(ds, name, at.layers, entry) for entry in range(count)]


def grid(ds: xr.Dataset, name: str) -> Grid:
    """Read a variable in spans of its rows, and keep what a heat map and a short list need."""
    at = place(ds, name)
    array = reading.kept(ds, ds[name])
    if at.layers:
        array = array.isel({at.layers: slice(0, LAYERS)})
    down, right = (-(-ds.sizes[dim] // CELLS) for dim in (at.rows, at.columns))
    count = min(ds.sizes[at.layers], LAYERS) if at.layers else 1
    shape = (-(-ds.sizes[at.rows] // down), -(-ds.sizes[at.columns] // right), count)
    cells = np.full(shape, np.nan)
    pairs, values = np.zeros((0, 2), dtype=int), np.zeros((0, count))
    for start, _, part in reading.spans(array, at.rows):
        part = part.mean(at.averaged) if at.averaged else part
        part = part.transpose(at.rows, at.columns, *([at.layers] if at.layers else []))
        entries = np.asarray(part.values, dtype=float).reshape(*part.shape[:2], count)
        _into_cells(cells, entries, start, down, right)
        pairs, values = _largest(pairs, values, entries, start)
    return Grid(cells, (down, right), pairs, values)


def _into_cells(cells: np.ndarray, entries: np.ndarray, start: int, down: int, right: int) -> None:
    """Put entries of the largest size into the cells that they belong to."""
    width = cells.shape[1] * right
    entries = np.pad(
        entries, ((0, 0), (0, width - entries.shape[1]), (0, 0)), constant_values=np.nan
    )
    blocks = entries.reshape(len(entries), cells.shape[1], right, -1)
    size = np.where(np.isfinite(blocks), np.abs(blocks), -1.0)
    best = np.take_along_axis(blocks, size.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    for row, found in enumerate(best):
        cell = cells[(start + row) // down]
        larger = np.abs(np.nan_to_num(found)) > np.abs(np.nan_to_num(cell))
        cell[...] = np.where(larger | np.isnan(cell), found, cell)


def _largest(
    pairs: np.ndarray, values: np.ndarray, entries: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add the entries of one span to the largest so far, and keep PAIRS of them."""
    size = np.abs(np.nan_to_num(entries[:, :, 0], posinf=0.0, neginf=0.0)).ravel()
    some = np.argpartition(-size, min(PAIRS, len(size) - 1))[:PAIRS] if len(size) else []
    rows, columns = np.unravel_index(some, entries.shape[:2])
    pairs = np.concatenate([pairs, np.stack([rows + start, columns], axis=1)])
    values = np.concatenate([values, entries[rows, columns]])
    order = np.argsort(-np.abs(np.nan_to_num(values[:, 0])), kind="stable")[:PAIRS]
    return pairs[order], values[order]


def heat_map(ds: xr.Dataset, name: str, found: Grid | None = None) -> go.Figure:
    """Draw a variable along two axes; of several quantities, the first is seen.

    Parameters
    ----------
    ds
        The dataset.
    name
        A variable that :func:`confreg.report.placing.place` shows as a map.
    found
        What :func:`grid` gives; None: it is read.
    """
    import plotly.graph_objects as go

    at = place(ds, name)
    found = grid(ds, name) if found is None else found
    down, right = found.block
    y, x = _named(labels(ds, at.rows), down), _named(labels(ds, at.columns), right)
    figure = go.Figure()
    for layer, (text, unit) in enumerate(layers(ds, name, at)):
        cells = found.cells[:, :, layer]
        colours = _colours(cells)
        beyond = _beyond(cells, colours)
        figure.add_trace(
            go.Heatmap(
                z=cells.astype(np.float32),
                x=x,
                y=y,
                visible=layer == 0,
                hovertemplate=(
                    f"{at.rows} %{{y}}<br>{at.columns} %{{x}}<br>"
                    f"{in_units(text, unit)}: %{{z:.4g}}<extra></extra>"
                ),
                colorbar={
                    "title": {"text": in_units(text, unit) + beyond, "side": "right"},
                    "thickness": 12,
                    "outlinewidth": 0,
                },
                **colours,
            )
        )
    figure = styled(figure)
    height = int(np.clip(160 + 16 * len(y), 300, 620))
    for update, dim, names, most, width in (
        (figure.update_xaxes, at.columns, x, 14, 80),
        (figure.update_yaxes, at.rows, y, 26, height // 10),
    ):
        ticks = {"type": "category", "showgrid": False, **_ticks(names, most)}
        update(title=axis_title(ds, dim, width), **ticks)
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=height)


def _colours(cells: np.ndarray) -> dict[str, Any]:
    """Return a colour scale and its ends; a few cells may lie beyond."""
    known = cells[np.isfinite(cells)]
    if not len(known):
        return {"colorscale": UNSIGNED}
    top = float(np.quantile(np.abs(known), BRIGHT)) or float(np.abs(known).max())
    if (known < 0).any():
        return {"colorscale": SIGNED, "zmin": -top, "zmax": top}
    return {"colorscale": UNSIGNED, "zmin": float(known.min()), "zmax": float(known.max())}


def _beyond(cells: np.ndarray, colours: dict[str, Any]) -> str:
    """Say how many cells lie beyond the ends of their colours, if any do."""
    outside = int((np.abs(np.nan_to_num(cells)) > colours.get("zmax", np.inf)).sum())
    return f"; {outside:,} of {cells.size:,} cells lie beyond" if outside else ""


def _named(names: list[str], block: int) -> list[str]:
    """Name the cells along one side; those of several entries after the first and the last."""
    if block > 1:
        firsts = range(0, len(names), block)
        names = [f"{names[i]} … {names[min(i + block, len(names)) - 1]}" for i in firsts]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # cells of one name would fall together
            names[index] = f"{name} ({seen[name]})"
    return names


def _ticks(names: list[str], most: int) -> dict[str, list]:
    """Return even ticks, at most so many; a cell of several entries is marked by its first."""
    places = range(0, len(names), -(-len(names) // most) or 1)
    texts = [names[at].partition(" … ")[0] for at in places]
    return {
        "tickvals": list(places),
        "ticktext": [t[:17] + "…" if len(t) > 18 else t for t in texts],
    }


def _pairs(ds: xr.Dataset, at: Place, found: Grid, named: list[tuple[str, str]]) -> Table:
    down, across = labels(ds, at.rows), labels(ds, at.columns)
    columns = [Column(at.columns.replace("_", " "), text=True)]
    columns += [Column(in_units(text, unit)) for text, unit in named]
    rows = []
    for (row, column), values in zip(found.pairs, found.values, strict=True):
        other = Cell(across[column], across[column])
        cells = [Cell(number(v), float(v) if np.isfinite(v) else None) for v in values]
        rows.append((down[row], False, [other, *cells]))
    return Table(columns, rows, at.rows.replace("_", " "))
