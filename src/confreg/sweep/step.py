"""What a recipe returns: steps and derivations, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from confreg.axes import Axis, Later, Spans, Variable
from confreg.errors import ConfregError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from confreg.models.network import Network
    from confreg.sweep.budget import Budget

Stored = Mapping[str, "np.ndarray"]
"""Variables that are in the store, by name, as arrays."""


@dataclass(frozen=True, eq=False)
class Step:
    """Traces, the axes along which they are done again and again, and the variables they give.

    Attributes
    ----------
    trace : callable
        ``trace(model, unit)``, or of several models ``trace(models, unit)``: one unit's traces.
        Returns a mapping with an array for every variable of ``gives``.
    over : tuple of Axis
        Axes along which it works; a unit is a span of each. Units that differ along the first axis
        follow each other.
    gives : tuple of Variable
    along : tuple of Axis
        Further axes that its variables have.
    unit : callable, optional
        ``unit(spans, stored)``: what one unit carries to the model. By default the entries of each
        axis's span, by the axis's name.
    needs : tuple of Step or Derivation
        What must be stored before. Their order in the recipe's list must say the same.
    models : tuple of Network
        By default the run's one model.
    most : callable, optional
        ``most(budget)``: the largest span of an axis in one unit, by the axis's name. By default
        whole axes, and as much text as a place takes at once.
    cost : callable, optional
        ``cost(spans)``: how many times a unit's text goes through the model; by default once.
    uncut : tuple of str
        Axes along which a unit that is too large for a server cannot be halved.
    name : str
        What progress says; by default the trace's name.
    check : callable, optional
        ``check(block, spans)`` raises ConfregError where a unit's block of arrays cannot be right.
    effort : str
        What a plan says of its cost beside how often text goes through the model, in words.
    also_reads : tuple
        What its traces read of a model beside what its axes name, for a place to judge.
    here_only : str
        A sentence that says why a server cannot run it; empty where one can.
    attributes : mapping
        What it adds to the dataset's attributes.
    """

    trace: Callable[..., Mapping[str, Any]]
    over: tuple[Axis | Later, ...]
    gives: tuple[Variable, ...]
    along: tuple[Axis | Later, ...] = ()
    unit: Callable[[Spans, Stored], Any] | None = None
    needs: tuple[Step | Derivation, ...] = ()
    models: tuple[Network, ...] = ()
    most: Callable[[Budget], Mapping[str, int]] | None = None
    cost: Callable[[Spans], float] | None = None
    uncut: tuple[str, ...] = ()
    name: str = ""
    check: Callable[[Mapping[str, np.ndarray], Spans], None] | None = None
    effort: str = ""
    also_reads: tuple[Any, ...] = ()
    here_only: str = ""
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What progress says."""
        return self.name or self.trace.__name__.replace("_", " ")


@dataclass(frozen=True, eq=False)
class Derivation:
    """Variables that follow from stored ones.

    Attributes
    ----------
    compute : callable
        A pure function of the dataset, to which variables that are not kept belong too. Returns a
        mapping with an array or a DataArray for every variable of ``gives``.
    gives : tuple of Variable
    by : str, optional
        The axis along which it may be computed in spans, so that it stays within the memory budget.
    along : tuple of Axis
        Axes of its variables that no step has.
    reads : tuple of str
        The variables that it reads; by default it may read all.
    attributes : mapping
        What it adds to the dataset's attributes.
    """

    compute: Callable[[xr.Dataset], Mapping[str, Any]]
    gives: tuple[Variable, ...]
    by: str | None = None
    along: tuple[Axis | Later, ...] = ()
    reads: tuple[str, ...] = ()
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What progress says."""
        return getattr(self.compute, "__name__", "derivation").replace("_", " ")


Item = Step | Derivation


def flat(items: Any) -> list[Item]:
    """The steps and derivations of a recipe's list, in which lists may stand and None.

    Raises
    ------
    ConfregError
        Something else stands in it.
    """
    if items is None:
        return []
    if isinstance(items, Step | Derivation):
        return [items]
    if isinstance(items, list | tuple):
        return [item for part in items for item in flat(part)]
    raise ConfregError(
        f"A recipe returns a list of steps and derivations; {type(items).__name__} is neither."
    )


def _alike(one: Axis | Later, other: Axis | Later) -> bool:
    """Whether two are one axis, which steps may cut in their own ways."""
    labels = getattr(one, "labels", None)
    return one is other or (labels is not None and labels is getattr(other, "labels", None))


def check(items: list[Item]) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises
    ------
    ConfregError
        Two variables of one name, a dim that no axis has, two axes of one name, an item that needs
        one which comes later, or nothing to do.
    """
    if not any(isinstance(item, Step) for item in items):
        raise ConfregError("The recipe returns no step: there is nothing to run.")
    axes: dict[str, Axis | Later] = {}
    known: dict[str, Variable] = {}
    for number, item in enumerate(items):
        for axis in (*(item.over if isinstance(item, Step) else ()), *item.along):
            if not _alike(axes.setdefault(axis.name, axis), axis):
                raise ConfregError(f"There are two axes named {axis.name!r}: rename one of them.")
        for needed in item.needs if isinstance(item, Step) else ():
            if needed not in items[:number]:
                raise ConfregError(
                    f"Step {item.title!r} needs {needed.title!r}, which must come before it in the "
                    "recipe's list."
                )
        for variable in item.gives:
            _check_variable(item, variable, axes, known)
            known[variable.name] = variable


def _check_variable(
    item: Item,
    variable: Variable,
    axes: Mapping[str, Axis | Later],
    known: Mapping[str, Variable],
) -> None:
    where = f"Variable {variable.name!r} of {item.title!r}"
    if variable.name in known:
        raise ConfregError(f"{where}: there is another variable of this name.")
    if variable.name in axes or any(
        variable.name in axis.labels for axis in axes.values() if isinstance(axis, Axis)
    ):
        raise ConfregError(f"{where} has the name of an axis or of a label: rename it.")
    for dim in variable.dims:
        if dim not in axes:
            raise ConfregError(
                f"{where} has the dim {dim!r}, which no axis has; there are {', '.join(axes)}. An "
                "axis that units do not cut goes into `along`."
            )
    over = [axis.name for axis in item.over] if isinstance(item, Step) else []
    for dim in variable.gathered_over:
        if dim not in over:
            raise ConfregError(
                f"{where} is gathered over {dim!r}, along which the step has no units; it is over "
                f"{', '.join(over) or 'nothing'}."
            )
