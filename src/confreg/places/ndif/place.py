"""An NDIF server, as the place where traces run: units are jobs, several in flight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.axes import Spans
from confreg.errors import ConfregError
from confreg.places.here import read_bytes
from confreg.places.ndif.faults import TooLarge, Transient
from confreg.places.ndif.journal import Journal, journal_path
from confreg.places.ndif.sandbox import refusal
from confreg.sweep.budget import Block, Budget, Cost

if TYPE_CHECKING:
    from confreg.checks import Check
    from confreg.models.network import Network
    from confreg.options import Options
    from confreg.places.ndif.client import Client
    from confreg.places.profiles import NdifProfile
    from confreg.progress import Progress
    from confreg.sweep.layout import Layout
    from confreg.sweep.step import Step

UPLOAD = 50_000
"""What a unit may add to a request: with the block's source that is 100 kB."""


class Ndif:
    """A server, with the clients of the models that run there.

    Parameters
    ----------
    profile : NdifProfile
    options : Options
    model : Network
        Of steps that name none.

    Raises
    ------
    ConfregError
        The model is made by a recipe: a server has only models of the Hub.
    """

    def __init__(self, profile: NdifProfile, options: Options, model: Network) -> None:
        if not model.is_language_model:
            raise ConfregError(
                f"{model.name} is made here, and a server has only language models that it can "
                "load: use --profile memory."
            )
        self.profile, self.options, self.model = profile, options, model
        self.budget = Budget(
            memory=read_bytes(options.memory) or int(profile.memory),
            tokens=options.unit_tokens,
            copies=options.unit_copies,
            upload=UPLOAD,
            dear=True,
        )
        self._clients: dict[int, Client] = {}
        self._stack = ExitStack()
        self._run = ""
        self._journal: Journal | None = None
        self._progress: Progress | None = None
        self._checked: set[int] = set()

    @contextmanager
    def entered(
        self, store: Path, configuration: Mapping[str, Any], progress: Progress
    ) -> Iterator[None]:
        """Write jobs down beside ``store``, and let go of them at the end."""
        self._progress, self._journal = progress, Journal(journal_path(store))
        # The journal of a store that was deleted by hand may be of another configuration.
        self._run = _digest([configuration, self.profile.host])
        with ExitStack() as self._stack:
            yield
        self._clients.clear()

    def _client(self, network: Network) -> Client:
        """The client of a model, connected when it is first asked for.

        Raises
        ------
        ConfregError
            The first thing that would keep the run from working.
        """
        from confreg.places.ndif.client import Client

        if id(network) not in self._clients:
            assert self._progress is not None
            assert self._journal is not None
            model = self._load(network)
            client = Client(self.profile, model, self._journal, self._progress.say)
            self._stack.enter_context(client)
            with self._progress.step(f"asking {client.server.host}"):
                for found in self.check(network):
                    if not found.ok:
                        raise ConfregError(f"{found.name}: {found.sentence}")
            self._clients[id(network)] = client
        return self._clients[id(network)]

    def _load(self, network: Network) -> Any:
        from confreg import models

        if network.loaded is not None:
            return network.loaded
        dtype = self.options.dtype or self.profile.dtype
        return models.load(network.name, dtype=dtype, weights=False)

    def admit(self, step: Step) -> None:
        """Refuse what runs on no server, or reads weights that a sandbox has not."""
        reason = step.here_only or (refusal(step) if self.profile.is_sandboxed else "")
        if reason:
            raise ConfregError(reason)

    def check(self, network: Network) -> list[Check]:
        """Whether the server is there and can run the model, one sentence a thing."""
        from confreg.places.ndif import check

        return check.check(self.profile, network.name)

    def costs(self) -> list[Cost]:
        """What each job of this run has cost."""
        if self._journal is None:
            return []
        return [c for c in self._journal.costs() if c.key.startswith(f"{self._run}:")]

    def run(
        self, layout: Layout, units: list[Spans], make: Callable[[Spans], Any]
    ) -> Iterator[tuple[Spans, Block]]:
        """Run units, several at once, and yield each with its block as it arrives.

        A unit counts as stored when the next one is asked for.
        """
        networks = layout.step.models or (self.model,)
        clients = [self._client(network) for network in networks]
        work = _Work(clients, layout, make, self._name(layout))
        flying: dict[Future[Block], Spans] = {}
        left = iter(units)
        width = self.profile.jobs_in_flight
        pool = ThreadPoolExecutor(width, thread_name_prefix="confreg-job")
        try:
            while True:
                while len(flying) < width and (spans := next(left, None)) is not None:
                    flying[pool.submit(work.unit, spans)] = spans
                if not flying:
                    return
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    spans = flying.pop(future)
                    block = future.result()
                    self._check_dtype(networks, clients)
                    yield spans, block
                    work.stored(spans)
        except BaseException:
            # Also on Ctrl-C: nothing more is submitted, and nothing is waited for.
            for client in clients:
                client.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _name(self, layout: Layout) -> str:
        """Names a step's units: the same work on the same server has the same name."""
        cuts = {name: list(spans) for name, spans in layout.cuts.items()}
        return f"{self._run}:{layout.name}:{_digest(cuts)}"

    def _check_dtype(self, networks: tuple[Network, ...], clients: list[Client]) -> None:
        """Once, when the model surely runs: it must run in the dtype that the dataset names."""
        for network, client in zip(networks, clients):
            if id(network) in self._checked:
                continue
            wanted = network.about.dtype
            try:
                found = client.dtype()
            except Transient:  # the server is busy with something else: after the next unit
                continue
            self._checked.add(id(network))
            if found is not None and found != wanted:
                raise ConfregError(
                    f"{client.server.host} runs {network.name} in {found}, and this run "
                    f"is in {wanted}. Set the dtype: -P dtype={found} (or --dtype {found})."
                )


class _Work:
    """The units of one step as jobs."""

    def __init__(
        self,
        clients: list[Client],
        layout: Layout,
        make: Callable[[Spans], Any],
        name: str,
    ) -> None:
        self.clients, self.layout, self.make, self.name = clients, layout, make, name

    def key(self, spans: Spans, number: int) -> str:
        """Names a unit in the journal."""
        of_model = f":{number}" if len(self.clients) > 1 else ""
        return f"{self.name}:{spans.key}{of_model}"

    def stored(self, spans: Spans) -> None:
        """Say that a unit's block is in the store."""
        for number, client in enumerate(self.clients):
            client.stored(self.key(spans, number))

    def unit(self, spans: Spans) -> Block:
        """One unit's block; of its halves, where the server cannot do it at once."""
        import torch

        try:
            # Gradient mode is a thread's own.
            with torch.no_grad():
                models = [c.unit(self.key(spans, i)) for i, c in enumerate(self.clients)]
                given = tuple(models) if self.layout.step.models else models[0]
                return self.layout.check(self.layout.step.trace(given, self.make(spans)), spans)
        except TooLarge as error:
            parts = self.layout.halves(spans)
            if parts is None:
                raise ConfregError(
                    f"{error} Halving the unit {len(spans.part) // 2} times did not help: lower "
                    "`memory` or raise `max_result` in the profile, or ask for fewer tokens."
                ) from error
            self.clients[0].report(f"{error} Splitting {spans.key}.")
        first, second, axis = parts
        return self.layout.join(self.unit(first), self.unit(second), axis)


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:12]
