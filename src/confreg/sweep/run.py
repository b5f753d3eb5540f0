"""The run: from a plan to a complete store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from confreg.axes import Axis, Spans, Variable
from confreg.errors import ConfregError
from confreg.progress import Progress
from confreg.sweep.layout import Layout, as_array, lay_out, resolve
from confreg.sweep.plan import Plan, axes_of
from confreg.sweep.step import Derivation, Step
from confreg.sweep.store import ORDER, Store

SPAN_BYTES = 64_000_000
"""What a derivation's span may read at once, where the budget allows it."""


class Stored(Mapping[str, np.ndarray]):
    """Variables that are in the store, read when they are asked for and kept.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        """One variable, whole."""
        if name not in self._held:
            self._held[name] = self._store.read(name)
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the variables."""
        return iter([*self._store.root.array_keys(), *self._store.hidden.array_keys()])

    def __len__(self) -> int:
        """Return the number of variables."""
        return sum(1 for _ in self)

    def forget(self) -> None:
        """Read anew what is asked for from now on."""
        self._held.clear()


class Run:
    """A plan that is carried out: what the store lacks is done, in order.

    Parameters
    ----------
    plan : Plan
    store : Store
    progress : Progress
    """

    def __init__(self, plan: Plan, store: Store, progress: Progress) -> None:
        self.plan, self.store, self.progress = plan, store, progress
        self.axes: dict[str, Axis] = {}
        self.stored = Stored(store)
        self.changed = False
        shown = [v for item in plan.items for v in item.gives if v.shown]
        self.dims = {dim for variable in shown for dim in variable.dims}

    def execute(self) -> None:
        """Do what the store still lacks, and finish it.

        Raises
        ------
        ConfregError
            The disk is full, a block is not what its step declares, or a sentence of the place.
        """
        for name, item in self.plan.named():
            with self._explained():
                self._label(axes_of(item))
                if isinstance(item, Step):
                    self._step(name, item)
                else:
                    self._derive(name, item)
        if self.changed or not self.store.complete or not self.store.is_sealed:
            self._jobs()
            self.store.finish({**self.plan.attributes, **self._numbers(), ORDER: self._order()})

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error out of the recipe's own code into a sentence."""
        try:
            yield
        except Exception as error:
            said = self.plan.explain(error)
            if said is None:
                raise
            raise said from error

    def _label(self, axes: tuple[Any, ...]) -> None:
        for axis in axes:
            if axis.name not in self.axes:
                known = self.axes[axis.name] = resolve(axis, self.stored)
                if not self._has_labels(known):
                    continue
                if names := self.store.lacks(known):
                    self._begin()
                    self.store.label(known, names)

    def _has_labels(self, axis: Axis) -> bool:
        return axis.kept or axis.name in self.dims

    def _begin(self) -> None:
        """Something is missing: the store is being written from here on."""
        if not self.changed and self.store.complete:
            self.store.reopen()
        self.changed = True
        self.stored.forget()

    def _step(self, name: str, step: Step) -> None:
        layout = lay_out(step, name, self.axes, self.plan.place.budget)
        begun = self.store.cuts(name)
        if begun is not None:  # with another memory budget, perhaps
            layout = Layout(step, name, self.axes, begun)
        self.store.lay_out(layout)
        lost = self.store.mend(layout)
        if lost:
            self.progress.say(
                f"Damaged in {str(self.store.path)!r}, computed again: {', '.join(lost)}."
            )
        done = self.store.done(name)
        todo = [spans for spans in layout.units() if not done[spans.at]]
        if todo:
            self._begin()
            self._measure(layout, todo)
        gathered = [variable for variable in step.gives if variable.gathered_over]
        if todo or not all(self.store.readable(variable) for variable in gathered):
            self._begin()
            self.store.gather(layout)

    def _measure(self, layout: Layout, todo: list[Spans]) -> None:
        step = layout.step

        def make(spans: Spans) -> Any:
            if step.unit is not None:
                return step.unit(spans, self.stored)
            from confreg.effects import Entries

            parts = {name: layout.axes[name].entries(*spans.bounds[name]) for name in spans}
            return Entries(**parts)

        total = sum(spans.size for spans in layout.units())
        things = " × ".join(f"{name}s" for name in layout.cuts) or "unit"
        with self.progress.bar(step.title, total, things) as advance:
            advance(total - sum(spans.size for spans in todo))
            for spans, block in self.plan.place.run(layout, todo, make):
                self.store.write_unit(layout, spans, block)
                advance(spans.size)

    def _derive(self, name: str, item: Derivation) -> None:
        spans = self.store.lay_out_derivation(item, name, self.axes, self._span(item))
        whole = all(self.store.readable(variable) for variable in item.gives)
        if not self.changed and whole and self.store.done(name).all():
            return
        self._begin()
        self.store.forget(name)
        ds = self.store.dataset()
        for number, span in enumerate(spans):
            some = ds if item.by is None else ds.isel({item.by: slice(*span)})
            found = item.compute(some)
            self._check_names(item, found)
            for variable in item.gives:
                values = self._checked(item, variable, found[variable.name], span)
                if item.by is None:
                    self.store.write(variable, values)
                else:
                    self.store.write_span(variable, item.by, slice(*span), values)
            self.store.finish_unit(name, number)

    def _span(self, item: Derivation) -> int:
        """How many entries along `Derivation.by` are computed at once."""
        if item.by is None:
            return 1
        ds = self.store.dataset()
        read = [ds[name] for name in item.reads or ds.data_vars if item.by in ds[name].dims]
        each = sum(array.size * max(array.dtype.itemsize, 8) for array in read)
        each = max(each // max(len(self.axes[item.by]), 1), 1)
        return max(min(SPAN_BYTES, self.plan.place.budget.memory // 4) // each, 1)

    def _check_names(self, item: Derivation, found: Mapping[str, Any]) -> None:
        declared = [variable.name for variable in item.gives]
        if not isinstance(found, Mapping) or sorted(found) != sorted(declared):
            got = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise ConfregError(
                f"The derivation {item.title!r} returned {got or 'nothing'}; declared are "
                f"{', '.join(declared)}."
            )

    def _checked(
        self, item: Derivation, variable: Variable, value: Any, span: tuple[int, int]
    ) -> np.ndarray:
        if isinstance(value, xr.DataArray):
            if sorted(map(str, value.dims)) != sorted(variable.dims):
                raise ConfregError(
                    f"The derivation {item.title!r} returned {variable.name!r} with the dims "
                    f"{value.dims}; declared are {variable.dims}."
                )
            value = value.transpose(*variable.dims).values
        array = as_array(value)
        wanted = tuple(
            span[1] - span[0] if dim == item.by else len(self.axes[dim]) for dim in variable.dims
        )
        if array.shape != wanted:
            raise ConfregError(
                f"The derivation {item.title!r} returned {variable.name!r} of shape {array.shape}; "
                f"its dims {variable.dims} have the sizes {wanted}."
            )
        return array.astype(object if variable.dtype == "str" else variable.dtype)

    def _numbers(self) -> dict[str, str | int | float]:
        """Variables without dims, which are attributes too."""
        found: dict[str, str | int | float] = {}
        for item in self.plan.items:
            for variable in item.gives:
                if variable.kept and not variable.dims:
                    value = self.store.read(variable.name).item()
                    if value != "":
                        found[variable.name] = value
        return found

    def _order(self) -> str:
        """Names of coordinates and variables, as the plan brings them."""
        axes = filter(self._has_labels, self.axes.values())
        labels = [name for axis in axes for name in axis.labels]
        kept = [v.name for item in self.plan.items for v in item.gives if v.shown]
        return " ".join([*labels, *kept])

    def _jobs(self) -> None:
        """Keep what each job of a server has cost."""
        costs = self.plan.place.costs()
        if not costs:
            return
        for variable, values in (
            (Variable("job_id", ("job",), "job on the server", "", "str"), [c.id for c in costs]),
            (
                Variable("job_bytes_up", ("job",), "size of the request", "bytes", "int64"),
                [c.bytes_up for c in costs],
            ),
            (
                Variable("job_bytes_down", ("job",), "size of the result", "bytes", "int64"),
                [c.bytes_down for c in costs],
            ),
            (
                Variable(
                    "job_seconds", ("job",), "the server's own execution time", "seconds", "float64"
                ),
                [c.seconds for c in costs],
            ),
        ):
            self.store.write(variable, values)
