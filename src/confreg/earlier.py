"""What earlier runs found: finished stores of the same model, as material for another run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError

if TYPE_CHECKING:
    import xarray as xr

    from confreg.models.network import Network

WEIGHTS = "model_weights_sha256"
"""Attribute of a dataset: which weights the run's own model had, empty where they were not read."""


def weights_of(fingerprint: str) -> str:
    """What a dataset says of its model's fingerprint."""
    return hashlib.sha256(fingerprint.encode()).hexdigest() if fingerprint else ""


def is_store(name: str) -> bool:
    """Whether a name means a store rather than text: by its ending, or by what stands there."""
    path = Path(name).expanduser()
    return path.suffix in (".zarr", ".nc") or (path / "zarr.json").is_file()


def of_model(path: str, network: Network) -> xr.Dataset:
    """The dataset of a finished run of a model.

    Raises
    ------
    ConfregError
        There is no store, it is not finished, or its model has other weights.
    """
    from confreg.results.open import open

    ds = open(path)
    if not ds.attrs.get("complete", 1):
        raise ConfregError(f"The store {path!r} is not finished: run its command again first.")
    if not _is_of(ds.attrs, network):
        raise ConfregError(
            f"The store {path!r} is of another model than {network.name}: of "
            f"{ds.attrs.get('model', 'none that it names')}, with other weights. Give one of the "
            "same model."
        )
    return ds


def _is_of(said: dict[Any, Any], network: Network) -> bool:
    """Whether a dataset's attributes are of a model: by its weights, or else by its commit."""
    from confreg.models.fingerprint import fingerprint

    mine = fingerprint(network)
    about = network.about
    if not mine:
        names = (said.get("model"), said.get("model_revision", ""))
        return names == (about.name, about.revision or "")
    if WEIGHTS in said:
        return said[WEIGHTS] == weights_of(mine)
    # Of before there was the attribute: runs of one model kept the same digest to be resumed by.
    kept = json.loads(said.get("configuration", "{}")).get("weights_sha256")
    return kept == weights_of(mine)
