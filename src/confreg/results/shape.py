"""Whether two stores are of models of one shape, whose neurons of one name are the same ones."""

from __future__ import annotations

from typing import Any

import xarray as xr

SHAPE = {
    "model_architecture": "{}",
    "model_layers": "{} layers",
    "model_width": "width {}",
    "model_neurons": "{} neurons a layer",
    "model_experts": "{} experts a layer",
    "model_heads": "{} heads a layer",
}
"""Attributes that say of what shape a model is, and how each is said."""


def unlike(first: xr.Dataset, second: xr.Dataset) -> str:
    """The shapes of two stores' models in words where they differ, else "".

    What a store does not say, as an old one of its neurons, agrees with everything.
    """
    shapes = [_shape(ds) for ds in (first, second)]
    both = [name for name in SHAPE if all(name in shape for shape in shapes)]
    if all(shapes[0][name] == shapes[1][name] for name in both):
        return ""
    return "; ".join(", ".join(SHAPE[n].format(shape[n]) for n in both) for shape in shapes)


def _shape(ds: xr.Dataset) -> dict[str, Any]:
    """What a store knows; an old one its width by the null space alone."""
    found = {"model_width": ds.sizes.get("component")} | ds.attrs
    return {name: found[name] for name in SHAPE if found.get(name) is not None}
