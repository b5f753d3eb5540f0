"""On which tokens a neuron is above its mean, and what its ablation does there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from confreg.execution.plan import Plan
    from confreg.results.store import Store


def write(plan: Plan, store: Store) -> None:
    """Write what follows from activations and effects once all are there."""
    keep = plan.table.keep
    over = keep if plan.parameters.get("mean_over", "all") == "kept" else np.ones_like(keep)
    activation = store.read("activation")
    mean = activation[:, over].mean(axis=1, dtype=np.float64)
    above = activation > mean[:, None]
    counted = above & keep
    effects = store.read("effects").astype(np.float64)
    with np.errstate(invalid="ignore"):  # a neuron that is above its mean on no kept token
        # NaN where an effect is not defined does not stand on kept tokens.
        total = np.where(counted[..., None], effects, 0).sum(axis=1)
        reduced = total / counted.sum(axis=1)[:, None]
    store.write("mean_activation", mean.astype(np.float32))
    store.write("above_mean", above)
    store.write("above_share", (counted.sum(axis=1) / keep.sum()).astype(np.float32))
    store.write("effect_mean_above", reduced.astype(np.float32))
