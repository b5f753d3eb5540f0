"""All that is known along one axis, as columns with headings and units."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from confreg.report import reading
from confreg.report.placing import place
from confreg.report.wording import (
    in_units,
    label,
    long_name,
    over,
    quantities,
    quantity_units,
    units,
)
from confreg.results import axes, tables, vocabulary

if TYPE_CHECKING:
    import xarray as xr

CATEGORIES = 12  # so many different texts still get a colour each


@dataclass(frozen=True)
class Measured:
    """One column: what is known of each of n entries.

    Attributes
    ----------
    key
        Its name in :func:`confreg.results.tables.table`, or of the coordinate.
    label
        Its heading, with units.
    hint
        What it means.
    values
        (n,) numbers, truth values or texts.
    """

    key: str
    label: str
    hint: str
    values: np.ndarray

    @property
    def is_number(self) -> bool:
        """Whether it can be an axis of a plot."""
        return self.values.dtype.kind in "fiu"

    @property
    def percent(self) -> bool:
        """Whether it is read in per cent."""
        return vocabulary.word(self.key).percent

    @property
    def is_category(self) -> bool:
        """Whether it has a few different values that are no measurements."""
        return not self.is_number and 1 < len(set(self.texts)) <= CATEGORIES

    @property
    def texts(self) -> list[str]:
        """The values as text."""
        if self.values.dtype.kind == "b":
            return ["yes" if value else "no" for value in self.values]
        return [str(value) for value in self.values]


def measured(ds: xr.Dataset, axis: str) -> list[Measured]:
    """Return a column for every variable along an axis, and for every quantity of one.

    An axis along which nothing has been reduced to one number gets means of what there is
    instead; so does every axis if ``axis`` has no variable of its own.
    """
    frame = tables.table(ds, axis)
    again = _said_already(ds, frame.columns)
    found = [
        described(ds, axis, str(key), np.asarray(frame[key])) for key in frame if key not in again
    ]
    if not any(column.is_number for column in found):
        found += means(ds, axis)
    return found


def _said_already(ds: xr.Dataset, columns: Container[str]) -> set[str]:
    """Return the columns that TE and DE are other names of."""
    pairs = {"te": "mediated_total", "de": "mediated_direct"}
    return {
        tables.column_name("effect_abs_mean", ds.attrs.get(attribute))
        for name, attribute in pairs.items()
        if name in columns
    }


def described(ds: xr.Dataset, axis: str, key: str, values: np.ndarray) -> Measured:
    """Give a column of the table along an axis its heading and its meaning."""
    name, entry = tables.split_column(key)
    text, unit = symbol(ds, axis, key)
    hint = long_name(ds, name)
    if entry is not None:
        hint += f"; {described_quantity(ds, *_layer(ds, axis, name, entry))}"
    return Measured(key, in_units(text, unit), hint, values)


def symbol(ds: xr.Dataset, axis: str, key: str) -> tuple[str, str]:
    """Return how a column of the table along an axis is written, and its units."""
    name, entry = tables.split_column(key)
    if entry is None:
        return label(ds, name, unit=False), units(ds, name)
    return of_quantity(ds, name, *_layer(ds, axis, name, entry))


def _layer(ds: xr.Dataset, axis: str, name: str, entry: str) -> tuple[str, int]:
    """Return a variable's axis of quantities, and where along it an entry is."""
    layers = next(str(dim) for dim in ds[name].dims if dim != axis)
    return layers, [str(one) for one in axes.labels(ds, layers)].index(entry)


def of_quantity(ds: xr.Dataset, name: str, layers: str, at: int) -> tuple[str, str]:
    """Write one quantity of a variable, "mean |Δ loss|", and return its units."""
    word = vocabulary.word(name)
    text = (word.of or f"{word.symbol}: {{}}").format(quantities(ds, layers)[at])
    each = "" if ds[name].attrs.get("units") == "1" else quantity_units(ds, layers)[at]
    return text, units(ds, name) or each


def described_quantity(ds: xr.Dataset, layers: str, at: int) -> str:
    """Return what an entry of an axis of quantities means, or how it is written."""
    if f"{layers}_long_name" in ds.coords:
        return str(ds[f"{layers}_long_name"].values[at])
    return quantities(ds, layers)[at]


def means(ds: xr.Dataset, axis: str) -> list[Measured]:
    """Work out means along an axis of variables that have further axes.

    Means are over kept tokens and over all entries of other axes, beside means of sizes where
    there are negative numbers. Of what has one further axis with labels, the largest entry too.
    """
    found: list[Measured] = []
    for name in map(str, ds.data_vars):
        array = ds[name]
        if axis not in array.dims or array.dtype.kind not in "fiub" or not array.size:
            continue
        at = place(ds, name)
        layers = at.layers if at.layers != axis else ""
        rest = [str(dim) for dim in array.dims if dim not in (axis, layers)]
        if rest:
            found += _means(ds, name, axis, layers, rest)
    return found


def _means(ds: xr.Dataset, name: str, axis: str, layers: str, rest: list[str]) -> list[Measured]:
    array = reading.kept(ds, ds[name])
    count = ds.sizes[layers] if layers else 1
    mean, size, largest = (np.full((ds.sizes[axis], count), np.nan) for _ in range(3))
    top = np.zeros((ds.sizes[axis], count), dtype=int)
    for start, stop, part in reading.spans(array, axis):
        part = part.transpose(axis, *([layers] if layers else []), *rest)
        values = np.asarray(part.values, dtype=float).reshape(stop - start, count, -1)
        known = np.isfinite(values)
        number = np.maximum(known.sum(axis=-1), 1)
        empty = ~known.any(axis=-1)
        values = np.where(known, values, 0.0)
        mean[start:stop] = np.where(empty, np.nan, values.sum(axis=-1) / number)
        size[start:stop] = np.where(empty, np.nan, np.abs(values).sum(axis=-1) / number)
        top[start:stop] = np.abs(values).argmax(axis=-1)
        largest[start:stop] = np.where(empty, np.nan, np.abs(values).max(axis=-1))
    found = []
    for at in range(count):
        text, unit = of_quantity(ds, name, layers, at) if layers else (
            label(ds, name, unit=False), units(ds, name))  # fmt: skip
        key = tables.column_name(name, axes.labels(ds, layers)[at]) if layers else name
        hint = f"{long_name(ds, name) or text}: mean over {over(ds, rest)}"
        found.append(Measured(f"mean {key}", in_units(f"mean {text}", unit), hint, mean[:, at]))
        if not np.allclose(mean[:, at], size[:, at], equal_nan=True):
            bars = in_units(f"mean |{text}|", unit)
            found.append(Measured(f"mean |{key}|", bars, f"{hint} of its size", size[:, at]))
        if array.dtype.kind != "b" and len(rest) == 1 and axes.kind(ds, rest[0]) == "subject":
            title, where = f"largest |{text}|", rest[0].replace("_", " ")
            names = np.array(axes.texts(ds, rest[0]), dtype=object)[top[:, at]]
            hint = f"{long_name(ds, name) or text}: the largest size over {where}"
            found.append(Measured(f"largest |{key}|", in_units(title, unit), hint, largest[:, at]))
            found.append(Measured(f"largest {key} at", f"at {where}", f"{where} of {title}", names))
    return found


def known_labels(ds: xr.Dataset, axis: str) -> list[Measured]:
    """Return the coordinates along an axis beside its own labels, as columns."""
    found = []
    for name, array in ds.coords.items():
        if array.dims == (axis,) and name != axis:
            values = np.asarray(array.values)
            found.append(
                Measured(str(name), label(ds, str(name)), long_name(ds, str(name)), values)
            )
    return found


def tells_apart(ds: xr.Dataset, axis: str, column: Measured) -> bool:
    """Say whether a label tells more than the axis's own labels do.

    It does not if it is the same all along, nor if those are made of it: "11.584" of layer and
    index.
    """
    texts = column.texts
    own = (name.split(".") for name in axes.texts(ds, axis)[:100])
    return len(set(texts)) > 1 and not all(text in parts for text, parts in zip(texts, own))
