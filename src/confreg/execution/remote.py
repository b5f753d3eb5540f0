"""Units of work as jobs of an NDIF server: several in flight, split where they are too large."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from confreg import effects
from confreg.errors import ConfregError
from confreg.execution import batches
from confreg.execution.plan import CLOSED_FORMS, Plan
from confreg.places.ndif.faults import TooLarge, Transient
from confreg.places.ndif.journal import journal_path
from confreg.places.profiles import NdifProfile

if TYPE_CHECKING:
    from confreg.models import Model
    from confreg.places.ndif.client import Client
    from confreg.places.ndif.journal import Cost
    from confreg.progress import Progress

# A unit that fails in so many halvings is too large for a reason that halving does not mend.
HALVINGS = 6


class Remote:
    """A run's connection to its server.

    Parameters
    ----------
    plan : Plan
    client : Client
    """

    def __init__(self, plan: Plan, client: Client):
        self.plan, self.client = plan, client
        self.run = _digest(plan)
        self.checked = False

    def model(self, key: str) -> Model:
        """The model whose traces are jobs, known to the journal under ``key``."""
        return self.client.unit(f"{self.run}:{key}")

    def stored(self, key: str) -> None:
        """Say that what ``key`` stood for is in the store."""
        self.client.stored(f"{self.run}:{key}")

    def costs(self) -> list[Cost]:
        """What each job of this run has cost."""
        return [c for c in self.client.journal.costs() if c.key.startswith(f"{self.run}:")]

    def measure(
        self, todo: list[tuple[int, int]], values: np.ndarray | None
    ) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """Run units, several at once, and yield each with its block as it arrives.

        A unit counts as stored when the next one is asked for.
        """
        flying: dict[Future[dict[str, Any]], tuple[int, int]] = {}
        left = iter(todo)
        pool = ThreadPoolExecutor(self._width, thread_name_prefix="confreg-job")
        try:
            while self._launch(pool, flying, left, values):
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    i, j = flying.pop(future)
                    block = future.result()
                    self._check_dtype()
                    yield (i, j), block
                    self.stored(f"{i}.{j}")
        except BaseException:
            # Also on Ctrl-C: nothing more is submitted, and nothing is waited for.
            self.client.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def _width(self) -> int:
        return self.client.profile.jobs_in_flight

    def _launch(
        self,
        pool: ThreadPoolExecutor,
        flying: dict[Future[dict[str, Any]], tuple[int, int]],
        left: Iterator[tuple[int, int]],
        values: np.ndarray | None,
    ) -> bool:
        """Keep as many units in flight as allowed; say whether any is."""
        while len(flying) < self._width and (unit := next(left, None)) is not None:
            batch = batches.make_batch(self.plan, *unit, values)
            flying[pool.submit(self._unit, f"{unit[0]}.{unit[1]}", batch)] = unit
        return bool(flying)

    def _unit(self, key: str, batch: effects.Batch, halvings: int = 0) -> dict[str, Any]:
        """One unit's block; of its halves, where the server cannot do it at once."""
        measure = self.plan.request.recipe.measure
        try:
            # Gradient mode is a thread's own.
            with torch.no_grad():
                return measure(self.model(key), batch, **self.plan.parameters)
        except TooLarge as error:
            parts = halves(batch)
            if parts is None or halvings == HALVINGS:
                raise ConfregError(
                    f"{error} Halving the unit {halvings} times did not help: lower `memory` or "
                    "raise `max_result` in the profile, or ask for fewer tokens."
                ) from error
            self.client.report(f"{error} Splitting {key}.")
        first, second = (
            self._unit(f"{key}.{n}", part, halvings + 1) for n, part in enumerate(parts)
        )
        if len(parts[0].positions) < len(batch.positions):
            return join(first, second, along="token")
        single = batch.sets is None and batch.heads is None
        return join(first, second, along="neuron" if single else "set")

    def _check_dtype(self) -> None:
        """Once, when the model surely runs: it must run in the dtype that the dataset names."""
        if self.checked:
            return
        wanted = self.plan.configuration()["dtype"]
        try:
            found = self.client.dtype()
        except Transient:  # the server is busy with something else: after the next unit
            return
        self.checked = True
        if found is not None and found != wanted:
            raise ConfregError(
                f"{self.client.server.host} runs {self.plan.model.name} in {found}, and this run "
                f"is in {wanted}. Set the dtype: -P dtype={found} (or --dtype {found})."
            )


@contextmanager
def connect(plan: Plan, model: Model, store: Path, progress: Progress) -> Iterator[Remote]:
    """Check the plan's server and connect to it.

    Raises
    ------
    ConfregError
        The first thing that would keep the run from working.
    """
    from confreg.places.ndif import check
    from confreg.places.ndif.client import Client

    assert isinstance(plan.profile, NdifProfile)
    with Client(plan.profile, model, journal_path(store), progress.say) as client:
        with progress.step(f"asking {client.server.host}"):
            for found in check.check(plan.profile, plan.request.model):
                if not found.ok:
                    raise ConfregError(f"{found.name}: {found.sentence}")
        yield Remote(plan, client)


def halves(batch: effects.Batch) -> tuple[effects.Batch, effects.Batch] | None:
    """A batch in two, or None where it cannot be cut.

    Closed forms are cut between sequences, which halves the pass, too; other batches, and
    those whose ablation value is found over all of their tokens, between neurons.
    """
    if batch.engine in CLOSED_FORMS and batch.values is not None and batch.rows > 1:
        return _cut_rows(batch, batch.rows // 2)
    if batch.count() > 1:
        return _cut_neurons(batch, batch.count() // 2)
    return None


def _cut_neurons(batch: effects.Batch, at: int) -> tuple[effects.Batch, effects.Batch]:
    first, second = copy.copy(batch), copy.copy(batch)
    for part, where in ((first, slice(None, at)), (second, slice(at, None))):
        if batch.heads is not None:
            part.heads = batch.heads[where]
        elif batch.sets is not None and batch.set_values is not None:
            part.sets, part.set_values = batch.sets[where], batch.set_values[where]
            part.set_sides = None if batch.set_sides is None else batch.set_sides[where]
        else:
            part.neurons = batch.neurons[where]
            part.values = None if batch.values is None else batch.values[where]
        part.sample = -(-batch.sample // 2)
        if batch.engine not in CLOSED_FORMS:
            part.inputs = batch.inputs[: batch.rows].repeat(1 + part.count(), 1)
    return first, second


def _cut_rows(batch: effects.Batch, at: int) -> tuple[effects.Batch, effects.Batch]:
    first, second = copy.copy(batch), copy.copy(batch)
    row = batch.positions // batch.inputs.shape[1]
    for part, inside, rows in (
        (first, row < at, slice(None, at)),
        (second, row >= at, slice(at, None)),
    ):
        part.inputs = batch.inputs[rows]
        part.rows = len(part.inputs)
        part.positions = batch.positions[inside] - (rows.start or 0) * batch.inputs.shape[1]
        part.targets, part.keep = batch.targets[inside], batch.keep[inside]
        part.over = None if batch.over is None else batch.over[inside]
        part.wanted = None if batch.wanted is None else batch.wanted[inside]
        part.sample = -(-batch.sample // 2)
    return first, second


_NEURON_FIRST = (
    "effects", "activation", "values", "abs_sum", "sum", "activation_change", "change_abs_sum",
    "change_sum",
)  # fmt: skip
_OF_NEURONS = ("activation", "values")  # whatever is ablated
_PER_PAIR = ("effects", "activation")
_ADDED = ("pairs", "recomputed", "sampled", "error_sum")


def join(first: dict[str, Any], second: dict[str, Any], along: str) -> dict[str, Any]:
    """The block of a batch from those of its `halves`, cut ``along`` neurons, sets or tokens."""
    joined = dict(first)
    for name, value in first.items():
        other = second[name]
        if name in _ADDED:
            joined[name] = value + other
        elif name == "error_max":
            joined[name] = torch.maximum(value, other)
        elif along != "token":
            cut = name in _NEURON_FIRST and (along == "neuron" or name not in _OF_NEURONS)
            joined[name] = torch.cat([value, other]) if cut else value
        elif name in _PER_PAIR:
            joined[name] = torch.cat([value, other], dim=1)
        elif name in ("abs_sum", "sum", "kept"):
            joined[name] = value + other
        elif name != "values":
            joined[name] = torch.cat([value, other])
    return joined


def _digest(plan: Plan) -> str:
    """Names a plan's units: the same work on the same server has the same name."""
    assert isinstance(plan.profile, NdifProfile)
    said = [plan.configuration(), plan.neuron_units, plan.token_units, plan.profile.host]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:12]
