"""Progress on the terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

from rich import progress as bars
from rich.console import Console

LOGGED = 30.0
"""Seconds between lines where there is no terminal to draw a bar on."""
PATIENCE = 2.0
"""Seconds after which something that has no bar is said."""


class Progress:
    """Bars and lines on stderr; silent when not shown."""

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.console = Console(file=sys.stderr, quiet=not show)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let what is `waiting` be said here."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def say(self, sentence: str) -> None:
        """Print a line."""
        self.console.print(sentence, highlight=False, markup=False)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show that something of unknown length is going on.

        In a log, a line once it takes long.
        """
        if not self.console.is_terminal and not self.console.is_jupyter:
            with self.heard(), waiting(name):
                yield
            return
        with self._bar(bars.SpinnerColumn(), bars.TextColumn("{task.description}")) as bar:
            bar.add_task(name, total=None)
            yield

    @contextmanager
    def bar(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a bar; the function that it yields advances it.

        In a log, a line now and then.
        """
        if not self.console.is_terminal and not self.console.is_jupyter:
            lines = _Lines(self, name, total, unit)
            try:
                yield lines.advance
            finally:
                if not lines.done or lines.said[1] < lines.done:  # else it was just said
                    lines.say()
            return
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
        return bars.Progress(*columns, console=self.console, disable=not self.show)


class _Lines:
    """What a bar shows, in lines."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str) -> None:
        self.progress = progress
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.start = time.monotonic()
        self.said = (self.start, 0)

    def advance(self, by: int) -> None:
        self.done += by
        if time.monotonic() - self.said[0] >= LOGGED:
            self.say()

    def say(self) -> None:
        now = time.monotonic()
        line = f"{self.name}: {self.done:,.0f} of {self.total:,.0f} {self.unit} in "
        line += str(timedelta(seconds=round(now - self.start)))
        # As fast as lately: a resumed run begins with what it found.
        since, done = now - self.said[0], self.done - self.said[1]
        if done and self.done < self.total:
            left = timedelta(seconds=round((self.total - self.done) * since / done))
            line += f", {left} left"
        self.said = (now, self.done)
        self.progress.say(line)


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is being done, if it takes long: ``with waiting("reading x"): ...``.

    Nothing is said where no `Progress` is `Progress.heard`.
    """
    progress = _CURRENT.get()
    if progress is None or not progress.show:
        yield
        return
    timer = threading.Timer(PATIENCE, progress.say, [f"confreg: {what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
