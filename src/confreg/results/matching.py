"""Neurons matched over the activations that two stores keep.

>>> a, b = confreg.open("runs/a.zarr"), confreg.open("runs/b.zarr")  # run with --activations
>>> confreg.match(a, b)["excess_correlation"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from confreg.errors import ConfregError
from confreg.results import activity


def match(
    ds: xr.Dataset,
    *others: xr.Dataset,
    layers: int | None = None,
    draws: int = 4,
    above: float = 0.5,
    seed: int = 0,
) -> xr.Dataset:
    """Match neurons with those of other models, as the recipe universal_neurons does.

    Parameters
    ----------
    ds, *others : Dataset
        With ``activation (neuron, token)``, of the same tokens. What a store holds of a layer is
        what is matched and rotated: whole layers give the recipe's numbers.
    layers, draws, above
        As of the recipe.
    seed : int
        Of the rotations, as ``--seed`` of the recipe.

    Returns
    -------
    Dataset
        The recipe's variables about matches.

    Raises
    ------
    ConfregError
        A dataset keeps no activations, or has other tokens.
    """
    from confreg.derive import matching
    from confreg.steps.matching import MOMENTS, WORDS, other_layers, variables

    if not others:
        raise ConfregError("confreg.match needs a second dataset.")
    if draws < 1:
        raise ConfregError(f"draws is at least 1, not {draws}.")
    for number, one in enumerate((ds, *others)):
        _check(one, ds, number)
    names, keep = _names(others), ds["keep"].values
    mine_layers, counts = _depth(ds), [_depth(one) for one in others]
    every = matching.Layers.of(counts, layers)
    along = other_layers(names, every)
    n, p = ds.sizes["neuron"], len(every.layer)
    found = {
        "correlation": np.full((n, p), np.nan),
        "index": np.full((n, p), -1),
        "same": np.full((n, p), np.nan),
        "baseline": np.full((n, p, draws), np.nan),
    }
    moments = {f"activation_{moment}": np.full(n, np.nan) for moment in MOMENTS}
    where = [_layer(others[m], int(number)) for m, number in zip(every.model, every.layer)]
    for layer, rows in _spans(ds, int(keep.sum())):
        mine = _tensor(ds, rows, keep)
        powers = matching.Powers()
        powers.add(mine)
        for name, values in powers.moments().items():
            moments[name][rows] = values.numpy()
        for place in np.flatnonzero(every.like(layer, mine_layers)):
            model, number = int(every.model[place]), int(every.layer[place])
            other, theirs = others[model], where[place]
            if not len(theirs):
                continue
            sums = matching.Sums()
            sums.add(mine, _tensor(other, theirs, keep))
            same = None
            if number == layer and counts[model] == mine_layers:
                same = _same(ds, rows, other, theirs)
            best = matching.of_layer(sums, same, [(seed, model, number, d) for d in range(draws)])
            index = other["index"].values[theirs][np.maximum(best["index"], 0)]
            found["correlation"][rows, place] = best["correlation"]
            found["index"][rows, place] = np.where(best["index"] < 0, -1, index)
            found["baseline"][rows, place] = best["baseline"]
            found["same"][rows, place] = best["same"]
    mine_at = np.unique(ds["layer"].values).tolist()
    sizes = [
        max(
            sum(len(where[place]) for place in np.flatnonzero(every.like(layer, mine_layers))
                if every.model[place] == model)
            for layer in mine_at
        )
        for model in range(len(others))
    ]  # fmt: skip
    reduced: dict[str, Any] = {
        **matching.reduced(every, found, above),
        "layer_baseline": found["baseline"].mean(-1),
        "chance_floor": np.array([matching.chance(size, int(keep.sum())) for size in sizes]),
    }
    arrays = {
        each.name: (each.dims, reduced[each.name].astype(each.dtype), each.attributes)
        for each in variables("neuron", "other_layer")
    }
    words = {"long_name": "largest correlation with a neuron of the layer", "units": "1"}
    arrays["layer_correlation"] = (
        ("neuron", "other_layer"), found["correlation"].astype(np.float32), words
    )  # fmt: skip
    for (name, values), text in zip(moments.items(), WORDS):
        arrays[name] = (("neuron",), values, {"long_name": text, "units": "1"})
    return xr.Dataset(
        arrays,
        coords={
            "other": ("other", names, {"long_name": "model that is matched with"}),
            **{
                name: ("other_layer", label.values, label.attributes)
                for name, label in along.labels.items()
            },
            **activity.of_neurons(ds),
        },
        attrs={
            "recipe": "universal_neurons",
            "model": str(ds.attrs.get("model", "")),
            "parameter_other": ",".join(names),
            "seed": seed,
        },
    )


def _check(one: xr.Dataset, first: xr.Dataset, number: int) -> None:
    which = "The first dataset" if number == 0 else f"Dataset {number + 1}"
    if "activation" not in one or one["activation"].dims != ("neuron", "token"):
        raise ConfregError(f"{which} keeps no activations: run it with --activations.")
    for name in ("token_id", "sequence", "position", "keep"):
        if not np.array_equal(one[name].values, first[name].values):
            raise ConfregError(
                f"{which} is about other tokens than the first (their {name} differ): run both "
                "on the same text, by the same options, with models that share a tokenizer."
            )


def _depth(ds: xr.Dataset) -> int:
    """Layers of the model."""
    return int(ds.attrs.get("model_layers", 1 + int(ds["layer"].max())))


def _names(others: Sequence[xr.Dataset]) -> list[str]:
    """A name for each, told apart where two are of one model."""
    found = [str(one.attrs.get("model", f"model {n + 2}")) for n, one in enumerate(others)]
    return [name if found.count(name) == 1 else f"{name} ({n + 2})" for n, name in enumerate(found)]


def _layer(ds: xr.Dataset, layer: int) -> np.ndarray:
    return np.flatnonzero(ds["layer"].values == layer)


def _spans(ds: xr.Dataset, kept: int) -> list[tuple[int, np.ndarray]]:
    """Neurons of one layer at a time, few enough to be held."""
    most = max(activity.SPAN_BYTES // (8 * max(kept, 1)), 1)
    return [
        (int(layer), rows[start : start + most])
        for layer in np.unique(ds["layer"].values)
        for rows in [_layer(ds, layer)]
        for start in range(0, len(rows), most)
    ]


def _tensor(ds: xr.Dataset, rows: np.ndarray, keep: np.ndarray) -> Any:
    """Activations of some neurons at kept tokens, (T, n) float64."""
    import torch

    seen = ds["activation"].isel(neuron=rows).values[:, keep]
    return torch.from_numpy(np.ascontiguousarray(seen.T, dtype=np.float64))


def _same(
    ds: xr.Dataset, rows: np.ndarray, other: xr.Dataset, where: np.ndarray
) -> np.ndarray | None:
    """Where in a layer the neurons of the same indices are, if all are there."""
    mine, theirs = ds["index"].values[rows], other["index"].values[where]
    place = np.searchsorted(theirs, mine)
    if (place >= len(theirs)).any() or (theirs[place] != mine).any():
        return None
    return place
