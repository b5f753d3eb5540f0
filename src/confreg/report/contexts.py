"""The most affected tokens of a neuron, or of an entry of another axis, in their text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from confreg.report.columns import of_quantity, symbol
from confreg.report.placing import place, shown_as
from confreg.report.sections import Options
from confreg.report.wording import label, number, plural, signed, units
from confreg.results import axes, tables

if TYPE_CHECKING:
    import xarray as xr

BEFORE, AFTER = 32, 12  # tokens shown around the affected one
_VISIBLE = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥"})


@dataclass(frozen=True)
class Shade:
    """What may colour the text: a variable, or one quantity of it.

    ``at`` is the quantity's place along the dimension ``layers``; −1 and "" if there is none.
    """

    name: str
    label: str
    units: str
    layers: str = ""
    at: int = -1


@dataclass(frozen=True)
class Word:
    """A token as shown: its text, how strongly each colour is on, and its numbers.

    ``shades`` are in [−1, 1], one for each effect; ``underline`` likewise or None;
    ``numbers`` are the same as text, in the order of :func:`quantities`.
    """

    text: str
    shades: list[float]
    underline: float | None
    numbers: str
    focus: bool


@dataclass(frozen=True)
class Context:
    """One affected token with the text around it."""

    where: str
    effect: str
    following: str
    words: list[Word]
    sequence: int = 0
    position: int = 0


@dataclass(frozen=True)
class Detail:
    """What is shown of one neuron.

    ``limits`` are the effect sizes that the full colours stand for, one for each of
    ``shaded``; ``underlined`` says what the underline means, "" if there is none.
    """

    neuron: str
    shaded: list[str]
    limits: list[str]
    underlined: str
    contexts: list[Context] = field(default_factory=list)


class Tokens:
    """The per-token labels of a dataset, read once."""

    def __init__(self, ds: xr.Dataset) -> None:
        self.axis = str(ds["token_text"].dims[0])
        self.text = [str(text).translate(_VISIBLE) for text in ds["token_text"].values]
        count = len(self.text)
        self.sequence = self._label(ds, "sequence", np.zeros(count, dtype=int))
        self.keep = self._label(ds, "keep", np.ones(count, dtype=bool)).astype(bool)
        starts = np.searchsorted(self.sequence, self.sequence)  # along a table they ascend
        self.position = self._label(ds, "position", np.arange(count) - starts)
        self.base = {
            name: np.asarray(ds[name].values)
            for name in ("loss", "rank")
            if name in ds and ds[name].dims == (self.axis,)
        }

    def _label(self, ds: xr.Dataset, name: str, otherwise: np.ndarray) -> np.ndarray:
        known = name in ds.coords and ds[name].dims == (self.axis,)
        return np.asarray(ds[name].values) if known else otherwise

    def where(self, token: int) -> str:
        """Say where a token is."""
        return f"sequence {self.sequence[token]}, position {self.position[token]}"

    def following(self, token: int) -> str:
        """Return the text of the token after this one, "" at the end of a sequence."""
        after = token + 1
        inside = after < len(self.text) and self.sequence[after] == self.sequence[token]
        return self.text[after] if inside else ""

    def window(self, token: int) -> range:
        """Return the tokens around one, within its sequence."""
        start = token - min(BEFORE, int(self.position[token]))
        end = token + 1
        while (
            end < min(token + AFTER + 1, len(self.text))
            and self.sequence[end] == self.sequence[token]
        ):
            end += 1
        return range(start, end)


def shades(ds: xr.Dataset, dim: str, without: frozenset[str] = frozenset()) -> list[Shade]:
    """Return what may colour the text for an entry of an axis; some variables may be left out.

    Of effects, the total ones; of other quantities all. An activation is underlined if there
    is anything else, and no colour then.
    """
    found: list[Shade] = []
    for name in shown_as(ds, "context", dim):
        if name not in without and ds[name].dtype.kind in "fiub":
            found += of_variable(ds, name)
    if has_activation(ds, dim) and any(shade.name != "activation" for shade in found):
        found = [shade for shade in found if shade.name != "activation"]
    return sorted(found, key=lambda shade: shade.at < 0)


def of_variable(ds: xr.Dataset, name: str) -> list[Shade]:
    """Return a variable as a shade, or its quantities that are worth one."""
    layers = place(ds, name).layers
    if not layers:
        return [Shade(name, label(ds, name, unit=False), units(ds, name))]
    entries = [str(entry) for entry in axes.labels(ds, layers)]
    if "pathway" in ds.coords and ds["pathway"].dims == (layers,):
        totals = [at for at, way in enumerate(ds["pathway"].values) if str(way) == "total"]
    else:
        totals = [at for at, entry in enumerate(entries) if entry.endswith("_total")]
    return [
        Shade(name, *of_quantity(ds, name, layers, at), layers, at)
        for at in totals or range(len(entries))
    ]


def has_activation(ds: xr.Dataset, dim: str) -> bool:
    """Say whether the dataset knows an activation of what lies along an axis."""
    return "activation" in shown_as(ds, "context", dim)


def shown(ds: xr.Dataset, options: Options, dim: str | None = None) -> list[str]:
    """Return the labels of the neurons, or entries of another axis, that are shown in detail.

    Those are the ones that the caller named, if the axis is the one that the dataset is about;
    else the strongest. Along a scale they are spread evenly.
    """
    return [label for _, labels in _chosen(ds, options, dim) for label in labels]


def why(ds: xr.Dataset, options: Options, dim: str) -> str:
    """Say in a sentence which entries :func:`shown` returns; "" where the caller named them."""
    parts = [(by, len(labels)) for by, labels in _chosen(ds, options, dim)]
    if not parts or not parts[0][0]:
        return ""
    controlled = "set_kind" in ds.coords and ds["set_kind"].dims == (dim,)
    there = int((ds["set_kind"].values == "chosen").sum()) if controlled else ds.sizes[dim]
    many = "chosen " * controlled + plural(ds, dim)
    if sum(count for _, count in parts) == there:
        first = parts[0][0]
        return f"All {there:,} {many}" + f", those {first} first" * first.startswith("with") + "."
    said = [f"The {count} {many} {by}" if at == 0 else f"the {count} others {by}"
            for at, (by, count) in enumerate(parts)]  # fmt: skip
    return ", then ".join(said) + "."


def _chosen(ds: xr.Dataset, options: Options, dim: str | None) -> list[tuple[str, list[str]]]:
    """Return what is shown in detail, as pairs of by what ("" if by name) and labels."""
    main = axes.main_subject(ds)
    dim = dim or main
    if dim is None or axes.text(ds) is None or not shades(ds, dim):
        return []
    if options.neurons is not None and dim == main:
        return [("", list(options.neurons))]
    names = axes.texts(ds, dim)
    if axes.is_scale(ds, dim):
        rows = np.linspace(0, len(names) - 1, min(options.details, len(names))).round()
        return [("evenly spread", [names[int(row)] for row in rows])]
    frame = tables.table(ds, dim)
    if "set_kind" in ds.coords and ds["set_kind"].dims == (dim,):
        # Random controls are there to be compared with, not to be read.
        frame = frame.loc[np.asarray(ds["set_kind"].values == "chosen")]
    if tables.rank_by(frame) is None:
        return _largest(ds, dim, options.details)
    frame.index = frame.index.astype(str)
    return [
        (f"with the largest {symbol(ds, dim, column)[0]}", labels)
        for column, labels in tables.leading(frame, options.details)
    ]


def _largest(ds: xr.Dataset, dim: str, count: int) -> list[tuple[str, list[str]]]:
    """Rank entries that have no number of their own by the size of what colours their text."""
    from confreg.report.columns import means

    found = [column for column in means(ds, dim) if column.is_number]
    sizes = [column for column in found if column.key.startswith("mean |")] or found
    names = axes.texts(ds, dim)
    if not sizes:
        return [("in their order", names[:count])]
    values = sizes[0].values
    order = np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")
    labels = [names[row] for row in order if np.isfinite(values[row])]
    return [(f"with the largest {sizes[0].label}", labels[:count])]


def quantities(
    ds: xr.Dataset, dim: str | None = None, shaded: list[Shade] | None = None
) -> list[str]:
    """Return what the numbers of a word are, in order; arguments as for :func:`detail`."""
    dim = tables.chosen_axis(ds, dim)
    shaded = shades(ds, dim) if shaded is None else shaded
    names = [shade.label for shade in shaded]
    names += ["activation"] if _underlines(ds, dim, shaded) else []
    base = [name for name in ("loss", "rank") if name in ds and ds[name].dims == (axes.text(ds),)]
    return names + [f"unablated {name}" for name in base]


def _underlines(ds: xr.Dataset, dim: str, shaded: list[Shade]) -> bool:
    return has_activation(ds, dim) and all(shade.name != "activation" for shade in shaded)


def detail(
    ds: xr.Dataset,
    tokens: Tokens,
    neuron: str,
    count: int = 6,
    dim: str | None = None,
    shaded: list[Shade] | None = None,
) -> Detail:
    """Find the tokens that ablating a neuron affects most, and colour the text around them.

    Only this neuron's part of the cube is read. "Most" is the largest absolute value of
    the first of :func:`shades`, over kept tokens, at most one in a window. ``dim`` is another
    axis than the one that the dataset is about.
    """
    dim = tables.chosen_axis(ds, dim)
    shaded = shades(ds, dim) if shaded is None else shaded
    row = axes.texts(ds, dim).index(neuron)
    one = ds[sorted({shade.name for shade in shaded})].isel({dim: row})
    effects = read_shades(one, tokens.axis, shaded)
    activation = ds["activation"].isel({dim: row}).values if _underlines(ds, dim, shaded) else None
    centres = _most_affected(effects[:, 0], tokens, count)
    windows = [tokens.window(token) for token in centres]
    seen = np.array(sorted({token for window in windows for token in window}), dtype=int)
    limits = limits_of(effects[seen])
    value = _ablation_value(ds, dim, row)
    under = None if activation is None else _around(value, activation, seen)
    contexts = []
    for centre, window in zip(centres, windows, strict=True):
        words = [
            Word(
                text=tokens.text[token],
                shades=strengths(effects[token], limits),
                underline=None if under is None else round(float(under[token]), 2),
                numbers=_numbers(effects[token], activation, tokens, token),
                focus=token == centre,
            )
            for token in window
        ]
        contexts.append(
            Context(
                where=tokens.where(centre),
                effect=signed(effects[centre, 0]),
                following=tokens.following(centre),
                words=words,
                sequence=int(tokens.sequence[centre]),
                position=int(tokens.position[centre]),
            )
        )
    return Detail(
        neuron=neuron,
        shaded=[shade.label for shade in shaded],
        limits=[
            number(limit, 2) + (f" {shade.units}" if shade.units else "")
            for limit, shade in zip(limits, shaded, strict=True)
        ],
        underlined="" if under is None else _underline_meaning(value),
        contexts=contexts,
    )


def read_shades(one: xr.Dataset, axis: str, shaded: list[Shade]) -> np.ndarray:
    """Read what colours the text, of variables along the text (and quantities): (T, shades)."""
    read = {shade.name: one[shade.name].load() for shade in shaded}
    parts = [read[s.name].isel({s.layers: s.at}) if s.layers else read[s.name] for s in shaded]
    return np.stack([np.asarray(part.transpose(axis).values, dtype=float) for part in parts], 1)


def strengths(values: np.ndarray, limits: np.ndarray) -> list[float]:
    """Return how strongly each colour is on at one token, in [−1, 1]."""
    return [round(float(s), 2) for s in np.clip(np.nan_to_num(values / limits), -1, 1)]


def _most_affected(effect: np.ndarray, tokens: Tokens, count: int) -> list[int]:
    size = np.where(tokens.keep & np.isfinite(effect), np.abs(effect), -1.0)
    chosen: list[int] = []
    for token in np.argsort(-size, kind="stable"):
        if size[token] <= 0 or len(chosen) == count:
            break
        if not any(
            tokens.sequence[token] == tokens.sequence[other] and abs(token - other) <= BEFORE
            for other in chosen
        ):
            chosen.append(int(token))
    return chosen


def limits_of(effects: np.ndarray) -> np.ndarray:
    """Return the largest finite size of each effect, 1 where it is nothing: (E,)."""
    size = np.abs(np.where(np.isfinite(effects), effects, 0.0))
    top = size.max(axis=0, initial=0.0)
    return np.where(top > 0, top, 1.0)


def _around(value: float, activation: np.ndarray, seen: np.ndarray) -> np.ndarray:
    away = np.asarray(activation, dtype=float) - value
    size = np.abs(away[seen])
    top = size[np.isfinite(size)].max(initial=0.0)  # experts' neurons are not there everywhere
    return np.nan_to_num(np.clip(away / (top or 1.0), -1, 1))


def _ablation_value(ds: xr.Dataset, dim: str, row: int) -> float:
    if "ablation_value" not in ds or ds["ablation_value"].dims != (dim,):
        return 0.0
    value = float(ds["ablation_value"].isel({dim: row}))
    return value if np.isfinite(value) else 0.0


def _underline_meaning(value: float) -> str:
    return f"activation against {number(value)}, to which it is ablated"


def _numbers(effects: np.ndarray, activation: np.ndarray | None, tokens: Tokens, token: int) -> str:
    values = [signed(value) for value in effects]
    if activation is not None:
        values.append(number(activation[token]))
    if "loss" in tokens.base:
        values.append(number(tokens.base["loss"][token]))
    if "rank" in tokens.base:
        rank = int(tokens.base["rank"][token])
        values.append("–" if rank < 0 else str(rank))
    return "|".join(values)
