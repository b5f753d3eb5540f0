"""What the command line prints of models: which are known, verified, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from confreg.models.agreement import Compared
    from confreg.models.model import Description


def _console() -> Console:
    return Console(highlight=False)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def print_models() -> None:
    """Print aliases, the architectures that tests cover, what was verified here, and refusals."""
    from confreg.models import embedded, lookup, own, verified

    console = _console()
    table = _table("Aliases: no Hub needed", ["alias", "model", "licence", "here"])
    for alias, model in embedded.EMBEDDED.items():
        asked = f"confreg fetch {alias}" if model.terms else "fetched when first named"
        here = "yes" if embedded.is_here(alias) else f"{asked}, {model.megabytes} MB"
        table.add_row(alias, model.title, model.licence, here)
    console.print(table)
    rows = lookup.table()
    table = _table("Tested on every neuron, by all engines", list(rows[0]))
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    if mine := own.rows():
        table = _table("Your own: verified by each run", ["architecture", "from"])
        for row in mine.values():
            table.add_row(row.model_type, row.origin)
        console.print(table)
    if records := verified.every():
        headings = ["model", "row", "dtype", "largest difference", "transformers"]
        table = _table("Verified on this machine (confreg verify MODEL)", headings)
        for record in records:
            table.add_row(*_record(record))
        console.print(table)
    table = _table("Refused", ["what", "why"])
    for what, why in lookup.REFUSED:
        table.add_row(what, why)
    console.print(table)
    console.print(
        "Others are tried: a row is derived from what transformers names, and each run verifies "
        "it first. `confreg verify MODEL` tries it alone.",
        style="dim",
    )


def _record(record: dict[str, Any]) -> list[str]:
    from confreg.models import verified

    difference = f"{record['largest']:.0e} nats" if record["ok"] else "differs"
    versions = record["versions"].get("transformers", "?")
    return [verified.title(record), record["row"], record["dtype"], difference, versions]


def print_verified(
    model: Description, found: Sequence[Compared], record: Mapping[str, Any]
) -> None:
    """Print what was compared of a model, and the largest difference of each."""
    from confreg.models import verified

    headings = ["part", "what was compared", "difference", "of at most", ""]
    console = _console()
    said = f"{verified.title(record)}: {model.architecture}, row {record['row']}, {model.dtype}"
    console.print(said, soft_wrap=True)
    table = _table("", headings)
    for one in found:
        if not one.is_compared:
            table.add_row(one.name, one.what, "–", "–", "")
            continue
        said = "ok" if one.ok else "differs" if one.is_finite else "not finite"
        table.add_row(one.name, one.what, f"{one.difference:.1e}", f"{one.largest:.2g}", said)
    console.print(table)
