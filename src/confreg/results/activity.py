"""The activations that a store keeps, some neurons at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from confreg.errors import ConfregError

SPAN_BYTES = 256_000_000
"""What the activations of a span of neurons may take, in float64."""


def kept_tokens(ds: xr.Dataset, what: str) -> np.ndarray:
    """Which tokens statistics are over, (T,) bool.

    Raises
    ------
    ConfregError
        The dataset keeps no activations, or no token is kept.
    """
    if "activation" not in ds or ds["activation"].dims != ("neuron", "token"):
        raise ConfregError(f"{what} is about activations, and this dataset keeps none: run it "
                           "with --activations.")  # fmt: skip
    keep = ds["keep"].values.astype(bool)
    if keep.sum() < 2:
        raise ConfregError(f"{what} is over kept tokens, and this dataset has {keep.sum()}.")
    return keep


def spans(ds: xr.Dataset, keep: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Spans of neurons with their activations at kept tokens, (n, T) float64.

    Raises
    ------
    ConfregError
        An activation is no finite number.
    """
    size = max(1, SPAN_BYTES // (8 * len(keep)))
    for start in range(0, ds.sizes["neuron"], size):
        rows = slice(start, start + size)
        values = ds["activation"][rows].values[:, keep].astype(np.float64)
        if not np.isfinite(values).all():
            raise ConfregError(
                "Some activations are no finite numbers: of experts, which are there at some "
                "tokens only, or of a run in too narrow a --dtype."
            )
        yield rows, values


def standardised(values: np.ndarray) -> np.ndarray:
    """Each row less its mean, of norm 1, float64; 0 where it is constant."""
    centred = values - values.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    constant = norm <= 1e-6 * np.linalg.norm(values, axis=1, keepdims=True)
    return np.where(constant, 0, centred / np.where(constant, 1, norm))


def of_neurons(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    """The labels of neurons, for a dataset about the same ones."""
    return {str(name): each for name, each in ds.coords.items() if each.dims == ("neuron",)}
