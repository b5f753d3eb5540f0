"""The run: from a plan to a complete store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from confreg.errors import ConfregError
from confreg.execution import batches, statistics
from confreg.execution.plan import CLOSED_FORMS, Plan
from confreg.execution.progress import Progress
from confreg.results import store as stores
from confreg.results.provenance import attributes, coordinates
from confreg.results.store import Store

if TYPE_CHECKING:
    import xarray as xr

    from confreg.models import Model


def open_store(plan: Plan, path: Path, overwrite: bool, command_line: str) -> Store:
    """Create the store of a plan, or resume the one that is there.

    Raises
    ------
    ConfregError
        What is there is no store, or one of another configuration.
    """
    configuration = plan.configuration()
    if overwrite:
        stores.remove(path)
    if path.exists():
        return Store.resume(path, configuration)
    return Store.create(
        path,
        coordinates(plan),
        configuration,
        attributes(plan, command_line),
        plan.neuron_units,
        plan.token_units,
        variables=plan.variables,
    )


def as_stored(plan: Plan, store: Store, progress: Progress) -> Plan:
    """The plan with the units of the store, which may have been cut for another memory budget.

    What was finished and cannot be read any more is said, and done again.
    """
    lost = store.mend()
    if lost:
        progress.say(f"Damaged in {str(store.path)!r}, computed again: {', '.join(lost)}.")
    return replace(plan, neuron_units=store.neurons, token_units=store.tokens)


def execute(plan: Plan, store: Store, model: Model, progress: Progress) -> None:
    """Do what a store still lacks, and finish it.

    Raises
    ------
    ConfregError
        The disk is full, or a block does not fit the schema.
    """
    with torch.no_grad():
        _weights(plan, store, model, progress)
        values = _values(plan, store, model, progress)
        _effects(plan, store, model, values, progress)
        finish(plan, store)


def _weights(plan: Plan, store: Store, model: Model, progress: Progress) -> None:
    if not plan.request.recipe.statistics or store.has("singular_value"):
        return
    with progress.step("weight-space statistics"):
        found = statistics.weight_statistics(plan, model)
    store.note("null_dims", int(found["null_dims"]))
    # singular_value last: it says that all are there.
    for name in ("w_out_norm", "logit_var", "null_fraction", "singular_value"):
        store.write(name, found[name].astype(np.float32))


def _values(plan: Plan, store: Store, model: Model, progress: Progress) -> np.ndarray | None:
    if store.has("ablation_value"):
        return np.asarray(store.read("ablation_value"))
    if plan.ablation.over_tokens and plan.shared_pass:
        return None
    tokens = len(plan.table) * len(plan.neurons.layers) * plan.ablation.over_tokens
    with progress.bar("ablation values", tokens, "tokens") as advance:
        values = statistics.ablation_values(plan, model, advance)
    store.write("ablation_value", values)
    return values


def _effects(
    plan: Plan, store: Store, model: Model, values: np.ndarray | None, progress: Progress
) -> None:
    done = store.done()
    sizes = np.outer(_lengths(plan.neuron_units), _lengths(plan.token_units))
    # Token by token: every neuron of a batch of text before the next.
    todo = [(int(i), int(j)) for j, i in zip(*np.nonzero(~done.T))]
    found: dict[int, np.ndarray] = {}
    with progress.bar("effects", int(sizes.sum()), "neurons × tokens") as advance:
        advance(int(sizes[done].sum()))
        for (i, j), block in measure(plan, model, todo, values):
            store.write_unit(i, j, block)
            if values is None:
                found[i] = block["values"]
            advance(int(sizes[i, j]))
    if values is None and found:
        store.write("ablation_value", _resumed_values(plan, model, found))


def _resumed_values(plan: Plan, model: Model, found: Mapping[int, np.ndarray]) -> np.ndarray:
    if len(found) == len(plan.neuron_units):
        return np.concatenate([found[i] for i in range(len(plan.neuron_units))])
    # A run that was killed in between: the values of the units before are not at hand.
    return statistics.ablation_values(plan, model)


def measure(
    plan: Plan, model: Model, todo: list[tuple[int, int]], values: np.ndarray | None
) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """Run units and yield each with its block, as numpy arrays."""
    recipe = plan.request.recipe
    for i, j in todo:
        batch = batches.make_batch(plan, i, j, values)
        block = recipe.measure(model, batch, **plan.parameters)
        yield (i, j), as_arrays(block)


def as_arrays(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block of tensors as numpy arrays and floats."""
    return {
        name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in block.items()
    }


def _lengths(spans: list[tuple[int, int]]) -> np.ndarray:
    return np.array([stop - start for start, stop in spans])


def finish(plan: Plan, store: Store) -> None:
    """Write the reductions and the last attributes, and mark the store complete."""
    kept = int(plan.table.keep.sum())
    abs_sum, total = store.sums()
    names = [e.name for e in plan.effects]
    store.write("effect_abs_mean", (abs_sum / kept).astype(np.float32))
    store.write("effect_mean", (total / kept).astype(np.float32))
    te_name, de_name = plan.request.recipe.mediated
    if te_name in names and de_name in names:
        te, de = (abs_sum[:, names.index(n)] / kept for n in (te_name, de_name))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 1 - de / te
        for name, values in (("te", te), ("de", de), ("te_mediated", te - de), ("mediated", share)):
            store.write(name, values.astype(np.float32))
    store.finish(_error_attributes(plan, store))


def _error_attributes(plan: Plan, store: Store) -> dict[str, float | str]:
    if not any(e in CLOSED_FORMS for e in plan.engine.values()):
        return {}
    got = store.measured()
    tolerance = plan.request.tolerance
    found: dict[str, float | str] = {
        "recomputed_share": got["recomputed"] / max(got["pairs"], 1),
        "error_sampled_pairs": got["sampled"],
        "error_max": got["error_max"],
        "error_mean": got["error_sum"] / max(got["sampled"], 1),
    }
    if got["error_max"] > 10 * tolerance:
        found["error_warning"] = (
            f"The largest error measured, {got['error_max']:.1e} nats, is more than ten times "
            f"the tolerance, {tolerance:.1e}."
        )
    return found


def result(path: Path) -> xr.Dataset:
    """Open a finished store, after a check that it is finished.

    Raises
    ------
    ConfregError
        It is not.
    """
    ds = stores.open(path)
    if not ds.attrs["complete"]:
        raise ConfregError(f"The store {str(path)!r} is not finished; run its command again.")
    return ds
