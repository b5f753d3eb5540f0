"""The run: from a plan to a complete store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from confreg.errors import ConfregError
from confreg.execution import batches, context, prefix, sets, statistics
from confreg.execution.plan import CLOSED_FORMS, Plan
from confreg.places.ndif.journal import journal_path
from confreg.progress import Progress
from confreg.results import store as stores
from confreg.results.provenance import attributes, coordinates
from confreg.results.store import Store

if TYPE_CHECKING:
    import xarray as xr

    from confreg.execution.remote import Remote
    from confreg.models import Model
    from confreg.places.ndif.journal import Cost

Unit = tuple[int, int]
Block = dict[str, Any]


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
        journal_path(path).unlink(missing_ok=True)
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
        sums=plan.sums,
        subject=plan.subject,
        known={} if plan.scores is None else {"prefix_score": plan.scores},
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
    with torch.no_grad(), _place(plan, store, model, progress) as place:
        _weights(plan, store, place, progress)
        _frequency(plan, store, place, progress)
        _prefix_scores(plan, store, model, progress)
        values = _values(plan, store, place, progress)
        _effects(plan, store, place, values, progress)
        _jobs(store, place)
        finish(plan, store)


class Here:
    """This process, as the place where traces run; the counterpart of `remote.Remote`."""

    def __init__(self, plan: Plan, model: Model):
        self.plan, self._model = plan, model

    def model(self, key: str) -> Model:
        """The model whose traces do what ``key`` stands for."""
        return self._model

    def stored(self, key: str) -> None:
        """Say that what ``key`` stood for is in the store."""

    def measure(self, todo: list[Unit], values: np.ndarray | None) -> Iterator[tuple[Unit, Block]]:
        """Run units and yield each with its block."""
        measure = self.plan.request.recipe.measure
        for unit in todo:
            batch = batches.make_batch(self.plan, *unit, values)
            yield unit, measure(self._model, batch, **self.plan.parameters)

    def costs(self) -> list[Cost]:
        """What each job has cost: there are none."""
        return []


def _place(
    plan: Plan, store: Store, model: Model, progress: Progress
) -> AbstractContextManager[Here | Remote]:
    if not plan.remote:
        return nullcontext(Here(plan, model))
    from confreg.execution import remote

    return remote.connect(plan, model, store.path, progress)


WEIGHTS = ("w_out_norm", "logit_var", "null_fraction", "singular_value")


def _weights(plan: Plan, store: Store, place: Here | Remote, progress: Progress) -> None:
    if not plan.request.recipe.statistics or all(store.has(name) for name in WEIGHTS):
        return
    with progress.step("weight-space statistics"):
        found = statistics.weight_statistics(plan, place.model("weights"))
    store.note("null_dims", int(found["null_dims"]))
    for name in WEIGHTS:
        store.write(name, found[name].astype(np.float32))
    place.stored("weights")


def _frequency(plan: Plan, store: Store, place: Here | Remote, progress: Progress) -> None:
    if plan.counts is None or store.has("frequency_cosine"):
        return
    with progress.step("token-frequency cosines"):
        found = statistics.frequency_cosines(plan, place.model("frequency"))
    if plan.parameters.get("all_layers"):
        store.write("frequency_cosine_all", found)
    store.write("frequency_cosine", found[plan.neurons.layer, plan.neurons.index])
    place.stored("frequency")


def score_heads(plan: Plan, model: Model, progress: Progress) -> np.ndarray:
    """Prefix-matching scores of every head, (layers, heads)."""
    sequences = int(plan.parameters["score_sequences"])
    with progress.bar("prefix scores", sequences, "sequences") as advance:
        return prefix.score(plan, model, advance)


def stored_scores(plan: Plan, path: Path, overwrite: bool) -> np.ndarray | None:
    """The scores that a store of this plan's configuration has, if there is such a store.

    Raises
    ------
    ConfregError
        There is a store of another configuration.
    """
    if overwrite or not path.exists():
        return None
    store = Store.resume(path, plan.configuration())
    return store.read("prefix_score") if store.readable("prefix_score") else None


def _prefix_scores(plan: Plan, store: Store, model: Model, progress: Progress) -> None:
    if plan.heads is None or plan.remote or store.has("prefix_score"):
        return
    scores = score_heads(plan, model, progress) if plan.scores is None else plan.scores
    store.write("prefix_score", scores)


def _values(
    plan: Plan, store: Store, place: Here | Remote, progress: Progress
) -> np.ndarray | None:
    if plan.heads is not None:
        return np.empty(0, dtype=np.float32)
    if plan.sets is not None:
        return _set_values(plan, store, place, progress)
    if store.has("ablation_value"):
        return np.asarray(store.read("ablation_value"))
    if plan.ablation.over_tokens and plan.shared_pass:
        return None
    tokens = len(plan.table) * len(plan.neurons.layers) * plan.ablation.over_tokens
    with progress.bar("ablation values", tokens, "tokens") as advance:
        values = statistics.ablation_values(plan, place.model("values"), advance)
    store.write("ablation_value", values)
    place.stored("values")
    return values


def _set_values(plan: Plan, store: Store, place: Here | Remote, progress: Progress) -> np.ndarray:
    """What `batches.make_batch` takes for sets, (2, n)."""

    def known(name: str, measure: Callable[..., np.ndarray], *options: int) -> np.ndarray:
        if not store.has(name):
            tokens = len(plan.table) * len(plan.neurons.layers)
            with progress.bar(name.replace("_", " ") + "s", tokens, "tokens") as advance:
                store.write(name, measure(plan, place.model(name), *options, advance))
            place.stored(name)
        return np.asarray(store.read(name))

    value = known("ablation_value", statistics.ablation_values)
    if plan.table.repeats is None:
        return np.stack([value, known("activation_deviation", statistics.deviations)])
    first, second = (
        known(f"mean_{name}", statistics.occurrence_means, number)
        for number, name in enumerate(("first", "second"))
    )
    return np.stack([value, np.where(second >= first, 1, -1).astype(np.float32)])


def _effects(
    plan: Plan, store: Store, place: Here | Remote, values: np.ndarray | None, progress: Progress
) -> None:
    done = store.done()
    sizes = np.outer(_lengths(plan.neuron_units), _lengths(plan.token_units))
    # Token by token: every neuron of a batch of text before the next.
    todo = [(int(i), int(j)) for j, i in zip(*np.nonzero(~done.T))]
    found: dict[int, np.ndarray] = {}
    with progress.bar("effects", int(sizes.sum()), f"{plan.subject}s × tokens") as advance:
        advance(int(sizes[done].sum()))
        for (i, j), tensors in place.measure(todo, values):
            block = as_arrays(tensors)
            store.write_unit(i, j, block)
            if values is None:
                found[i] = block["values"]
            advance(int(sizes[i, j]))
    if values is None and found:
        store.write("ablation_value", _resumed_values(plan, place, found))


def _resumed_values(
    plan: Plan, place: Here | Remote, found: Mapping[int, np.ndarray]
) -> np.ndarray:
    if len(found) == len(plan.neuron_units):
        return np.concatenate([found[i] for i in range(len(plan.neuron_units))])
    # A run that was killed in between: the values of the units before are not at hand.
    return statistics.ablation_values(plan, place.model("values"))


def _jobs(store: Store, place: Here | Remote) -> None:
    """Keep what each job of a server has cost."""
    costs = place.costs()
    if not costs:
        return
    store.write("job_id", np.array([c.id for c in costs], dtype=object))
    store.write("job_bytes_up", np.array([c.bytes_up for c in costs], dtype=np.int64))
    store.write("job_bytes_down", np.array([c.bytes_down for c in costs], dtype=np.int64))
    store.write("job_seconds", np.array([c.seconds for c in costs], dtype=np.float64))


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
    abs_sum, total = store.total("abs_sum"), store.total("sum")
    names = [e.name for e in plan.effects]
    if "temperature_share" in names:
        # As with the mediated share: of means, never a mean of the tokens' shares.
        kl, left = (total[:, names.index(f"divergence_{n}")] for n in ("total", "tempered_total"))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 1 - left / kl
        total[:, names.index("temperature_share")] = kept * share
        abs_sum[:, names.index("temperature_share")] = kept * share
        store.write("temperature_share", share.astype(np.float32))
    store.write("effect_abs_mean", (abs_sum / kept).astype(np.float32))
    store.write("effect_mean", (total / kept).astype(np.float32))
    te_name, de_name = plan.request.recipe.mediated
    if te_name in names and de_name in names:
        te, de = (abs_sum[:, names.index(n)] / kept for n in (te_name, de_name))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 1 - de / te
        for name, values in (("te", te), ("de", de), ("te_mediated", te - de), ("mediated", share)):
            store.write(name, values.astype(np.float32))
    if plan.sets is not None:
        store.write("p_random", sets.p_values(plan.sets, abs_sum))
    if plan.heads is not None:
        size = store.total("change_abs_sum") / kept
        store.write("activation_change_abs_mean", size.astype(np.float32))
        store.write("activation_change_mean", (store.total("change_sum") / kept).astype(np.float32))
        store.write("activation_p_random", sets.p_values(plan.heads, size))
    if plan.request.recipe.context:
        context.write(plan, store)
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
