"""What kind of axis a dimension of a dataset is, told by its labels and by no list of names.

* ``"text"``: an axis along which there is ``token_text``;
* ``"quantity"``: an axis whose entries have units or descriptions of their own, in a coordinate
  ``<axis>_units`` or ``<axis>_long_name``, as ``effect`` has;
* ``"subject"``: every other axis with labels: neurons, sets, latents, images, values of α;
* ``"other"``: what is left, for instance the jobs of a server.

The attribute ``axis_kind`` of an axis's own coordinate overrules this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

Kind = Literal["subject", "text", "quantity", "other"]

NAMES = 200  # so many integers in a row are names of things and no longer a scale


def kind(ds: xr.Dataset, dim: str) -> Kind:
    """Return the kind of one dimension."""
    said = str(ds[dim].attrs.get("axis_kind", "")) if dim in ds.coords else ""
    if said in ("subject", "text", "quantity", "other"):
        return said  # pyright: ignore[reportReturnType]  # a str that equals one of them
    if "token_text" in ds.variables and ds["token_text"].dims == (dim,):
        return "text"
    if f"{dim}_units" in ds.coords or f"{dim}_long_name" in ds.coords:
        return "quantity"
    return "subject" if dim in ds.coords else "other"


def of_kind(ds: xr.Dataset, wanted: Kind) -> list[str]:
    """Return the dimensions of one kind, in the dataset's order."""
    return [str(dim) for dim in ds.sizes if kind(ds, str(dim)) == wanted]


def main_subject(ds: xr.Dataset) -> str | None:
    """Return the axis that the dataset is about; None if there is no subject axis.

    It is the subject axis with the most variables that have quantities, such as effects, then
    with the most numbers of any kind; of equals the first.
    """
    subjects, quantities = of_kind(ds, "subject"), set(of_kind(ds, "quantity"))
    if not subjects:
        return None

    def weight(dim: str) -> tuple[int, int]:
        with_it = [v for v in ds.data_vars.values() if dim in v.dims and is_number(v)]
        return sum(bool(quantities & set(v.dims)) for v in with_it), len(with_it)

    return max(subjects, key=weight)


def text(ds: xr.Dataset) -> str | None:
    """Return the axis of the text; None if there is no text."""
    found = of_kind(ds, "text")
    return found[0] if found else None


def labels(ds: xr.Dataset, dim: str) -> np.ndarray:
    """Return the labels along a dimension; entries are numbered where it has none."""
    return np.asarray(ds[dim].values) if dim in ds.coords else np.arange(ds.sizes[dim])


def texts(ds: xr.Dataset, dim: str) -> list[str]:
    """Return the labels along a dimension as they are shown; 4.0 is "4"."""
    values = labels(ds, dim)
    if values.dtype.kind == "f":
        return [f"{value:.6g}" for value in values]
    return [str(value) for value in values]


def is_scale(ds: xr.Dataset, dim: str) -> bool:
    """Say whether labels are numbers along which one would draw a line, as values of α are."""
    values = labels(ds, dim)
    if values.dtype.kind not in "fiu" or len(values) < 2 or not (np.diff(values) > 0).all():
        return False
    return values.dtype.kind == "f" or len(values) <= NAMES


def is_number(array: xr.DataArray) -> bool:
    """Say whether a variable holds numbers: a truth value is none, nor is a text."""
    return array.dtype.kind in "fiu"
