"""Numbers and names as a reader sees them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from confreg.results import axes, vocabulary

if TYPE_CHECKING:
    import xarray as xr

MISSING = "–"


def number(value: float, digits: int = 3) -> str:
    """Write a number for reading: a true minus, powers of ten when it is far from one."""
    value = float(value)
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa}×10{power}".replace("-", "−")
    if value == int(value):
        return f"{value:,.0f}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """Write a change: as ``number``, with a plus where it is positive."""
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def percent(share: float) -> str:
    """Write a share in per cent; far negative ones, of small totals, as such."""
    if not math.isfinite(share):
        return MISSING
    whole = round(100 * share)  # an integer: of nothing there is no minus
    # No break between a number and its sign.
    return "< −1000\u00a0%" if share < -10 else f"{whole}\u00a0%".replace("-", "−")


def told(name: str, value: float) -> str:
    """Write a number of a variable: in per cent if that is how it is read."""
    return percent(value) if vocabulary.word(name).percent else number(value)


def deviations(ds: xr.Dataset) -> str:
    """Write the k of ablation values mean + k·σ: "−1, 0, 1"; "" where all are the mean."""
    found = np.unique(ds["set_deviation"].values) if "set_deviation" in ds.coords else np.zeros(1)
    return ", ".join(f"{k:g}" for k in found).replace("-", "−") if found.any() else ""


def effect_label(name: str) -> str:
    """Write an effect's name for reading: ``loss_direct`` is "Δ loss (norm frozen)"."""
    return vocabulary.effect_label(*vocabulary.split_effect(name))


def quantities(ds: xr.Dataset, dim: str) -> list[str]:
    """Return how the entries of an axis of quantities are written, in their order.

    Effects are written after their coordinates ``quantity`` and ``pathway``; in stores that have
    none, after their names. Entries of other axes are written as they are.
    """
    names = [str(name) for name in axes.labels(ds, dim)]
    if all(name in ds.coords and ds[name].dims == (dim,) for name in ("quantity", "pathway")):
        pairs = zip(ds["quantity"].values, ds["pathway"].values, strict=True)
        return [vocabulary.effect_label(str(what), str(how)) for what, how in pairs]
    if dim == "effect":
        return [effect_label(name) for name in names]
    return [name.replace("_", " ") for name in names]


def quantity_units(ds: xr.Dataset, dim: str) -> list[str]:
    """Return the units of the entries of an axis of quantities, "" where there are none."""
    found = ds.coords.get(f"{dim}_units")
    if found is None:
        return [""] * ds.sizes[dim]
    return [unit(str(one)) for one in found.values]


def unit(units: str) -> str:
    """Return units as they are shown: "" for pure numbers, and for each entry its own."""
    return "" if units == "1" or units.startswith("see ") else units


def in_units(text: str, units: str) -> str:
    """Write a symbol with its units behind it, if it has any."""
    return f"{text} ({units})" if units else text


def mediator(ds: xr.Dataset) -> tuple[str, str]:
    """Return what the direct effect freezes, and what neurons that act through it are called."""
    if "frequency" in str(ds.attrs.get("mediated_direct", "")):
        return "the token-frequency direction", "Token-frequency neurons"
    return "the final norm", "Entropy neurons"


def glossary(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Return a symbol and its meaning for everything in the dataset that the page shows.

    Shared words have their meaning from the vocabulary, a recipe's own from the dataset.
    """
    frozen = "the norm’s scale"
    if "frequency" in mediator(ds)[0]:
        frozen = "the logits’ component along the token-frequency direction"
    repeated = vocabulary.REPEATED if "occurrence" in ds.variables else {}
    # Of numbers that are there for several stores, the word itself.
    of = {name: str(array.attrs.get("number_of", "")) for name, array in ds.data_vars.items()}
    there = {*map(str, ds.variables), *of.values()}
    found = [
        (word.symbol, repeated.get(name, word.meaning).format(frozen=frozen))
        for name, word in vocabulary.WORDS.items()
        if name in there and word.meaning
    ]
    if "effect" in ds.sizes or "delta" in ds.attrs:
        found.append(("Δ", str(ds.attrs.get("delta", "after the edit, less before it"))))
    engines = str(ds.attrs.get("engine", "")).split(",")
    found += [item for item in vocabulary.ENGINES.items() if item[0] in engines]
    own = [str(name) for name in ds.data_vars if name not in vocabulary.WORDS and not of[name]]
    return found + [
        (label(ds, name, unit=False), long_name(ds, name)) for name in own if long_name(ds, name)
    ]


def label(ds: xr.Dataset, name: str, unit: bool = True) -> str:
    """Return a variable's symbol, or its name, with its unit unless that is 1.

    The symbol is the dataset's own, in an attribute of the variable, else the vocabulary's.
    """
    own = str(ds[name].attrs.get("symbol", "")) if name in ds.variables else ""
    return in_units(own or vocabulary.word(name).symbol, units(ds, name) if unit else "")


def units(ds: xr.Dataset, name: str) -> str:
    """Return the units in which a variable is shown, "" for pure numbers."""
    if name in ds.variables:
        return unit(str(ds[name].attrs.get("units", "")))
    return unit(vocabulary.word(name).units)


def long_name(ds: xr.Dataset, name: str) -> str:
    """Return a variable's description: the dataset's own, else the vocabulary's."""
    own = str(ds[name].attrs.get("long_name", "")) if name in ds.variables else ""
    return own or vocabulary.word(name).long_name


def labels(ds: xr.Dataset, dim: str) -> list[str]:
    """Return the labels along any axis as they are shown."""
    return quantities(ds, dim) if axes.kind(ds, dim) == "quantity" else axes.texts(ds, dim)


def over(ds: xr.Dataset, dims: Iterable[str]) -> str:
    """Say over what a mean is: "kept tokens and sets"."""
    kept = axes.text(ds) if "keep" in ds.coords else None
    return " and ".join(("kept " if dim == kept else "") + plural(ds, dim) for dim in dims)


def axis_title(ds: xr.Dataset, dim: str, width: int = 80) -> str:
    """Write what an axis of a plot is: its name, its units, and what its labels are.

    ``width`` is how many letters have room side by side.
    """
    attrs = ds[dim].attrs if dim in ds.coords else {}
    text = in_units(dim.replace("_", " "), unit(str(attrs.get("units", ""))))
    described = str(attrs.get("long_name", ""))
    if described and described.split(",")[0] != dim:
        text += f": {described}"
    return "<br>".join(textwrap.wrap(text, width))


def plural(ds: xr.Dataset, dim: str) -> str:
    """Write the entries of an axis: "model layers", "latents"; "values of alpha"."""
    if axes.is_scale(ds, dim) and axes.labels(ds, dim).dtype.kind == "f":
        return f"values of {dim.replace('_', ' ')}"
    text = dim.replace("_", " ")
    if text.endswith(("x", "s")) or len(text) == 1:
        return f"entries of {text}"
    return text[:-1] + "ies" if text.endswith("y") else text + "s"


def sentence(text: str) -> str:
    """Begin a text with a capital letter, without touching the rest."""
    return text[:1].upper() + text[1:]
