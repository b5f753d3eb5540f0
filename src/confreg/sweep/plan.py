"""What would run: everything that is decided before a weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from confreg.axes import Axis, Later
from confreg.sweep.layout import Layout, itemsize, lay_out, resolve
from confreg.sweep.place import Place
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    from confreg.progress import Progress

Value = str | int | float


class First(Protocol):
    """Something that has to be measured before it is known what an axis holds.

    What it found belongs to the store's configuration, so that a run goes on with the same.
    """

    @property
    def title(self) -> str:
        """What it is called."""
        ...

    def describe(self) -> str:
        """What is measured, in words."""
        ...

    def kept(self, found: Any) -> Any:
        """The same as of `measure`, of what a store's configuration has; None if that is other."""
        ...

    def measure(self, place: Place, progress: Progress) -> Any:
        """Measure it; what it returns is what the plan is made with the second time."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """Steps and derivations in order, and where they run.

    Attributes
    ----------
    title : str
    items : tuple of Step or Derivation
    place : Place
    configuration : mapping
        What a run must share with a store to go on with it.
    attributes : mapping
        Of the dataset, as far as they are known.
    facts : list of (str, str)
        What else a plan says, in words: the model, the text.
    explain : callable
        Turns an exception out of a trace into a sentence, or returns None.
    first : First, optional
        What must be measured before the plan can be made whole: until then it counts with something
        of the same size.
    """

    title: str
    items: tuple[Item, ...]
    place: Place
    configuration: Mapping[str, Any]
    attributes: Mapping[str, Value]
    facts: list[tuple[str, str]] = field(default_factory=list)
    explain: Callable[[Exception], Exception | None] = lambda error: None
    first: First | None = None

    def named(self) -> list[tuple[str, Item]]:
        """The items, each with the name that it has in the store."""
        return [
            (f"{number:02d}_{re.sub(r'[^a-z0-9]+', '_', item.title.lower())}", item)
            for number, item in enumerate(self.items)
        ]

    @property
    def axes(self) -> dict[str, Axis]:
        """Every axis by name; those that are not known yet as they are assumed."""
        found: dict[str, Axis] = {}
        for item in self.items:
            for axis in axes_of(item):
                found.setdefault(axis.name, resolve(axis, None))
        return found

    @property
    def layouts(self) -> list[Layout]:
        """Every step, laid out."""
        axes, budget = self.axes, self.place.budget
        return [
            lay_out(item, name, axes, budget)
            for name, item in self.named()
            if isinstance(item, Step)
        ]

    def layout(self, title: str) -> Layout:
        """One step, laid out.

        Raises
        ------
        KeyError
            There is no such step.
        """
        return {layout.step.title: layout for layout in self.layouts}[title]

    @property
    def passes(self) -> dict[str, float]:
        """How many times each token goes through the model, by step."""
        return {layout.step.title: layout.passes for layout in self.layouts if layout.passes}

    @property
    def bytes_on_disk(self) -> int:
        """Size of the store before compression."""
        axes = self.axes
        derived = sum(
            itemsize(variable.dtype) * int(np.prod([len(axes[dim]) for dim in variable.dims]))
            for item in self.items
            if isinstance(item, Derivation)
            for variable in item.gives
        )
        labels = sum(
            label.values.nbytes for axis in axes.values() for label in axis.labels.values()
        )
        return derived + labels + sum(layout.bytes_on_disk for layout in self.layouts)

    def rows(self) -> list[tuple[str, str]]:
        """The plan in words, row by row."""
        steps = [
            (
                layout.step.title,
                "; ".join(filter(None, (_units(layout), _passes(layout), layout.step.effort))),
            )
            for layout in self.layouts
        ]
        axes = [(axis.name, axis.describe()) for axis in self._worked_along()]
        if self.first is not None:
            axes.append((self.first.title, self.first.describe()))
        budget = self.place.budget
        return [
            *self.facts,
            *axes,
            *steps,
            ("in memory", f"{size(budget.memory)} beside the model"),
            ("on disk", self._on_disk()),
        ]

    def _on_disk(self) -> str:
        """The size of the store, and what of it is nothing but zeros."""
        empty = sum(layout.bytes_on_disk - layout.bytes_filled for layout in self.layouts)
        said = f"{size(self.bytes_on_disk)} before compression"
        if not empty:
            return said
        return (
            f"{said}, of which {size(empty)} where there is nothing: zeros and NaN, which compress "
            "to next to nothing on disk, but not in memory"
        )

    def _worked_along(self) -> list[Axis | Later]:
        found: dict[str, Axis | Later] = {}
        for item in self.items:
            for axis in item.over if isinstance(item, Step) else ():
                found.setdefault(axis.name, axis)
        return list(found.values())


def axes_of(item: Item) -> tuple[Axis | Later, ...]:
    """The axes that an item brings."""
    return (*item.over, *item.along) if isinstance(item, Step) else item.along


def _units(layout: Layout) -> str:
    if not layout.cuts:
        return "1 unit"
    counts = " × ".join(f"{count:,}" for count in layout.counts)
    units = "unit" if all(count == 1 for count in layout.counts) else "units"
    largest = " × ".join(
        f"{max(b - a for a, b in spans):,} {name}s" for name, spans in layout.cuts.items()
    )
    return f"{counts} {units} of up to {largest}"


def _passes(layout: Layout) -> str:
    passes = layout.passes
    text = any(layout.axes[name].whole is not None for name in layout.cuts)
    if not text:
        return f"{passes:,.0f} trace{'s' if passes != 1 else ''}" if passes else "no pass"
    passes = round(passes, 1)
    shown = f"{passes:,.0f}" if passes >= 10 or passes == int(passes) else f"{passes:.1f}"
    return f"each token {shown} time{'s' if shown != '1' else ''} through the model"


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
