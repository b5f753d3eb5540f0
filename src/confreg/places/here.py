"""This process, as the place where traces run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.axes import Spans
from confreg.errors import ConfregError
from confreg.models.host import available_memory
from confreg.models.network import traceable
from confreg.places.surroundings import TRACING
from confreg.sweep.budget import Block, Budget, Cost

if TYPE_CHECKING:
    from confreg.checks import Check
    from confreg.models.network import Network
    from confreg.options import Options
    from confreg.places.profiles import LocalProfile
    from confreg.progress import Progress
    from confreg.sweep.layout import Layout
    from confreg.sweep.step import Step


class Here:
    """In memory, or offloaded by accelerate.

    Parameters
    ----------
    profile : LocalProfile
    options : Options
    model : Network
        Of steps that name none.
    """

    def __init__(self, profile: LocalProfile, options: Options, model: Network) -> None:
        self.profile, self.options, self.model = profile, options, model
        self.budget = Budget(
            # Placing a model fills at most 0.6 of what is free.
            memory=read_bytes(options.memory) or available_memory() // 4,
            tokens=options.unit_tokens,
            copies=options.unit_copies,
            dear=profile.device_map is not None,
        )
        self._loaded: dict[int, Any] = {}
        self._progress: Progress | None = None

    @contextmanager
    def entered(
        self, store: Path, configuration: Mapping[str, Any], progress: Progress
    ) -> Iterator[None]:
        """Show what is loaded meanwhile."""
        self._progress = progress
        yield

    def load(self, network: Network) -> Any:
        """A model, loaded where the profile says when it is first asked for."""
        if id(network) not in self._loaded:
            if network.loaded is not None:
                self._loaded[id(network)] = network.loaded
            elif self._progress is None:
                self._loaded[id(network)] = self._read(network)
            else:
                with self._progress.step(f"loading {network.name}"):
                    self._loaded[id(network)] = self._read(network)
        return self._loaded[id(network)]

    def _read(self, network: Network) -> Any:
        from confreg import models
        from confreg.models import fingerprint

        if network.make is not None:
            return traceable(network.make()).loaded
        dtype = self.options.dtype or self.profile.dtype
        model = models.load(
            network.name, self.profile.placement(), dtype, described=network.about,
            adapter=network.adapter,
        )  # fmt: skip
        if network.fingerprint:
            fingerprint.check(network, network.fingerprint)
        return model

    def run(
        self, layout: Layout, units: list[Spans], make: Callable[[Spans], Any]
    ) -> Iterator[tuple[Spans, Block]]:
        """Run units one after the other."""
        models = tuple(self.load(network) for network in layout.step.models or (self.model,))
        given = models if layout.step.models else models[0]
        for spans in units:
            unit = make(spans)
            with TRACING:
                found = layout.step.trace(given, unit)
            yield spans, layout.check(found, spans)

    def admit(self, step: Step) -> None:
        """Every step can run here."""

    def check(self, network: Network) -> list[Check]:
        """How the model is placed, one sentence a thing."""
        return self.profile.placement().report(network.about)

    def costs(self) -> list[Cost]:
        """What each job has cost: there are none."""
        return []


def read_bytes(size: int | str | None) -> int | None:
    """A size in bytes: ``2000000000`` or ``"2GB"``.

    Raises
    ------
    ConfregError
        Not a size.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    if size is None:
        return None
    try:
        read = int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        read = 0
    if read <= 0:
        raise ConfregError(f"--memory is a size such as 2GB or 500MB, not {size!r}.")
    return read
