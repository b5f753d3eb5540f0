"""A run on a real model, of one sequence, against the oracle."""

from __future__ import annotations

import numpy as np
import oracle
import torch
import xarray as xr

from confreg.models import Model


def truth_of(model: Model, ds: xr.Dataset, layer: int, together: int) -> dict[str, np.ndarray]:
    """What ablating each neuron of a run to its value does, so many in one forward pass."""
    judge = oracle.Oracle(model.nn._module, torch.float32)
    ids = torch.from_numpy(ds["token_id"].values)[None]
    index, values = ds["index"].values, torch.from_numpy(ds["ablation_value"].values)
    parts = [
        judge.ablate(
            ids, layer, [int(n) for n in index[i : i + together]], values[i : i + together]
        ).effects
        for i in range(0, len(index), together)
    ]
    return {name: torch.cat([p[name] for p in parts]).numpy() for name in parts[0]}


def assert_agrees(ds: xr.Dataset, truth: dict[str, np.ndarray]) -> None:
    """Losses and entropies at 1e-4 nats, NaN where there is none, and effects large enough."""
    for name in ("loss_total", "loss_direct", "entropy_total", "entropy_direct"):
        found = ds["effects"].sel(effect=name).values
        np.testing.assert_array_equal(np.isnan(found), np.isnan(truth[name]))
        np.testing.assert_allclose(found, truth[name], atol=1e-4, err_msg=name)
        assert np.nanmax(np.abs(truth[name])) > 0.1, "effects that are there to be missed"
