"""The parts of the page. Which of them it has depends on what the dataset holds.

A section is a function that takes a dataset and returns a :class:`Section`, or None if it
has nothing to show. Registering it says which variables it needs and, if its absence is
worth a word, what to say instead::

    @section(needs=("frequency_cosine",), otherwise="No frequency direction was asked for.")
    def frequency(ds, options): ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.report import contexts, figures, neurons
from confreg.report.wording import label, long_name, mediator, number, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

TABLE_ROWS = 100


@dataclass(frozen=True)
class Options:
    """What the caller of the report chose: the neurons shown in detail, or how many."""

    details: int = 12
    neurons: Sequence[str] | None = None
    contexts: int = 6

    def shown(self, ds: xr.Dataset) -> list[str]:
        """Return the labels of the neurons shown in detail."""
        if "effects" not in ds:
            return []
        if self.neurons is not None:
            return list(self.neurons)
        frame = neurons.table(ds)
        if "set_kind" in ds:  # random controls are there to be compared with, not to be read
            frame = frame.take(np.asarray(ds["set_kind"].values == "chosen"))
        return frame.strongest(self.details)


@dataclass(frozen=True)
class Figure:
    """A plotly figure with its caption; a wide one has a row of the page to itself."""

    key: str
    figure: go.Figure
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: figures side by side, then what its template makes of ``data``.

    ``template`` names a macro of ``parts.html.j2`` that is called with ``data``.
    """

    key: str
    title: str
    lead: str = ""
    figures: list[Figure] = field(default_factory=list)
    template: str = ""
    data: Any = None


Maker = Callable[["xr.Dataset", Options], Section | None]


@dataclass(frozen=True)
class Entry:
    """A registered section."""

    make: Maker
    needs: tuple[str, ...]
    otherwise: str
    subject: str


REGISTRY: list[Entry] = []


def section(
    needs: Sequence[str], otherwise: str = "", subject: str = "neuron"
) -> Callable[[Maker], Maker]:
    """Register a section; sections appear in the order in which they are registered.

    Parameters
    ----------
    needs
        Variables without which the section is left out.
    otherwise
        The sentence that then stands at the end of the page; empty: none.
    subject
        The dimension of what is ablated in the datasets that it is about: neuron or set;
        empty: either.
    """

    def register(make: Maker) -> Maker:
        REGISTRY.append(Entry(make, tuple(needs), otherwise, subject))
        return make

    return register


def compose(ds: xr.Dataset, options: Options) -> tuple[list[Section], list[str]]:
    """Make every section that the dataset allows; also what to say of the others."""
    sections, missing = [], []
    subjects = ("", neurons.subject(ds))
    # What is about the dataset's own subject comes first, in the order of registration.
    chosen = (entry for subject in subjects[::-1] for entry in REGISTRY if entry.subject == subject)
    for entry in chosen:
        made = entry.make(ds, options) if all(name in ds for name in entry.needs) else None
        if made is not None:
            sections.append(made)
        elif entry.otherwise:
            missing.append(entry.otherwise)
    return sections, missing


@section(
    needs=("neuron",),
    otherwise="Scatter of all neurons: the dataset has neither w_out_norm and logit_var nor te "
    "and mediated.",
)
def overview(ds: xr.Dataset, options: Options) -> Section | None:
    """Show all neurons at a glance, in weight space and by effect."""
    shown = []
    if "w_out_norm" in ds and "logit_var" in ds:
        caption = (
            "A large output weight that moves all logits alike (low LogitVar) is the mark of "
            "an entropy neuron in the weights: to the lower right."
        )
        shown.append(Figure("weights", figures.weights(ds), caption))
    if "te" in ds and "mediated" in ds:
        frozen, kind = mediator(ds)
        caption = (
            "How much ablating each neuron changes the loss (TE), and the share of it that goes "
            f"through {frozen}. {kind} lie to the upper right."
        )
        shown.append(Figure("mediation", figures.mediation(ds), caption))
    return Section("neurons", "Neurons", _drawn(ds), shown) if shown else None


def _drawn(ds: xr.Dataset) -> str:
    total = ds.sizes["neuron"]
    text = f"Each point is one of {total:,} neurons. Hover to name it, click to go to its detail."
    if total > figures.MAX_POINTS:
        text += (
            f" Drawn are the {figures.MAX_POINTS // 2:,} strongest and an even sample of the "
            f"rest, {figures.MAX_POINTS:,} points in all."
        )
    return text


@section(
    needs=("singular_value",),
    otherwise="Spectrum of the unembedding: the dataset has no singular_value.",
)
def null_space(ds: xr.Dataset, options: Options) -> Section:
    """Show the directions that the unembedding barely reads, and who writes into them."""
    null = int(ds.attrs.get("null_dims", 0))
    caption = "Singular values of the unembedding with the final norm's weight folded in."
    if null:
        caption += f" Shaded: the {null} smallest, which make its effective null space."
    shown = [Figure("spectrum", figures.spectrum(ds), caption)]
    if "null_fraction" in ds and "te" in ds:
        caption = (
            "Share of each neuron's output weight that lies in the null space, against its effect."
        )
        if null:
            random = np.sqrt(null / ds.sizes["component"])
            caption += f" A random direction would have {random:.2f}."
        shown.append(Figure("null-space", figures.null_space(ds), caption))
    return Section("null-space", "What the unembedding does not read", "", shown)


@section(needs=("above_mean", "effects", "loss"))
def confidence(ds: xr.Dataset, options: Options) -> Section:
    """Show what neurons do where they are above their mean, against the unablated loss."""
    shown = []
    for neuron in options.shown(ds)[:4]:
        caption = f"{neuron}, at kept tokens where its activation is above its mean."
        figure = figures.against_loss(ds, neuron)
        shown.append(Figure(f"confidence-{len(shown)}", figure, caption))
    lead = (
        "Change of the loss when the neuron is ablated against the loss before. The colour is "
        "the reciprocal rank of the correct token before: red where it was the likeliest."
    )
    return Section("confidence", "Against the loss before", lead, shown)


@section(needs=("frequency_cosine", "te"))
def frequency(ds: xr.Dataset, options: Options) -> Section:
    """Show which neurons write along the token frequencies, and where that moves predictions."""
    caption = (
        "Cosine between what a neuron writes to the logits and the direction of the token "
        "frequencies, against its effect."
    )
    shown = [Figure("frequency", figures.frequency(ds), caption)]
    if "effect_mean" in ds and "kl_frequency_total" in ds["effect"].values:
        caption = (
            "Mean change of D(p_freq ‖ p_model) when the neuron is ablated: above 0 it pulls "
            "the prediction towards the unigrams, below 0 away from them."
        )
        shown.append(Figure("frequency-shift", figures.frequency_shift(ds), caption))
    if "frequency_cosine_all" in ds:
        caption = "Size of the cosine over the neurons of every layer."
        shown.append(Figure("frequency-layers", figures.frequency_layers(ds), caption))
    lead = str(ds.attrs.get("counts", ""))
    lead = f"Token frequencies: {lead}." if lead else ""
    return Section("frequency", "Token frequency", lead, shown)


@dataclass(frozen=True)
class Cell:
    """A cell of the table: as read, as sorted (None: last), and a bar's width in per cent."""

    text: str
    value: float | None
    bar: float | None = None


@dataclass(frozen=True)
class Column:
    """A column's heading, and how the table starts out sorted by it."""

    title: str
    hint: str
    sorted: bool


@section(needs=("neuron",))
def ranking(ds: xr.Dataset, options: Options) -> Section:
    """List the strongest neurons with every number that they have."""
    frame = neurons.table(ds)
    by = frame.rank_by()
    if by is None:
        return Section("table", "Strongest neurons", "The dataset has no number per neuron.")
    ranked, second = frame.ranked(by), frame.ranked("te" if "te" in frame else by)
    # Rows that lead by TE belong in a table that can be sorted by it.
    half = TABLE_ROWS // 2
    chosen = list(dict.fromkeys([*ranked[:half], *second[:half], *ranked]))[:TABLE_ROWS]
    top = {name: float(np.nanmax(values, initial=0.0)) for name, values in frame.columns.items()}
    columns = [Column(label(ds, name), long_name(ds, name), name == by) for name in top]
    detailed = set(options.shown(ds))
    rows = []
    for neuron in sorted(chosen, key=ranked.index):
        cells = [_cell(name, value, top[name]) for name, value in frame.row(neuron).items()]
        rows.append((neuron, neuron in detailed, cells))
    lead = f"{len(rows)} of {len(frame):,} neurons: the first by {label(ds, by, unit=False)}"
    lead += " and by TE." if "te" in frame and by != "te" else "."
    data = (columns, rows, "neuron")
    return Section("table", "Strongest neurons", lead, template="table", data=data)


def _cell(name: str, value: float, top: float) -> Cell:
    if not np.isfinite(value):
        return Cell(number(value), None)
    if name == "mediated":
        return Cell(percent(value), value, 100 * float(np.clip(value, 0, 1)))
    if name == "te" and top > 0:
        return Cell(number(value), value, 100 * max(0.0, value / top))
    return Cell(number(value), value)


@section(
    needs=("effects", "token_text"),
    otherwise="Tokens in context: the store keeps reductions per neuron only "
    "(made with --reduce token).",
    subject="",
)
def details(ds: xr.Dataset, options: Options) -> Section:
    """Show the strongest neurons' effects over the tokens that they affect most."""
    tokens = contexts.Tokens(ds)
    frame = neurons.table(ds)
    shown = []
    for neuron in options.shown(ds):
        facts = [
            (label(ds, name), percent(value) if name == "mediated" else number(value))
            for name, value in frame.row(neuron).items()
            if np.isfinite(value)
        ]
        shown.append((contexts.detail(ds, tokens, neuron, options.contexts), facts))
    lead = (
        "The tokens whose prediction the ablation changes most, each in its text and outlined. "
        "A token's colour is the effect on predicting the token after it."
    )
    data = {
        "neurons": shown,
        "shaded": [contexts.effect_label(name) for name in contexts.shaded_effects(ds)],
        "quantities": contexts.quantities(ds),
    }
    return Section("detail", "In context", lead, template="details", data=data)


@section(needs=(), subject="")
def jobs(ds: xr.Dataset, options: Options) -> Section | None:
    """Show what remote jobs sent, received and computed."""
    if "job" not in ds.dims or not {"job_bytes_up", "job_bytes_down", "job_seconds"} & set(ds):
        return None
    parts = [f"{ds.sizes['job']} jobs"]
    for name, verb in (("job_bytes_up", "sent"), ("job_bytes_down", "received")):
        if name in ds:
            parts.append(f"{number(float(ds[name].sum()) / 1e6)} MB {verb}")
    if "job_seconds" in ds:
        parts.append(f"{number(float(ds['job_seconds'].sum()))} s of the server's time")
    figure = Figure("jobs", figures.jobs(ds), "Size and server time of every job.")
    return Section("jobs", "Remote jobs", ", ".join(parts) + ".", [figure])
