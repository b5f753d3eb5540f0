"""What the command line prints: tables for people."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from confreg.errors import ConfregError
from confreg.report.columns import described, means
from confreg.report.subjects import ranking
from confreg.report.wording import long_name, mediator, plural, units
from confreg.results import axes, families, tables, vocabulary
from confreg.subjects.sets import controls_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from confreg.checks import Check
    from confreg.sweep.plan import Plan

SHOWN = ("te", "de", "te_mediated", "mediated", "w_out_norm", "logit_var", "null_fraction")
"""Shared numbers that are printed where a dataset has them."""

OWN = 4  # columns that are printed of datasets that have none of these
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

FURTHER = "Further columns, in a wider window and in the report: "
HEADING = 10  # letters that a line of a heading may have over narrower columns
GOES_WITH = "Tokens that the activation goes with, and the share of its variance they explain:"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def print_top(ds: xr.Dataset, by: str = "te_mediated", n: int = 10, smallest: bool = False) -> None:
    """Print the strongest neurons of a dataset, or entries of whatever it is about.

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
    subject = axes.main_subject(ds)
    if subject is not None:
        _print_rows(ds, subject, by, n, smallest)
    numbers = [str(name) for name, array in ds.data_vars.items() if array.ndim == 0]
    if numbers:
        _print_numbers(ds, numbers)
    if subject is None and not numbers:
        _console().print(f"{_title(ds)}: no axis with labels and no number.")


def _print_rows(ds: xr.Dataset, subject: str, by: str, n: int, smallest: bool) -> None:
    frame = ds.confreg.table()
    found = []
    if tables.rank_by(frame) is None:  # means of what there is stand in
        found = [column for column in means(ds, subject) if column.is_number]
        frame = frame.assign(**{column.label: column.values for column in found})
    given = by if by in frame or by != "te_mediated" else _usual(frame)
    if found and given != by:
        first = ranking(found)
        given = first.label if first else given
    if given is None:
        _console().print(f"{_title(ds)}: {ds.sizes[subject]} {plural(ds, subject)}, no numbers.")
        return
    if given in frame:
        frame = frame.sort_values(given, ascending=smallest, kind="stable")
    else:
        frame = ds.confreg.top(given, ds.sizes[subject], smallest)
    if axes.is_scale(ds, subject) and given != by:
        frame = frame.sort_index()
    columns = [name for name in SHOWN if name in frame]
    columns += [] if columns else tables.numbers(frame)[:OWN]
    columns += [given]
    if "set_kind" in ds.coords and ds["set_kind"].dims == (subject,):
        frame, more = _chosen_sets(ds, frame)
        columns = [*(c for c in columns if c not in ("de", "te_mediated") or c == given), *more]
    columns = list(dict.fromkeys(columns))
    frame = frame.head(n)
    noun = subject.replace("_", " ")
    what = f"{len(frame):,} of {ds.sizes[subject]:,} {plural(ds, subject)}"
    labels = [f"{x:.6g}" if isinstance(x, float) else str(x) for x in frame.index]
    cells = [list(map(_number, frame[column].astype(float))) for column in columns]
    headings = [_heading(ds, subject, column) for column in columns]
    console = _console()
    print_columns(
        console, noun, labels, list(zip(headings, cells, strict=True)),
        title=f"{_title(ds)}: {what}", keep=columns.index(given),
    )  # fmt: skip
    if words := families.in_words(ds, subject, list(frame.index)):
        said = "; ".join(f"{name} {family}" for name, family in words.items())
        console.print(f"{GOES_WITH} {said}.", style="dim")
    if "te" in columns:
        said = LEGEND.format(subject=noun, frozen=mediator(ds)[0])
        if "null_fraction" in columns:
            said += LEGEND_NULL
        if least := _controls(ds):
            said += LEGEND_SETS.format(least=1 + least)
        console.print(said, style="dim")


def print_columns(
    console: Console,
    noun: str,
    labels: Sequence[str],
    columns: Sequence[tuple[str, Sequence[str]]],
    title: str | None = None,
    keep: int = 0,
) -> None:
    """Print a table of as many whole columns as the window has room for, and name the others.

    Headings are broken into lines here: rich would cut words, and numbers.

    Parameters
    ----------
    console : Console
    noun : str
        What a row is.
    labels : sequence of str (n,)
    columns : sequence of (heading, cells (n,))
    title : str, optional
    keep : int
        Which column goes last.
    """

    def table(shown: list[int]) -> Table:
        made = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        made.add_column(noun, style="bold", no_wrap=True, min_width=len(noun))
        for at in shown:
            made.add_column(_broken(*columns[at]), justify="right", no_wrap=True)
        for row, label in enumerate(labels):
            made.add_row(label, *(columns[at][1][row] for at in shown))
        return made

    shown = list(range(len(columns)))
    while len(shown) > 1 and _width(console, table(shown)) > console.width:
        shown.remove(next(at for at in reversed(shown) if at != keep))
    console.print(table(shown))
    if left_out := [columns[at][0] for at in range(len(columns)) if at not in shown]:
        console.print(FURTHER + ", ".join(left_out) + ".", style="dim", markup=False)


def _width(console: Console, table: Table) -> int:
    """How many letters wide a table is that nothing makes narrower."""
    return table.__rich_measure__(console, console.options).minimum


def _broken(heading: str, cells: Sequence[str]) -> str:
    """A heading in lines about as wide as what stands under it."""
    width = max(HEADING, *map(len, cells), *map(len, heading.split()))
    return "\n".join(textwrap.wrap(heading, width))


def _usual(frame: pd.DataFrame) -> str | None:
    """By what rows are ranked where nobody says: TE, else the first effect, else what there is."""
    return "te" if "te" in frame else tables.rank_by(frame)


def _heading(ds: xr.Dataset, axis: str, column: str) -> str:
    """How a narrow table heads a column, with units where the vocabulary has no word for it."""
    if column in vocabulary.WORDS:
        return vocabulary.word(column).heading
    if tables.split_column(column)[0] not in ds:
        return column
    return described(ds, axis, column, np.zeros(0)).label


def _title(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("title", ds.attrs.get("recipe", "dataset")))


def _print_numbers(ds: xr.Dataset, names: list[str]) -> None:
    """Print what is one number, or one word, of the whole dataset."""
    table = Table(title=_title(ds), box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1, 0, 0))
    for name in names:
        value = ds[name].values
        if value.dtype.kind == "f" and np.isnan(value):
            continue  # an error that no pair has, say
        text = _number(float(value)) if value.dtype.kind in "fiu" else str(value)
        table.add_row(
            vocabulary.word(name).symbol, f"{text} {units(ds, name)}", long_name(ds, name)
        )
    _console().print(table)


def _controls(ds: xr.Dataset) -> int:
    """How many random sets a chosen one has, at most."""
    if "set_kind" not in ds.coords:
        return 0
    return max((int(same.sum()) for _, same in controls_of(ds)), default=0)


def _chosen_sets(ds: xr.Dataset, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The chosen sets alone, with their mean changes and how they compare with the random ones."""
    chosen = frame.index[ds["set_kind"].to_series().reindex(frame.index) == "chosen"]
    frame, more = frame.loc[chosen].copy(), []
    for effect in ("loss_total", "entropy_total"):
        if "effect" not in ds.coords or effect not in ds["effect"].values:
            continue
        name = effect.removesuffix("_total")
        for column, variable in ((f"Δ {name}", "effect_mean"), (f"p({name})", "p_random")):
            if variable not in ds:
                continue
            frame[column] = ds[variable].sel(effect=effect).to_series().reindex(chosen)
            more.append(column)
    return frame, more


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"


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
        try:
            found = find(name)
        except ConfregError as error:  # of a package: the others are well
            console.print(f"[bold]{name}[/bold]  ", end="")
            console.print(str(error), markup=False)
            continue
        console.print(f"[bold]{name}[/bold]  {found.summary}")
        for parameter in found.parameters.values():
            console.print(f"    -p {parameter.describe()}", markup=False)
        for effect in found.effects:
            usual = "" if effect in found.usual else "  (on request)"
            console.print(f"    {effect.name}: {effect.long_name}, {effect.units}{usual}")


def print_checks(checks: Sequence[Check]) -> None:
    """Print one screen, green or a sentence each."""
    console = _console()
    for check in checks:
        mark = "[green]ok[/green]  " if check.ok else "[red]no[/red]  "
        console.print(f"{mark}[bold]{check.name}[/bold]: ", end="")
        console.print(check.sentence, markup=False)
