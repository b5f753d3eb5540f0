"""Which neurons say the same, from the activations that a store keeps.

>>> ds = confreg.open("runs/demo.zarr")  # run with --activations
>>> confreg.redundancy(ds).sortby("nearest_distance").head(neuron=10)
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from confreg.errors import ConfregError
from confreg.results import activity

MOST = 20_000
"""Neurons whose distances to each other are held at once: 1.6 GB."""


def redundancy(ds: xr.Dataset, *, within: float = 0.1) -> xr.Dataset:
    """Neurons as points, 1 − |r| apart, and at which distance they join by single linkage.

    r is Pearson's correlation of two neurons' activations over kept tokens. The heights at which
    components join are the deaths of the 0-dimensional persistence diagram of the Vietoris–Rips
    filtration: 0 where one neuron duplicates another, or is its antipode. A neuron that is constant
    correlates with none.

    Ballester, Casacuberta, Escalera 2023, Decorrelating neurons using persistence (arXiv
    2308.04870).

    Parameters
    ----------
    ds : Dataset
        With ``activation (neuron, token)``.
    within : float
        Neurons joined at a distance up to this are of one ``group``.

    Returns
    -------
    Dataset
        ``nearest (neuron)``, the name of the neuron of the largest |r|, "" if none;
        ``nearest_correlation``, that r; ``nearest_distance``, 1 − |r|, at which the neuron first
        joins another; ``relation``, "duplicate" or "antipode" where that is up to ``within``, else
        "". ``group``, equal for neurons that are joined within it, −1 for one alone. ``death
        (merge)``, ascending. Attributes: ``mean_death`` (T₁/(n − 1) of the paper without its sign),
        ``spread_less_mean_death`` (T₂ with α = ½), and ``merges_within``.

    Raises
    ------
    ConfregError
        No activations, fewer than two neurons, or more than fit.
    """
    from scipy.cluster import hierarchy

    keep = activity.kept_tokens(ds, "redundancy")
    n = ds.sizes["neuron"]
    if not 2 <= n <= MOST:
        raise ConfregError(
            f"redundancy compares neurons with each other: from 2 to {MOST:,}, not {n:,}. Choose "
            "some: ds.sel(neuron=...)."
        )
    if not 0 <= within < 1:
        raise ConfregError(f"within is a distance from 0 to below 1, not {within}.")
    points = np.concatenate(
        [activity.standardised(values) for _, values in activity.spans(ds, keep)]
    )
    correlation = np.clip(points @ points.T, -1, 1)
    np.fill_diagonal(correlation, 0)
    nearest = np.abs(correlation).argmax(1)
    r = correlation[np.arange(n), nearest]
    upper = np.triu_indices(n, 1)
    distance = 1 - np.abs(correlation[upper])
    # Rounding: duplicates are at 0, not a little above it.
    distance[distance < 1e-12] = 0
    tree = hierarchy.linkage(distance, "single")
    group = hierarchy.fcluster(tree, within, "distance")
    alone = np.bincount(group)[group] == 1
    close, some = 1 - np.abs(r) <= within, r != 0
    names = ds["neuron"].values.astype(object)
    relation = np.where(close & some, np.where(r > 0, "duplicate", "antipode"), "")
    death = tree[:, 2]
    over = {"tokens": int(keep.sum())}
    return xr.Dataset(
        {
            "nearest": ("neuron", np.where(some, names[nearest], ""),
                        {"long_name": "neuron of the largest |r|"}),
            "nearest_correlation": ("neuron", r, {"long_name": "r with it", "units": "1"}),
            "nearest_distance": ("neuron", np.maximum(1 - np.abs(r), 0),
                                 {"long_name": "1 - |r| with it", "units": "1"}),
            "relation": ("neuron", relation.astype(object), {"long_name": "what it is to it"}),
            "group": ("neuron", np.where(alone, -1, group),
                      {"long_name": "neurons joined within the distance", "units": ""}),
            "death": ("merge", death,
                      {"long_name": "distance at which components join", "units": "1"}),
        },
        coords=activity.of_neurons(ds),
        attrs={
            **over,
            "within": within,
            "mean_death": float(death.mean()),
            "spread_less_mean_death": float(0.5 * death.std() - 0.5 * death.mean()),
            "merges_within": int((death <= within).sum()),
            "model": str(ds.attrs.get("model", "")),
        },
    )  # fmt: skip
