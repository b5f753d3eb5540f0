"""The parts of the page. Which of them it has depends on what the dataset holds.

Two kinds of functions make sections. Those that know nothing but axes show every variable of
any dataset: :mod:`confreg.report.composing` lists them. Those that know what some variables
mean show them better; they are registered with the variables that they need and the
dims of each::

    @section(needs={"frequency_cosine": ("neuron",), "te": ("neuron",)})
    def frequency(ds, options): ...

What a registered section shows, the generic ones need not show once more; what none shows,
they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from confreg.results import axes, vocabulary

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

TABLE_ROWS = 200


@dataclass(frozen=True)
class Options:
    """What the caller of the report chose: the neurons shown in detail, or how many."""

    details: int = 12
    neurons: Sequence[str] | None = None
    contexts: int = 6


@dataclass(frozen=True)
class Figure:
    """A plotly figure with its caption; a wide one has a row of the page to itself.

    ``choices`` name the figure's traces if one at a time is shown, the first to begin with.
    """

    key: str
    figure: go.Figure
    caption: str
    wide: bool = False
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    """A cell of a table: as read, as sorted (None: last), and a bar's width in per cent."""

    text: str
    value: float | str | None
    bar: float | None = None


@dataclass(frozen=True)
class Column:
    """A column's heading and meaning; whether the table starts out sorted by it, and is text."""

    title: str
    hint: str = ""
    sorted: bool = False
    text: bool = False


@dataclass(frozen=True)
class Table:
    """A table that sorts by any of its columns.

    Attributes
    ----------
    columns
        All columns but the first.
    rows
        A row's label, whether the page shows it in detail, and its cells.
    noun
        What a row is: ``"neuron"``.
    ids
        Whether points of figures lead to the rows; of one table on a page only.
    """

    columns: Sequence[Column]
    rows: Sequence[tuple[str, bool, Sequence[Cell]]]
    noun: str
    ids: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: figures side by side, then what its template makes of ``data``.

    ``template`` names a macro of ``parts.html.j2`` that is called with ``data``. ``shows`` are
    the variables that one finds in it.
    """

    key: str
    title: str
    lead: str = ""
    figures: list[Figure] = field(default_factory=list)
    template: str = ""
    data: Any = None
    shows: frozenset[str] = frozenset()


Maker = Callable[["xr.Dataset", Options], Section | None]
Dims = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """A registered section."""

    make: Maker
    needs: Dims
    shows: frozenset[str]
    otherwise: str
    last: bool

    def fits(self, ds: xr.Dataset) -> bool:
        """Say whether the dataset has all that is needed, with these dims in any order."""
        return all(has(ds, name, dims) for name, dims in self.needs.items())

    def missed(self, ds: xr.Dataset) -> bool:
        """Say whether its absence is worth a word: it is about neurons, as the dataset is."""
        return bool(self.otherwise) and about_neurons(ds)


REGISTRY: list[Entry] = []


def has(ds: xr.Dataset, name: str, dims: Sequence[str]) -> bool:
    """Say whether a dataset has a variable or coordinate along just these dims."""
    return name in ds.variables and sorted(map(str, ds[name].dims)) == sorted(dims)


def about_neurons(ds: xr.Dataset) -> bool:
    """Say whether a dataset is about neurons of a language model, and their shared numbers."""
    known = (name for name, word in vocabulary.WORDS.items() if word.meaning)
    return axes.main_subject(ds) == "neuron" and any(has(ds, name, ("neuron",)) for name in known)


def section(
    needs: Dims,
    otherwise: str = "",
    shows: Sequence[str] | None = None,
    last: bool = False,
) -> Callable[[Maker], Maker]:
    """Register a section; sections appear in the order in which they are registered.

    Parameters
    ----------
    needs
        Variables and coordinates without which the section is left out, with their dims.
    otherwise
        The sentence that stands at the end of the page of a dataset about neurons if the
        section is left out; empty: none.
    shows
        Which of the variables it shows so well that nothing else need show them; None: all that
        it needs. A section may add to them by its own ``shows``.
    last
        Whether the section comes after those that any dataset has.
    """

    def register(make: Maker) -> Maker:
        well = frozenset(needs if shows is None else shows)
        REGISTRY.append(Entry(make, dict(needs), well, otherwise, last))
        return make

    return register
