"""How certain total, direct and mediated effects are: intervals by resampling sequences."""

from __future__ import annotations

import numpy as np
import xarray as xr

from confreg.errors import ConfregError
from confreg.results.groups import checked_effects, resampled

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
    keep = ds["keep"].values
    names, codes = np.unique(ds["sequence"].values[keep], return_inverse=True)
    if len(names) < 2:
        raise ConfregError(
            "The kept tokens are of one sequence: an interval over sequences needs two. Give more "
            "text, or a smaller --sequence-length."
        )
    one = np.eye(len(names))[codes]
    generator = np.random.default_rng(seed)
    weights = resampled(generator, np.ones(len(names), dtype=bool), draws)
    seen, drawn = [], []
    pair = effects.sel(effect=pathways)
    for start in range(0, pair.shape[0], _CHUNK):
        block = np.abs(pair[start : start + _CHUNK].values[:, keep].astype(np.float64))
        defined = np.isfinite(block)
        sums = np.einsum("nte,ts->nes", np.where(defined, block, 0.0), one, optimize=True)
        counts = np.einsum("nte,ts->nes", defined, one, optimize=True)
        seen.append(_numbers(sums.sum(-1), counts.sum(-1)))
        every = _numbers(sums @ weights.T, counts @ weights.T)
        tails = (50 * (1 - level), 50 * (1 + level))
        drawn.append({name: np.nanpercentile(v, tails, axis=-1) for name, v in every.items()})
    subject = effects.dims[0]
    found = {}
    for name in seen[0]:
        array = ds.get(name)
        units = "1" if array is None else str(array.attrs.get("units", "1"))
        text = name if array is None else str(array.attrs.get("long_name", name))
        parts = {name: np.concatenate([part[name] for part in seen])}
        for at, end in enumerate(("low", "high")):
            parts[f"{name}_{end}"] = np.concatenate([part[name][at] for part in drawn])
        for own, values in parts.items():
            end = own.removeprefix(name).lstrip("_")
            said = f"{end} end of the {100 * level:g} % interval over sequences: " if end else ""
            found[own] = (subject, values, {"long_name": said + text, "units": units})
    coords = {k: v for k, v in effects.coords.items() if v.dims == (subject,)}
    said = {"draws": draws, "level": level, "seed": seed, "sequences": len(names)}
    return xr.Dataset(found, coords=coords, attrs=said)


def _numbers(sums: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """From sums of |effect| and counts, (n, 2, ...), by total and direct."""
    with np.errstate(invalid="ignore", divide="ignore"):
        te, de = np.moveaxis(sums / counts, 1, 0)
        return {"te": te, "de": de, "te_mediated": te - de, "mediated": 1 - de / te}
