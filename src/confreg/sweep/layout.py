"""A step laid out: its axes cut into units that fit a budget, and what becomes of their blocks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from confreg.axes import Axis, Later, Span, Spans, Variable
from confreg.errors import ConfregError
from confreg.sweep.budget import Block, Budget
from confreg.sweep.step import Step

HALVINGS = 6
"""A unit that is too large in so many halvings is so for a reason that halving does not mend."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A step whose axes are known, cut into units.

    Attributes
    ----------
    step : Step
    name : str
        Of the step among those of its run.
    axes : dict of str to Axis
        All that its variables may have.
    cuts : dict of str to list of (start, stop)
        The units along each axis along which it works.
    """

    step: Step
    name: str
    axes: Mapping[str, Axis]
    cuts: Mapping[str, list[Span]]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many units there are along each axis."""
        return tuple(len(spans) for spans in self.cuts.values())

    def units(self) -> list[Spans]:
        """Every unit; those that differ along the first axis follow each other."""
        places = itertools.product(*(range(count) for count in reversed(self.counts)))
        return [self.unit(place[::-1]) for place in places]

    def unit(self, at: tuple[int, ...]) -> Spans:
        """One unit, by its number along each axis."""
        bounds = {name: spans[i] for (name, spans), i in zip(self.cuts.items(), at)}
        number = int(np.ravel_multi_index(at, self.counts)) if at else 0
        return Spans(bounds, at, number, int(np.prod(self.counts, dtype=int)))

    def shape(self, variable: Variable, spans: Spans | None = None) -> tuple[int, ...]:
        """Shape of a variable, or of one unit's part of it."""
        bounds = {} if spans is None else spans.bounds
        return tuple(
            bounds[dim][1] - bounds[dim][0] if dim in bounds else len(self.axes[dim])
            for dim in variable.dims
        )

    def chunk(self, variable: Variable) -> tuple[int, ...]:
        """Shape of the largest unit's part of a variable."""
        longest = {
            name: max(stop - start for start, stop in spans) for name, spans in self.cuts.items()
        }
        return tuple(max(longest.get(dim, len(self.axes[dim])), 1) for dim in variable.dims)

    def is_written(self, variable: Variable, spans: Spans) -> bool:
        """Whether a unit's part is written: where units give the same, only the first's is."""
        lacked = [
            name for name in self.cuts if name not in (*variable.dims, *variable.gathered_over)
        ]
        return all(spans.bounds[name][0] == self.cuts[name][0][0] for name in lacked)

    def check(self, block: Mapping[str, Any], spans: Spans) -> Block:
        """A unit's block as arrays, held against what the step declares.

        Raises
        ------
        ConfregError
            An array that nobody declared, one that is missing, or one of another shape or type.
        """
        declared = ", ".join(f"{v.name} {v.dims}" for v in self.step.gives)
        if not isinstance(block, Mapping):
            raise ConfregError(
                f"The trace of {self.step.title!r} returned {type(block).__name__}; it returns a "
                f"dict with an array for each of: {declared}."
            )
        for name in block:
            if name not in [variable.name for variable in self.step.gives]:
                raise ConfregError(
                    f"The trace of {self.step.title!r} returned {name!r}, which is not declared; "
                    f"declared are: {declared}."
                )
        found = {}
        for variable in self.step.gives:
            if variable.name in block:
                found[variable.name] = self._checked(variable, block[variable.name], spans)
            elif self.is_written(variable, spans):
                raise ConfregError(
                    f"The trace of {self.step.title!r} returned no {variable.name!r}; it returned "
                    f"{', '.join(block) or 'nothing'}, and declared are: {declared}."
                )
        if self.step.check is not None:
            self.step.check(found, spans)
        return found

    def _checked(self, variable: Variable, value: Any, spans: Spans) -> np.ndarray:
        array = as_array(value)
        wanted = self.shape(variable, spans)
        if array.shape != wanted:
            raise ConfregError(
                f"The trace of {self.step.title!r} returned {variable.name!r} of shape "
                f"{array.shape}; its dims {variable.dims} have the sizes {wanted} in this unit."
            )
        if not np.can_cast(array.dtype, variable.dtype, casting="same_kind"):
            raise ConfregError(
                f"The trace of {self.step.title!r} returned {variable.name!r} as {array.dtype}, "
                f"which is not to be made {variable.dtype}."
            )
        with np.errstate(over="ignore"):
            found = array.astype(variable.dtype, copy=False)
        if found.dtype.itemsize < array.dtype.itemsize and _overflows(array, found):
            raise ConfregError(
                f"{variable.name!r} has values up to {np.abs(array[np.isfinite(array)]).max():.3g},"
                f" more than {variable.dtype} holds: write it in a wider type."
            )
        return found

    def halves(self, spans: Spans) -> tuple[Spans, Spans, str] | None:
        """A unit in two, and the axis along which; None where it cannot be cut.

        Text is cut first, since half of the text is half of the work.
        """
        places = [(name, self._middle(name, span)) for name, span in spans.bounds.items()]
        possible = [(name, at) for name, at in places if at is not None]
        if not possible or len(spans.part) >= 2 * HALVINGS:
            return None
        name, at = min(possible, key=lambda found: self.axes[found[0]].whole is None)
        start, stop = spans.bounds[name]
        first, second = (
            replace(
                spans,
                bounds={**spans.bounds, name: bounds},
                share=spans.share / 2,
                part=f"{spans.part}.{number}",
            )
            for number, bounds in enumerate(((start, at), (at, stop)))
        )
        return first, second, name

    def _middle(self, name: str, span: Span) -> int | None:
        """Where a span of an axis is cut in two."""
        start, stop = span
        if name in self.step.uncut or stop - start < 2:
            return None
        whole = self.axes[name].whole
        if whole is None:
            return start + (stop - start) // 2
        begins = start + 1 + np.flatnonzero(np.diff(whole[start:stop]))
        return int(begins[(len(begins) - 1) // 2]) if len(begins) else None

    def join(self, first: Block, second: Block, axis: str) -> Block:
        """The block of a unit from those of its `halves`, which were cut along ``axis``."""
        joined = {}
        for variable in self.step.gives:
            if variable.name not in first:
                continue
            one = first[variable.name]
            if axis in variable.dims:
                both = [one, second[variable.name]]
                one = np.concatenate(both, variable.dims.index(axis))
            elif axis in variable.gathered_over:
                one = variable.gather(one, second[variable.name])
            joined[variable.name] = one
        return joined

    @property
    def passes(self) -> float:
        """How many times each token goes through the model: units × their cost, by text."""
        text = [name for name in self.cuts if self.axes[name].whole is not None]
        total = 0.0
        for spans in self.units():
            cost = 1.0 if self.step.cost is None else self.step.cost(spans)
            share = [
                (spans.bounds[name][1] - spans.bounds[name][0]) / len(self.axes[name])
                for name in text
            ]
            total += cost * float(np.prod(share))
        return total

    @property
    def bytes_on_disk(self) -> int:
        """Size of what the step writes, before compression."""
        return sum(map(self._bytes, self.step.gives))

    @property
    def bytes_filled(self) -> int:
        """The same without tokens at which entries have nothing of their own: see `Axis.filled`."""
        return sum(int(self._bytes(each) * self._filled(each)) for each in self.step.gives)

    def _bytes(self, variable: Variable) -> int:
        parts = [len(self.cuts[name]) for name in variable.gathered_over]
        entries = int(np.prod([*parts, *self.shape(variable)], dtype=np.int64))
        return entries * itemsize(variable.dtype)

    def _filled(self, variable: Variable) -> float:
        axes = [self.axes[name] for name in variable.dims]
        has_text = any(axis.whole is not None for axis in axes)
        return min(axis.filled for axis in axes) if has_text else 1.0


def _overflows(array: np.ndarray, narrow: np.ndarray) -> bool:
    """Whether a number that was finite is no longer."""
    return narrow.dtype.kind == "f" and bool((np.isinf(narrow) & np.isfinite(array)).any())


def itemsize(dtype: str) -> int:
    """Bytes of a value; text is counted with eight."""
    return 8 if dtype == "str" else np.dtype(dtype).itemsize


def as_array(value: Any) -> np.ndarray:
    """A tensor, a number or an array as an array; bfloat16, which numpy lacks, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def resolve(axis: Axis | Later, stored: Mapping[str, np.ndarray] | None) -> Axis:
    """An axis as it is known: where ``stored`` is None, as it is assumed."""
    if isinstance(axis, Axis):
        return axis
    return axis.assumed if stored is None else axis.known(stored)


def lay_out(step: Step, name: str, axes: Mapping[str, Axis], budget: Budget) -> Layout:
    """Cut a step's axes into units.

    Parameters
    ----------
    axes : mapping of str to Axis
        Every axis that is known, by name.
    """
    most = {} if step.most is None else step.most(budget)
    cuts = {}
    for each in step.over:
        axis = axes[each.name]
        usual = len(axis) if axis.whole is None or budget.dear else budget.tokens
        cuts[axis.name] = cut(axis, most.get(axis.name, usual))
    return Layout(step, name, axes, cuts)


def cut(axis: Axis, most: int) -> list[Span]:
    """Spans of an axis of at most ``most`` entries, or one indivisible run of them."""
    most = max(int(most), 1)
    if len(axis) == 0:
        return [(0, 0)]
    alike = [(0, len(axis))] if axis.together is None else _runs(axis.together)
    spans = []
    for start, stop in alike:
        if axis.whole is not None:
            runs = _runs(axis.whole[start:stop])
            spans += [(start + a, start + b) for a, b in _packed(runs, most)]
            continue
        count = -(-(stop - start) // most)
        size = -(-(stop - start) // count)
        spans += [(a, min(a + size, stop)) for a in range(start, stop, size)]
    return spans


def _runs(values: np.ndarray) -> list[Span]:
    """Spans of equal values."""
    edges = [0, *(1 + np.flatnonzero(values[1:] != values[:-1])).tolist(), len(values)]
    return list(itertools.pairwise(edges))


def _packed(runs: list[Span], most: int) -> list[Span]:
    """Runs side by side put together as long as they are of at most ``most`` entries."""
    spans = [runs[0]]
    for start, stop in runs[1:]:
        begin = spans[-1][0]
        if stop - begin <= most:
            spans[-1] = (begin, stop)
        else:
            spans.append((start, stop))
    return spans
