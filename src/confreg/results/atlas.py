"""All models of a folder on the same axes, as one dataset that a page can be made of."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import xarray as xr

from confreg.errors import ConfregError
from confreg.results import axes

BINS = 10
"""Of relative depth, layer/(layers − 1)."""
POINTS = 1500
"""Neurons of each model that are drawn."""
TOP = 10
ROLES = ("prediction", "suppression", "partition", "entropy")


def atlas(tree: xr.DataTree) -> xr.Dataset:
    """What can be told of every model of a tree, along ``model``.

    Returns
    -------
    Dataset
        By model, NaN where a store has not what is needed: ``neurons``; ``role_share (model, role,
        depth)``, share of the neurons at a relative depth that have a role; ``rho_largest`` and
        ``rho_99 (model)`` over the last two layers that there are, ``rho_chance_max``;
        ``median_kurtosis``, ``median_cosine (model, depth)``; ``te_top`` and ``mediated_top (model,
        place)`` of the strongest by mediated effect, and their names; ``point_norm``,
        ``point_variance (model, point)``; ``training_step (model)`` of revisions named
        ``stepN``.

    Raises
    ------
    ConfregError
        No store is about neurons.
    """
    sets = {name: child.to_dataset() for name, child in tree.children.items()}
    sets = {name: ds for name, ds in sets.items() if axes.main_subject(ds) == "neuron"}
    if not sets:
        raise ConfregError("No store of the folder is about neurons: there is no atlas of them.")
    rows = [_of_model(ds) for ds in sets.values()]
    texts = {
        "neurons": "neurons in the store",
        "role_share": "share of the neurons at this depth with the role",
        "median_kurtosis": "median kurtosis over the vocabulary",
        "median_cosine": "median cos(in, out)",
        "rho_largest": "largest ρ of the last two layers",
        "rho_99": "99 % of ρ in the last two layers",
        "rho_above": "share of ρ above chance in the last two layers",
        "rho_chance_max": "largest ρ of as many random directions",
        "te_top": "TE of the strongest",
        "mediated_top": "mediated share of the strongest",
        "point_norm": "norm of the output weight",
        "point_variance": "LogitVar",
    }
    dims = {
        "role_share": ("role_name", "depth"), "median_kurtosis": ("depth",),
        "median_cosine": ("depth",), "te_top": ("place",), "mediated_top": ("place",),
        "point_norm": ("point",), "point_variance": ("point",),
    }  # fmt: skip
    units = {"te_top": "nats"}
    data: dict[str, Any] = {
        name: (
            ("model", *dims.get(name, ())), np.stack([row[name] for row in rows]),
            {"long_name": text, "units": units.get(name, "1")},
        )
        for name, text in texts.items()
        if any(np.isfinite(row[name]).any() for row in rows)
    }  # fmt: skip
    names = np.stack([row["top_names"] for row in rows])
    data["top_names"] = (("model", "place"), names, {"long_name": "the strongest"})
    base, step = zip(*(_checkpoint(name, ds) for name, ds in sets.items()))
    other = {"axis_kind": "other"}
    return xr.Dataset(
        data,
        coords={
            "model": ("model", np.array(list(sets), dtype=object), {"long_name": "model"}),
            "training_step": ("model", np.array(step, dtype=float), {"long_name": "step"}),
            "family": ("model", np.array(base, dtype=object), {"long_name": "checkpoints of"}),
            "role_name": ("role_name", np.array(ROLES, dtype=object), other),
            "depth": ("depth", (np.arange(BINS) + 0.5) / BINS,
                      {"long_name": "relative depth", **other}),
            "place": ("place", np.arange(TOP), other),
            "point": ("point", np.arange(POINTS), other),
        },
        attrs={
            "title": f"atlas of {len(sets)} models",
            "recipe": "atlas",
            "model": ", ".join(sets),
            "unfinished": str(tree.attrs.get("unfinished", "")),
            "complete": 1,
        },
    )  # fmt: skip


def _checkpoint(name: str, ds: xr.Dataset) -> tuple[str, float]:
    """What a model is a checkpoint of, and at which step; NaN where its name does not say."""
    text = f"{name}@{ds.attrs.get('model_revision', '')}"
    found = re.search(r"[@_-](?:step|iter|ckpt)[-_]?(\d+)", text)
    return (name[: found.start()] or name, float(found[1])) if found else (name, np.nan)


def _of_model(ds: xr.Dataset) -> dict[str, Any]:
    layer = ds["layer"].values
    layers = int(ds.attrs.get("model_layers", layer.max() + 1))
    depth = np.minimum(layer * BINS // max(layers - 1, 1), BINS - 1)
    found: dict[str, Any] = {"neurons": float(len(layer))}

    def column(name: str) -> np.ndarray:
        if name in ds and ds[name].dims == ("neuron",) and ds[name].dtype.kind in "fiu":
            return ds[name].values.astype(float)
        return np.full(len(layer), np.nan)

    def median(name: str) -> np.ndarray:
        values = column(name)
        here = [values[(depth == b) & np.isfinite(values)] for b in range(BINS)]
        return np.array([np.median(x) if len(x) else np.nan for x in here])

    share = np.full((len(ROLES), BINS), np.nan)
    if "role" in ds:
        role = ds["role"].values.astype(str)
        for b in range(BINS):
            if (depth == b).any():
                share[:, b] = [(role[depth == b] == name).mean() for name in ROLES]
    rho = column("null_fraction")[layer >= layers - 2]
    rho = rho[np.isfinite(rho)]
    chance = float(ds.get("null_fraction_chance_max", np.nan))
    found |= {
        "role_share": share,
        "median_kurtosis": median("vocab_kurtosis"),
        "median_cosine": median("in_out_cosine"),
        "rho_largest": rho.max(initial=-np.inf) if len(rho) else np.nan,
        "rho_99": np.quantile(rho, 0.99) if len(rho) else np.nan,
        "rho_above": (rho > chance).mean() if len(rho) and np.isfinite(chance) else np.nan,
        "rho_chance_max": chance,
    }
    te, mediated = column("te"), column("mediated")
    order = np.argsort(-np.nan_to_num(te * mediated, nan=-np.inf), kind="stable")[:TOP]
    order = order[np.isfinite(te[order])]
    top = np.full((2, TOP), np.nan)
    top[:, : len(order)] = te[order], mediated[order]
    names = np.full(TOP, "", dtype=object)
    names[: len(order)] = [str(n) for n in ds["neuron"].values[order]]
    found |= {"te_top": top[0], "mediated_top": top[1], "top_names": names}
    norm, variance = column("w_out_norm"), column("logit_var")
    # The largest norms, where entropy neurons are, and an even sample of the rest.
    size = np.argsort(np.nan_to_num(norm, nan=-np.inf), kind="stable")
    tail = POINTS // 3
    rows = size
    if len(size) > POINTS:
        rest = np.linspace(0, len(size) - tail - 1, POINTS - tail).astype(int)
        rows = np.append(size[rest], size[-tail:])
    points = np.full((2, POINTS), np.nan)
    points[:, : len(rows)] = norm[rows], variance[rows]
    return found | {"point_norm": points[0], "point_variance": points[1]}
