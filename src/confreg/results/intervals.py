"""How certain total, direct and mediated effects are: intervals by resampling sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from confreg.derive.mediated import NAMES, mediated
from confreg.errors import ConfregError
from confreg.results.groups import checked_effects
from confreg.results.resampling import Documents

_CHUNK = 64  # entries that are read at once


def intervals(ds: xr.Dataset, draws: int, level: float, seed: int) -> xr.Dataset:
    """Percentile bootstrap intervals of ``te``, ``de``, ``te_mediated`` and ``mediated``.

    What is resampled are sequences (of prompts: documents), never tokens of one, which are no
    independent evidence. Each is a mean over the kept tokens of the sequences that are drawn, and
    ``mediated`` a ratio of two such means.

    Parameters
    ----------
    ds : Dataset
        With ``effects (subject, token, effect)`` by both pathways.
    draws : int
        Resamples.
    level : float
        Of the interval, between 0 and 1.
    seed : int

    Returns
    -------
    Dataset
        ``te``, ``te_low`` and ``te_high (subject)``, and so on.

    Raises
    ------
    ConfregError
        There are no effects of single tokens or of both pathways, or fewer than two sequences.
    """
    effects = checked_effects(ds)
    if draws < 1 or not 0 < level < 1:
        raise ConfregError(
            f"draws is at least 1 and level between 0 and 1, not {draws} and {level}."
        )
    pathways = [ds.attrs.get(f"mediated_{pathway}") for pathway in ("total", "direct")]
    if not all(name in effects["effect"].values for name in pathways):
        raise ConfregError(
            "The dataset lacks the total and the direct effect of which te and de are: run with "
            "--effects loss_total loss_direct, or those of the recipe."
        )
    sequences = Documents(ds, draws, seed, "sequence")
    pair, parts = effects.sel(effect=pathways), []
    for start in range(0, pair.shape[0], _CHUNK):
        block = pair[start : start + _CHUNK].values[:, sequences.keep].astype(np.float64)
        block = np.abs(np.moveaxis(block, -1, 1))  # (n, 2, tokens)
        defined = np.isfinite(block)
        sums, counts = sequences.sums(np.where(defined, block, 0.0)), sequences.sums(defined)

        def numbers(weights: np.ndarray, sums: Any = sums, counts: Any = counts) -> np.ndarray:
            with np.errstate(invalid="ignore", divide="ignore"):
                te, de = np.moveaxis((sums @ weights) / (counts @ weights), 1, 0)
            return np.stack([*mediated(te, de).values()])

        parts.append(np.stack(sequences.interval(numbers, level)))
    values = np.concatenate(parts, axis=2)  # (value and its ends, number, n)
    subject, found = effects.dims[0], {}
    for column, name in enumerate(NAMES):
        array = ds.get(name)
        units = "1" if array is None else str(array.attrs.get("units", "1"))
        text = name if array is None else str(array.attrs.get("long_name", name))
        for row, end in enumerate(("", "low", "high")):
            said = f"{end} end of the {100 * level:g} % interval over sequences: " if end else ""
            own = f"{name}_{end}" if end else name
            found[own] = (subject, values[row, column], {"long_name": said + text, "units": units})
    coords = {k: v for k, v in effects.coords.items() if v.dims == (subject,)}
    said = {"draws": draws, "level": level, "seed": seed, "sequences": len(sequences)}
    return xr.Dataset(found, coords=coords, attrs=said)
