"""Progress on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console


class Progress:
    """Bars and lines on stderr; silent when not shown."""

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.console = Console(file=sys.stderr, quiet=not show)

    def say(self, sentence: str) -> None:
        """Print a line."""
        self.console.print(sentence, highlight=False, markup=False)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show that something of unknown length is going on."""
        with self._bar(bars.SpinnerColumn(), bars.TextColumn("{task.description}")) as bar:
            bar.add_task(name, total=None)
            yield

    @contextmanager
    def bar(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a bar; the function that it yields advances it."""
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
        )
        with self._bar(*columns) as bar:
            task = bar.add_task(name, total=total)

            def advance(by: int) -> None:
                bar.advance(task, by)

            yield advance

    def _bar(self, *columns: bars.ProgressColumn) -> bars.Progress:
        # Not a terminal (a log, a notebook's stderr): the last state only.
        return bars.Progress(*columns, console=self.console, disable=not self.show)
