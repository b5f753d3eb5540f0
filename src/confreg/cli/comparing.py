"""What `confreg compare` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from confreg.cli.tables import print_columns
from confreg.report.wording import number, signed

if TYPE_CHECKING:
    import xarray as xr


def print_comparison(ds: xr.Dataset) -> None:
    """Print what was compared, what was left out and why, and a row for each number."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{ds.attrs['title']}[/bold]")
    console.print(f"compared: {ds.attrs['compared']}", markup=False)
    for reason in filter(None, ds.attrs["left_out"].split("; ")):
        console.print(f"left out: {reason}", markup=False, style="dim")
    if "variable" in ds.sizes:
        words = {
            "median_first": "first", "median_second": "second", "rank_correlation": "rank r",
            "top_shared": "top", "top_p": "p(top)", "ks": "KS", "ks_p": "p(KS)",
        }  # fmt: skip
        there = [key for key in words if key in ds]
        _table(console, "number", [words[key] for key in there], [
            (str(name), [number(float(ds[key].values[at])) for key in there])
            for at, name in enumerate(ds["variable"].values)
        ])  # fmt: skip
    if "prediction" in ds.sizes:
        _table(console, "prediction", ["first", "second", "change", "95 %"], [
            (str(name), [
                *(number(float(ds[f"token_mean_{end}"].values[at])) for end in ("first", "second")),
                signed(float(ds["token_mean_change"].values[at])),
                " to ".join(signed(float(ds[f"token_mean_{end}"].values[at]))
                            for end in ("low", "high")),
            ])
            for at, name in enumerate(ds["prediction"].values)
        ])  # fmt: skip


def _table(
    console: Console, noun: str, columns: list[str], rows: list[tuple[str, list[str]]]
) -> None:
    cells = zip(*(cells for _, cells in rows), strict=True)
    print_columns(
        console, noun, [name for name, _ in rows],
        list(zip(columns, map(list, cells), strict=True)),
    )  # fmt: skip
