"""Axes and variables: the words in which a recipe says what it works along and what it gives.

>>> alphas = Axis.of("alpha", [0.0, 1.0, 4.0], "multiple of the direction that is added")
>>> Variable("shift", ("alpha", "token"), "change of the norm's scale")

A variable's dims say everything that happens to it. Over an axis of its step that it has, each
unit of work writes its own part; over one that it lacks, the units' parts are added
(``added_over``), or the largest counts (``largest_over``), or they are all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from confreg.errors import ConfregError

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Label:
    """A coordinate.

    Attributes
    ----------
    values : array_like
        One value an entry; kept as an array, text as objects.
    long_name : str
    units : str
        Empty for labels that are no quantity.
    dims : tuple of str
        By default the axis that the label belongs to.
    kind : str
        Of an index: what its axis is to a page, ``"subject"``, ``"text"``, ``"quantity"`` or
        ``"other"``. By default that is told from the labels.
    """

    values: Any
    long_name: str
    units: str = ""
    dims: tuple[str, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        """Text as plain objects, numbers as they are."""
        values = np.asarray(self.values)
        object.__setattr__(self, "values", values.astype(object) if _is_text(values) else values)

    @property
    def attributes(self) -> dict[str, str]:
        """What the coordinate carries in a dataset."""
        unit = {"units": self.units} if self.units else {}
        kind = {"axis_kind": self.kind} if self.kind else {}
        return {"long_name": self.long_name, **unit, **kind}


def _is_text(values: np.ndarray) -> bool:
    return values.dtype.kind in "OUT"


@dataclass(frozen=True, eq=False)
class Axis:
    """A labelled dimension.

    Attributes
    ----------
    name : str
        Of the dimension: ``"neuron"``, ``"latent"``, ``"image"``.
    labels : mapping of str to Label
        Coordinates along it; the first has the axis's own name and is its index.
    entries : callable, optional
        ``entries(start, stop)``: a span of the axis as what travels to the model. By default the
        index's values.
    together : ndarray (n,), optional
        Entries of different value never share a unit of work (layers). Equal values lie side by
        side.
    whole : ndarray (n,), optional
        Entries of one value are not cut apart (sequences). Equal values lie side by side.
    says : str
        How many, and of what, in words for a plan; by default the number.
    kept : bool
        Whether the dataset has its labels though no variable of the dataset has the axis.
    filled : float
        At which share of a text's tokens an entry has numbers that are not all the same, for what a
        plan says of sizes.

    Raises
    ------
    ConfregError
        The first label is not the axis's own, or labels differ in length.
    """

    name: str
    labels: Mapping[str, Label]
    entries: Callable[[int, int], Any] = None  # type: ignore[assignment]
    together: np.ndarray | None = None
    whole: np.ndarray | None = None
    says: str = ""
    kept: bool = True
    filled: float = 1.0

    is_known = True

    def __post_init__(self) -> None:
        """Check the labels."""
        if not self.name.isidentifier():
            raise ConfregError(f"An axis needs a name that is an identifier, not {self.name!r}.")
        if not self.labels or next(iter(self.labels)) != self.name:
            raise ConfregError(
                f"The first label of axis {self.name!r} must be {self.name!r}, its index; there "
                f"are {', '.join(self.labels) or 'none'}."
            )
        for name, label in self.labels.items():
            if label.dims in ((), (self.name,)) and len(label.values) != len(self):
                raise ConfregError(
                    f"Label {name!r} of axis {self.name!r} has {len(label.values)} values for "
                    f"{len(self)} entries."
                )
        if self.entries is None:
            object.__setattr__(self, "entries", lambda start, stop: self.index[start:stop])

    @classmethod
    def of(
        cls,
        name: str,
        values: Sequence[Any] | np.ndarray,
        long_name: str,
        units: str = "",
        entries: Callable[[int, int], Any] | None = None,
        **labels: Label,
    ) -> Axis:
        """Make an axis from the values of its index, and further labels by name."""
        index = Label(np.asarray(values), long_name, units)
        return cls(name, {name: index, **labels}, entries)  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.labels[self.name].values) if self.labels else 0

    @property
    def index(self) -> np.ndarray:
        """Values of the index, (n,)."""
        return self.labels[self.name].values

    def describe(self) -> str:
        """How many, and of what, in words."""
        return self.says or f"{len(self):,}"


@dataclass(frozen=True, eq=False)
class Later:
    """An axis that is known once earlier steps are stored.

    Attributes
    ----------
    name : str
    known : callable
        ``known(stored) -> Axis``, where ``stored`` maps names of variables to arrays.
    assumed : Axis
        What a plan counts with until then.
    """

    name: str
    known: Callable[[Mapping[str, np.ndarray]], Axis]
    assumed: Axis

    is_known = False

    def describe(self) -> str:
        """How many, and of what, in words."""
        return self.assumed.describe()


@dataclass(frozen=True)
class Variable:
    """A named array that a step gives, or a derivation.

    Attributes
    ----------
    name : str
    dims : tuple of str
        Names of axes. A variable without dims is a number, and an attribute of the dataset too.
    long_name : str
        What a plot's axis says.
    units : str
        ``"nats"``, or ``"1"`` for pure numbers; empty for labels.
    dtype : str
        A numpy dtype, or ``"str"``.
    added_over, largest_over : tuple of str
        Axes of its step that it lacks, over which the units' parts are added, or the largest is
        taken.
    kept : bool
        Whether it is part of the dataset, or is there for later steps and derivations only.

    Raises
    ------
    ConfregError
        An axis that it has is among those that it lacks.
    """

    name: str
    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    dtype: str = "float32"
    added_over: tuple[str, ...] = ()
    largest_over: tuple[str, ...] = ()
    kept: bool = True

    def __post_init__(self) -> None:
        """Check the dims."""
        if isinstance(self.dims, str):
            raise ConfregError(
                f"Variable {self.name!r}: dims are a tuple of names, ({self.dims!r},), not text."
            )
        both = set(self.dims) & {*self.added_over, *self.largest_over}
        if both:
            raise ConfregError(
                f"Variable {self.name!r} has the dim {min(both)!r} and is added over it: one or "
                "the other."
            )
        if self.added_over and self.largest_over:
            raise ConfregError(
                f"Variable {self.name!r} is either added over axes or the largest over them."
            )

    @property
    def shown(self) -> bool:
        """Whether it is an array of the dataset; text without dims is an attribute only."""
        return self.kept and (bool(self.dims) or self.dtype != "str")

    @property
    def gathered_over(self) -> tuple[str, ...]:
        """The axes over which the units' parts become one."""
        return self.added_over or self.largest_over

    @property
    def attributes(self) -> dict[str, str]:
        """What the variable carries in a dataset."""
        unit = {"units": self.units} if self.units else {}
        return {"long_name": self.long_name, **unit}

    def gather(self, first: Any, second: Any) -> Any:
        """Two units' parts as one."""
        if self.largest_over:
            return np.fmax(first, second)
        return first + second


@dataclass(frozen=True)
class Spans(Mapping[str, slice]):
    """One unit of work: a span of each axis of its step.

    Attributes
    ----------
    bounds : dict of str to (start, stop)
    at : tuple of int
        Which unit along each axis.
    number, count : int
        Which of how many units of the step.
    share : float
        1, or what part of the unit it is where a unit is done in parts.
    """

    bounds: Mapping[str, Span]
    at: tuple[int, ...] = ()
    number: int = 0
    count: int = 1
    share: float = 1.0
    part: str = field(default="")

    def __getitem__(self, axis: str) -> slice:
        """The span of an axis, as a slice."""
        return slice(*self.bounds[axis])

    def __iter__(self) -> Iterator[str]:
        """Names of the axes."""
        return iter(self.bounds)

    def __len__(self) -> int:
        """Return the number of axes."""
        return len(self.bounds)

    @property
    def size(self) -> int:
        """Entries of all axes, multiplied."""
        return int(np.prod([stop - start for start, stop in self.bounds.values()], dtype=np.int64))

    @property
    def key(self) -> str:
        """Names the unit among those of its step: ``"3.0"``."""
        return ".".join(map(str, self.at)) + self.part
