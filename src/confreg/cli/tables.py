"""What the command line prints: tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from confreg.errors import ConfregError
from confreg.report.wording import mediator

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from confreg.checks import Check
    from confreg.sweep.plan import Plan

HEADINGS = {
    "te": "TE",
    "de": "DE",
    "te_mediated": "TE − DE",
    "mediated": "1 − DE/TE",
    "w_out_norm": "‖w_out‖",
    "logit_var": "LogitVar",
    "null_fraction": "ρ",
}
# What ρ, TE and DE are is said once under the table, for readers who come without the paper.
LEGEND = (
    "TE, DE: mean |change of loss| in nats when the {subject} is ablated, everything recomputed, "
    "and with {frozen} frozen. 1 − DE/TE: share that it mediates."
)
LEGEND_NULL = " ρ: share of w_out that the unembedding barely reads."
LEGEND_SETS = (
    " Δ: mean change. p: how often a random set of the same size does at least as much, 1/{least} "
    "at the least. Random sets are in the dataset and the report."
)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def print_top(ds: xr.Dataset, by: str = "te_mediated", n: int = 10, smallest: bool = False) -> None:
    """Print the strongest neurons of a dataset.

    Raises
    ------
    ConfregError
        The run that writes the dataset has not finished, or it cannot be ranked so.
    """
    import confreg.results.accessor  # noqa: F401  registers ds.confreg

    if not ds.attrs.get("complete", 1):
        raise ConfregError(
            "This store is not finished; the command that made it goes on where it stopped: "
            f"{ds.attrs['command_line']}"
        )
    if "te" not in ds and by == "te_mediated":
        by = str(ds["effect"].values[0])
    subject = "set" if "set" in ds.dims else "neuron"
    if subject == "set" and "te" in ds and by == "te_mediated":
        by = "te"
    frame = ds.confreg.top(by, ds.sizes[subject], smallest)
    columns = [c for c in (*HEADINGS, by) if c in frame]
    if subject == "set":
        frame, more = _chosen_sets(ds, frame)
        columns = [*(c for c in columns if c not in ("de", "te_mediated") or c == by), *more]
    frame = frame.head(n)
    title = f"{ds.attrs['title']}: {len(frame)} of {ds.sizes[subject]} {subject}s"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(subject, style="bold", no_wrap=True)
    for column in dict.fromkeys(columns):
        table.add_column(HEADINGS.get(column, column), justify="right", no_wrap=True)
    for label, row in frame.iterrows():
        numbers = row[list(dict.fromkeys(columns))].astype(float)
        table.add_row(str(label), *map(_number, numbers))
    console = _console()
    console.print(table)
    if "te" in columns:
        said = LEGEND.format(subject=subject, frozen=mediator(ds)[0])
        if "null_fraction" in columns:
            said += LEGEND_NULL
        if subject == "set":
            said += LEGEND_SETS.format(least=1 + _controls(ds))
        console.print(said, style="dim")


def _controls(ds: xr.Dataset) -> int:
    """How many random sets a chosen one has, at most."""
    drawn = ds["set_control"].values[ds["set_kind"].values == "random"]
    return int(np.unique(drawn, return_counts=True)[1].max(initial=0)) if len(drawn) else 0


def _chosen_sets(ds: xr.Dataset, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The chosen sets alone, with their mean changes and how they compare with the random ones."""
    chosen = frame.index[ds["set_kind"].to_series().reindex(frame.index) == "chosen"]
    frame, more = frame.loc[chosen].copy(), []
    for effect in ("loss_total", "entropy_total"):
        if effect not in ds["effect"].values:
            continue
        name = effect.removesuffix("_total")
        for column, variable in ((f"Δ {name}", "effect_mean"), (f"p({name})", "p_random")):
            frame[column] = ds[variable].sel(effect=effect).to_series().reindex(chosen)
            more.append(column)
    return frame, more


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.3g}"


def print_plan(plan: Plan) -> None:
    """Print what would run."""
    table = Table(title=f"{plan.title}: what would run", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in plan.rows():
        table.add_row(name, value)
    _console().print(table)


def print_recipes() -> None:
    """Print every recipe with its parameters and effects."""
    from confreg.recipe import find, names

    console = _console()
    for name in names():
        found = find(name)
        console.print(f"[bold]{name}[/bold]  {found.summary}")
        for parameter in found.parameters.values():
            console.print(f"    -p {parameter.describe()}", markup=False)
        for effect in found.effects:
            usual = "" if effect in found.usual else "  (on request)"
            console.print(f"    {effect.name}: {effect.long_name}, {effect.units}{usual}")


def print_models() -> None:
    """Print the architectures that can be measured."""
    from confreg.models import table as supported

    rows: Sequence[dict[str, Any]] = supported()
    table = Table(title="Architectures")
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    _console().print(table)


def print_checks(checks: Sequence[Check]) -> None:
    """Print one screen, green or a sentence each."""
    console = _console()
    for check in checks:
        mark = "[green]ok[/green]  " if check.ok else "[red]no[/red]  "
        console.print(f"{mark}[bold]{check.name}[/bold]: ", end="")
        console.print(check.sentence, markup=False)
