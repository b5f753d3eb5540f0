"""Where a dataset comes from: its coordinates and root attributes."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import xarray as xr

import confreg
from confreg.results import schema

if TYPE_CHECKING:
    from confreg.execution.plan import Plan

LIBRARIES = ("nnsight", "torch", "transformers", "accelerate", "zarr", "xarray")


def versions() -> dict[str, str]:
    """Versions of what computes, by library; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def coordinates(plan: Plan) -> xr.Dataset:
    """The labels of every axis, validated against the schema."""
    table, neurons = plan.table, plan.neurons
    values: dict[str, Any] = {
        "neuron": neurons.labels,
        "layer": neurons.layer,
        "index": neurons.index,
        "token": np.arange(len(table)),
        "sequence": table.sequence,
        "position": table.position,
        "token_id": table.token_id,
        "token_text": table.text,
        "next_token_id": table.next_token_id,
        "keep": table.keep,
        "effect": np.array([e.name for e in plan.effects], dtype=object),
        "effect_units": np.array([e.units for e in plan.effects], dtype=object),
        "effect_long_name": np.array([e.long_name for e in plan.effects], dtype=object),
    }
    if plan.request.recipe.statistics:
        values["component"] = np.arange(plan.model.d_model)
    if plan.sets is not None:
        values.update(plan.sets.coordinates())
    if table.repeats is not None:
        for name in ("occurrence", "aligned", "matched", "compared"):
            values[name] = getattr(table.repeats, name)
    if plan.parameters.get("all_layers"):
        values["model_layer"] = np.arange(plan.model.n_layers)
        values["model_index"] = np.arange(plan.model.n_neurons)
    if plan.heads is not None and not plan.remote:
        values["model_layer"] = np.arange(plan.model.n_layers)
        values["head"] = np.arange(plan.model.n_heads)
    found = {}
    for name, array in values.items():
        row = schema.variable(name)
        dtype = object if row.dtype == "str" else row.dtype
        found[name] = (row.dims, np.asarray(array).astype(dtype), row.attributes)
    ds = xr.Dataset(coords=found)
    schema.validate(ds)
    return ds


def _counted(plan: Plan) -> dict[str, str | int]:
    if plan.counts is None:
        return {}
    found = plan.counts
    said = {"counts": found.source, "counts_sha256": found.sha256, "counts_tokens": found.total}
    return {**said, **({"counts_warning": found.warning} if found.warning else {})}


def attributes(plan: Plan, command_line: str) -> dict[str, str | int | float]:
    """Root attributes known before the run: flat, and free of clocks and credentials."""
    r, v = plan.request, versions()
    host = getattr(plan.profile, "host", "")
    return {
        "title": f"{r.recipe.name}: {plan.model.name}",
        "recipe": r.recipe.name,
        "confreg_version": confreg.__version__,
        **{f"{name}_version": v[name] for name in ("python", *LIBRARIES)},
        "model": plan.model.name,
        "model_revision": plan.model.revision or "",
        "model_architecture": plan.model.architecture,
        "model_layers": plan.model.n_layers,
        "dtype": str(plan.configuration()["dtype"]),
        "tokenizer": plan.table.tokenizer,
        "corpus": plan.table.corpus,
        "corpus_sha256": plan.table.corpus_hash,
        **_counted(plan),
        "sequence_length": plan.table.sequence_length,
        "profile": plan.profile.name,
        "host": urlsplit(host).netloc.rpartition("@")[2] if host else "local",
        "engine": ",".join(sorted(set(plan.engine.values()))),
        "tolerance": r.tolerance,
        "ablation": "bos" if plan.heads else str(plan.parameters.get("ablation", "")),
        **({k: str(plan.parameters[k]) for k in ("heads", "controls")} if plan.heads else {}),
        "mean_over": str(plan.parameters.get("mean_over", "")),
        "mean_over_tokens": int(plan.mean_over.sum()),
        "mediated_total": r.recipe.mediated[0],
        "mediated_direct": r.recipe.mediated[1],
        "reduce": r.reduce,
        "seed": r.seed,
        "command_line": command_line,
        "history": f"confreg {confreg.__version__}: {command_line}",
    }
