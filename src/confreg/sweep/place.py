"""All that the sweep knows of where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from confreg.axes import Spans
from confreg.sweep.budget import Block, Budget, Cost

if TYPE_CHECKING:
    from confreg.checks import Check
    from confreg.models.network import Network
    from confreg.progress import Progress
    from confreg.sweep.layout import Layout
    from confreg.sweep.step import Step


class Place(Protocol):
    """Where traces run."""

    budget: Budget
    model: Network

    def entered(
        self, store: Path, configuration: Mapping[str, Any], progress: Progress
    ) -> AbstractContextManager[None]:
        """Use the place for a run that writes ``store``, which has this configuration."""
        ...

    def admit(self, step: Step) -> None:
        """Refuse a step that cannot run here, before anything runs.

        Raises
        ------
        ConfregError
            Why it cannot, and what can be done instead.
        """
        ...

    def check(self, network: Network) -> list[Check]:
        """What a run of this model needs here, one sentence a thing."""
        ...

    def run(
        self, layout: Layout, units: list[Spans], make: Callable[[Spans], Any]
    ) -> Iterator[tuple[Spans, Block]]:
        """Run units of a step and yield each with its block, as `Layout.check` returns it.

        ``make(spans)`` is what a unit carries to the model.

        A unit counts as stored when the next one is asked for.
        """
        ...

    def costs(self) -> list[Cost]:
        """What each job has cost; nothing where there are no jobs."""
        ...
