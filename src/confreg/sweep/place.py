"""All that the sweep knows of where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from confreg.axes import Spans

if TYPE_CHECKING:
    from confreg.checks import Check
    from confreg.models.network import Network
    from confreg.progress import Progress
    from confreg.sweep.layout import Layout

Block = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What one unit of work may take.

    Attributes
    ----------
    memory : int
        Bytes beside the model.
    tokens : int
        Tokens of a unit where a pass is cheap: some ten seconds of work, which is what a bar
        advances by and what a killed run loses.
    copies : int
        Copies of the text in one pass, at most.
    upload : int or None
        Bytes that a request may carry beside its tokens; None where there are no requests.
    dear : bool
        Whether a pass is dear (weights come from the disk, or it is a request), so that as much
        text as fits shares it.
    """

    memory: int
    tokens: int = 512
    copies: int = 16
    upload: int | None = None
    dear: bool = False


@dataclass(frozen=True)
class Cost:
    """What a job whose result was collected has cost.

    Attributes
    ----------
    id, key : str
        The server's, and the unit's.
    bytes_up, bytes_down : int
        Size of the request and of the result, as sent.
    seconds : float
        Execution time that the server reported; NaN where it did not.
    waited : float
        Seconds from submission to result.
    """

    id: str
    key: str
    bytes_up: int
    bytes_down: int
    seconds: float
    waited: float


class Place(Protocol):
    """Where traces run."""

    budget: Budget

    def entered(
        self, store: Path, configuration: Mapping[str, Any], progress: Progress
    ) -> AbstractContextManager[None]:
        """Use the place for a run that writes ``store``, which has this configuration."""
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
