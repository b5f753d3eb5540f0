"""A unit of work as what one trace takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from confreg import effects
from confreg.execution.heads import HeadSets

if TYPE_CHECKING:
    from confreg.execution.plan import Plan
    from confreg.tokens import TokenTable


@dataclass(frozen=True)
class TokenBlock:
    """Some tokens, and the sequences that must be run to predict them.

    Attributes
    ----------
    inputs : Tensor (B, L) int64
        Padded on the right: a causal model's earlier positions cannot see the padding.
    positions : Tensor (T,) int64
        Where the tokens are in the flattened inputs.
    targets : Tensor (T,) int64
        Next token, -1 where there is none.
    keep : Tensor (T,) bool
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    keep: torch.Tensor


def token_block(table: TokenTable, start: int, stop: int) -> TokenBlock:
    """Tokens ``start`` to ``stop`` of a table.

    A sequence is cut behind its last token in the block, so sequences that begin or end
    inside the block cost no more than they must.
    """
    sequence, position = table.sequence[start:stop], table.position[start:stop]
    first, last = int(sequence[0]), int(sequence[-1])
    lengths = [int(position[sequence == s].max()) + 1 for s in range(first, last + 1)]
    inputs = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
    for row, length in enumerate(lengths):
        inputs[row, :length] = table.sequences[first + row][:length]
    return TokenBlock(
        torch.from_numpy(inputs),
        torch.from_numpy((sequence - first) * inputs.shape[1] + position),
        torch.from_numpy(np.ascontiguousarray(table.next_token_id[start:stop])),
        torch.from_numpy(np.ascontiguousarray(table.keep[start:stop])),
    )


def make_batch(
    plan: Plan, neuron_unit: int, token_unit: int, values: np.ndarray | None
) -> effects.Batch:
    """The batch of one unit.

    Parameters
    ----------
    values : ndarray (n,) float32 or None
        Ablation values of the plan's neurons; None where the trace finds them itself. For
        sets (2, n): their members' means and standard deviations, or for clipped sets the sides
        to which the repeat moves them.
    """
    start, stop = plan.neuron_units[neuron_unit]
    layer = int(plan.subjects.layer[start])
    units = len(plan.neuron_units) * len(plan.token_units)
    block = token_block(plan.table, *plan.token_units[token_unit])
    engine = plan.engine[layer]
    copies = 1 + (stop - start) if engine == "forward" else 1
    return effects.Batch(
        inputs=block.inputs.repeat(copies, 1),
        rows=len(block.inputs),
        positions=block.positions,
        targets=block.targets,
        keep=block.keep,
        layer=layer,
        width=plan.model.n_neurons,
        **_subjects(plan, start, stop, values),
        ablation=(plan.ablation.kind, plan.ablation.value),
        over=torch.from_numpy(plan.mean_over[slice(*plan.token_units[token_unit])].copy()),
        effects=tuple(e.name for e in plan.effects),
        engine=engine,
        tolerance=plan.request.tolerance,
        memory=plan.memory,
        seed=plan.request.seed + neuron_unit * len(plan.token_units) + token_unit,
        sample=-(-SAMPLE // units),
        reduce=not plan.cube,
        activations=_activations(plan, start),
        wanted=_wanted(plan, *plan.token_units[token_unit]),
        counts=token_counts(plan),
    )


def _activations(plan: Plan, start: int) -> bool:
    """Whether the unit that begins with ablation ``start`` returns activations.

    Of sets' members the first unit has all; where heads are ablated every unit has changes.
    """
    return plan.activations and (plan.sets is None or plan.heads is not None or start == 0)


def _subjects(plan: Plan, start: int, stop: int, values: np.ndarray | None) -> dict[str, Any]:
    """What a batch ablates: neurons, sets of them with ``values`` as of `make_batch`, or heads."""
    sets = plan.sets
    if isinstance(sets, HeadSets):
        return {
            "neurons": torch.from_numpy(plan.neurons.index.copy()),
            "values": torch.empty(0),  # nothing is put in a neuron's place
            "heads": [torch.from_numpy(m) for m in sets.members[start:stop]],
            "n_heads": plan.model.n_heads,
        }
    if sets is None:
        return {
            "neurons": torch.from_numpy(plan.neurons.index[start:stop].copy()),
            "values": None if values is None else torch.from_numpy(values[start:stop].copy()),
        }
    assert values is not None
    listed = plan.neurons.index[: len(plan.neurons) * _activations(plan, start)]
    chosen = sets.members[start:stop]
    where = [np.searchsorted(plan.neurons.index, members) for members in chosen]
    mean, other = values
    deviation, clipped = (of[start:stop] for of in (sets.deviation, sets.clipped))
    replaced = [(mean[at] + k * other[at]).astype(np.float32) for at, k in zip(where, deviation)]
    sides = [(c * other[at]).astype(np.int8) for at, c in zip(where, clipped)]
    return {
        "neurons": torch.from_numpy(listed.copy()),
        "values": torch.empty(0),
        "sets": [torch.from_numpy(members) for members in chosen],
        "set_values": [torch.from_numpy(each) for each in replaced],
        "set_sides": [torch.from_numpy(each) for each in sides] if clipped.any() else None,
    }


def _wanted(plan: Plan, start: int, stop: int) -> torch.Tensor | None:
    """Tokens at which effects are wanted: of repeats those in an occurrence, else all."""
    if plan.table.repeats is None:
        return None
    return torch.from_numpy(plan.table.repeats.occurrence[start:stop] >= 0)


def token_counts(plan: Plan) -> torch.Tensor | None:
    """Token counts as a batch takes them; None where the recipe takes none."""
    if plan.counts is None:
        return None
    return torch.from_numpy(plan.counts.packed(plan.model.vocab_real))


SAMPLE = 4096
"""Pairs of a run that are recomputed exactly, in float64, to measure the error."""
