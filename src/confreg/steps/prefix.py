"""Prefix-matching scores: which attention heads look for what followed the last time.

A score is read off attention patterns, and of transformers' implementations of attention only
the eager one returns them: it is switched on while heads are scored, and off again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np

from confreg.axes import Axis, Label, Spans, Variable
from confreg.errors import ConfregError
from confreg.sweep.budget import Budget
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import xarray as xr

    from confreg.study import Study

TOGETHER = 8
"""Sequences of a pass, at most."""


def prefix_scores(
    study: Study, sequences: int = 64, length: int = 50, needed: bool = True
) -> list[Item]:
    """Every head's prefix-matching score: ``prefix_score (model_layer, head)``.

    The mean over all sequences, each of random tokens that come twice.

    Parameters
    ----------
    study : Study
    sequences : int
        How many.
    length : int
        Random tokens of a sequence, which then come again.
    needed : bool
        Whether something depends on the scores. Those that nothing depends on are left out on a
        server, which cannot find them.

    Raises
    ------
    ConfregError
        The model has no positions for sequences so long, or scales them by what came before.
    """
    from confreg.effects import Prefixes
    from confreg.models import positions
    from confreg.tokens import repeats

    if study.is_remote and not needed:
        return []
    model = study.model.about
    table = repeats.of_random_tokens(
        model.tokenizer, length, sequences, seed=study.options.seed, rows=model.vocab_size
    )
    longest, scored = model.max_length, max(map(len, table.sequences))
    if longest is not None and scored > longest:
        raise ConfregError(
            f"{model.name} has positions for {longest} tokens; heads would be scored on sequences "
            f"of {scored}: lower score_length."
        )
    positions.alike(np.array([scored]), model)
    first = int(table.position[table.marks["occurrence"] == 1].min())
    rows = np.stack(table.sequences)
    label = Label(np.arange(sequences), "sequence on which heads are scored")
    scored_axis = Axis(
        "scored", {"scored": label}, lambda start, stop: rows[start:stop], kept=False
    )
    layers = Axis.of(
        "model_layer", np.arange(model.n_layers, dtype=np.int32), "layer of the model, from 0"
    )
    heads = Axis.of(
        "head", np.arange(model.n_heads, dtype=np.int32), "query head of a layer, from 0"
    )

    def most(budget: Budget) -> dict[str, int]:
        """Sequences whose patterns, of every layer, and logits fit half of the memory budget."""
        each = 4 * model.n_layers * model.n_heads * scored**2 + 8 * scored * model.vocab_size
        return {"scored": max(1, min(TOGETHER, budget.memory // 2 // each))}

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Prefixes:
        import torch

        inputs = torch.from_numpy(scored_axis.entries(*spans.bounds["scored"]).copy())
        return Prefixes(inputs, first, length)

    total = Variable(
        "prefix_sum", ("model_layer", "head"), "sum over sequences", dtype="float64",
        added_over=("scored",), kept=False,
    )  # fmt: skip
    step = Step(
        attention_to_prefixes,
        over=(scored_axis,),
        along=(layers, heads),
        gives=(total,),
        unit=unit,
        most=most,
        name="prefix scores",
        here_only="Heads are scored by their attention patterns, and a server's attention returns "
        "none: name the heads, -p heads=5.1,7.2, for instance those that a run elsewhere has "
        "found.",
    )

    def scores(ds: xr.Dataset) -> dict[str, Any]:
        return {"prefix_score": ds["prefix_sum"] / sequences}

    text = "prefix-matching score: mean attention to what followed the token before"
    return [step, Derivation(scores, (Variable("prefix_score", ("model_layer", "head"), text),))]


def attention_to_prefixes(model: Any, unit: Any) -> dict[str, Any]:
    """Prefix matching of every head, added up over some sequences."""
    network = model.nn
    with model.eager_attention(), model.trace(unit.inputs, output_attentions=True):
        found = unit.matching(network.output.attentions)
        nnsight.save(found)
    if found is None:
        raise ConfregError(
            f"{model.name} ({model.architecture}) does not return attention patterns, so "
            "its heads cannot be scored: name them, -p heads=5.1,7.2."
        )
    if len(found) == model.n_layers:
        return {"prefix_sum": found}
    # A hybrid returns the patterns of those layers that attend.
    every = found.new_zeros(model.n_layers, model.n_heads)
    every[[layer for layer, attends in enumerate(model.attends) if attends]] = found
    return {"prefix_sum": every}
