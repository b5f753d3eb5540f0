"""The text itself, coloured: by what each neuron does to it, and by what each token has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.report import contexts
from confreg.report.contexts import Tokens, Word, of_variable
from confreg.report.placing import shown_as
from confreg.report.sections import Options, Section
from confreg.report.wording import label, long_name, number, plural, sentence, told
from confreg.results import axes, families, tables

if TYPE_CHECKING:
    import xarray as xr

PASSAGES, PASSAGE = 4, 160  # passages of the text that are shown, and tokens of each
FACTS = 10  # numbers beside a name
NO_DETAILS = (
    "Tokens in context: the store keeps reductions per neuron only (made with --reduce token)."
)
BRIGHT = 0.99  # quantile of sizes that the full colour stands for


def details(ds: xr.Dataset, options: Options, shown: frozenset[str]) -> list[Section]:
    """Show, for every axis, the strongest entries' effects over the tokens that they affect."""
    if axes.text(ds) is None:
        return []
    main = axes.main_subject(ds)
    others = [str(dim) for dim in ds.sizes if str(dim) != main]
    made = [_details(ds, dim, options, shown) for dim in ([main] if main else []) + others]
    return [section for section in made if section is not None]


def _details(ds: xr.Dataset, dim: str, options: Options, shown: frozenset[str]) -> Section | None:
    is_main = dim == axes.main_subject(ds)
    # Of the axis that it is about, every variable is worth being seen in the text.
    shaded = contexts.shades(ds, dim, frozenset() if is_main else shown)
    if not shaded:
        return None
    tokens = Tokens(ds)
    frame = tables.table(ds, dim)
    names = axes.texts(ds, dim)
    found = []
    chosen = contexts.shown(ds, options, dim)
    words = families.in_words(ds, dim, chosen)
    for neuron in chosen:
        detail = contexts.detail(ds, tokens, neuron, options.contexts, dim, shaded)
        facts = _facts(ds, frame.iloc[names.index(neuron)])
        facts += [("activation goes with", words[neuron])] if neuron in words else []
        found.append((detail, facts))
    every = "" if is_main else f"{sentence(plural(ds, dim))} "
    lead = (
        "For each, the tokens whose prediction changes most, outlined in their text; colour is "
        "the effect on predicting the next token."
    )
    if all(shade.at < 0 for shade in shaded):
        lead = "For each, the tokens at which it is largest, outlined in their text."
    lead = f"{contexts.why(ds, options, dim)} {lead}".strip()
    key = "detail" if is_main else f"detail-{dim}"
    data = {
        "key": key,
        "noun": dim.replace("_", " "),
        "prefix": "n-" if is_main else f"n-{dim}-",
        "neurons": found,
        "shaded": [shade.label for shade in shaded],
        "ends": ("falls", "rises") if any(s.at >= 0 for s in shaded) else ("−", "+"),
        "quantities": contexts.quantities(ds, dim, shaded),
    }
    title = f"{every}in context" if every else "In context"
    names_shown = {shade.name for shade in shaded}
    names_shown |= {"activation"} if contexts.has_activation(ds, dim) else set()
    return Section(key, title, lead, template="details", data=data, shows=frozenset(names_shown))


def _facts(ds: xr.Dataset, row: Any) -> list[tuple[str, str]]:
    """Return the numbers of one row for the line beside its name, quantities left out."""
    found = []
    for key in tables.numbers(row.to_frame().T.infer_objects()):
        value = float(row[key])
        if np.isfinite(value) and tables.split_column(key)[1] is None:
            found.append((label(ds, key), told(key, value)))
    return found[:FACTS]


def passages(ds: xr.Dataset, options: Options, shown: frozenset[str]) -> list[Section]:
    """Show the beginning of the text, coloured by what the model says of each token."""
    names = shown_as(ds, "text")
    if not names:
        return []
    axis = str(axes.text(ds))
    shaded, plain = [], []
    for name in names:
        if ds[name].dtype.kind in "fb" or (
            ds[name].dtype.kind in "iu" and "units" in ds[name].attrs
        ):
            shaded += of_variable(ds, name)
        else:  # names of things, as vocabulary indices are, have no size
            plain.append(name)
    tokens = Tokens(ds)
    values = contexts.read_shades(ds, axis, shaded) if shaded else np.zeros((len(tokens.text), 0))
    limits = _bright(values)
    texts = {name: np.asarray(ds[name].values) for name in plain}
    found = []
    for window in _windows(tokens):
        words = []
        for token in window:
            numbers = [number(value) for value in values[token]]
            numbers += [str(texts[name][token]) for name in plain]
            strength = contexts.strengths(values[token], limits)
            text = "|".join(one.replace("|", "¦") for one in numbers)
            words.append(Word(tokens.text[token], strength, None, text, False))
        found.append((tokens.where(window[0]), words))
    data = {
        "key": "text",
        "passages": found,
        "shaded": [shade.label for shade in shaded],
        "limits": [
            number(limit, 2) + (f" {shade.units}" if shade.units else "")
            for limit, shade in zip(limits, shaded, strict=True)
        ],
        "meanings": [_meaning(ds, shade) for shade in shaded],
        "quantities": [s.label for s in shaded] + [label(ds, name) for name in plain],
        "lows": ["−" if low < 0 else "0" for low in np.nan_to_num(values).min(axis=0)],
    }
    lead = f"Where the text begins, token by token: {sum(len(w) for _, w in found):,} of "
    lead += f"{len(tokens.text):,} tokens. Point at a token to read its numbers."
    return [Section("text", "The text", lead, template="text", data=data, shows=frozenset(names))]


def _meaning(ds: xr.Dataset, shade: contexts.Shade) -> str:
    """Say what a colour is, "" where its name says it."""
    text = sentence(long_name(ds, shade.name)) or shade.label
    return "" if text.lower() == shade.label.lower() else text


def _windows(tokens: Tokens) -> list[range]:
    """Return the first tokens of the first sequences."""
    starts = np.flatnonzero(np.append(True, tokens.sequence[1:] != tokens.sequence[:-1]))
    ends = np.append(starts[1:], len(tokens.text))
    chosen = list(zip(starts, ends, strict=True))[:PASSAGES]
    return [range(int(a), int(min(b, a + PASSAGE))) for a, b in chosen if b > a]


def _bright(values: np.ndarray) -> np.ndarray:
    """Return the size that each full colour stands for; a few outliers may exceed it."""
    size = np.abs(np.where(np.isfinite(values), values, np.nan))
    if not np.isfinite(size).any():
        return np.ones(values.shape[1])
    top = np.nan_to_num(np.nanquantile(size, BRIGHT, axis=0))
    return np.where(top > 0, top, contexts.limits_of(values))
