"""Prefix-matching scores: which attention heads look for what followed the last time.

A score is read off attention patterns, and of transformers' implementations of attention only
the eager one returns them: it is switched on while heads are scored, and off again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import nnsight
import numpy as np
import torch

from confreg import effects
from confreg.errors import ConfregError
from confreg.tokens import repeats

if TYPE_CHECKING:
    from confreg.execution.plan import Plan
    from confreg.models import Model

TOGETHER = 8
"""Sequences of a pass, at most."""


def score(
    plan: Plan, model: Model, advance: Callable[[int], None] = lambda sequences: None
) -> np.ndarray:
    """Every head's prefix-matching score, (layers, heads) float32.

    The mean over all sequences, each of random tokens that come twice, and not a verdict batch by
    batch: how many sequences go through the model at once changes nothing.

    Raises
    ------
    ConfregError
        The model does not return attention patterns.
    """
    length = int(plan.parameters["score_length"])
    table = repeats.of_random_tokens(
        model.tokenizer, length, int(plan.parameters["score_sequences"]), seed=plan.request.seed
    )
    assert table.repeats is not None
    first = int(table.position[table.repeats.occurrence == 1].min())
    sequences = torch.from_numpy(np.stack(table.sequences))
    total = torch.zeros(model.n_layers, model.n_heads, dtype=torch.float64)
    network = model.nn
    with torch.no_grad(), model.eager_attention():
        for inputs in sequences.split(_together(plan, sequences.shape[1])):
            with model.trace(inputs, output_attentions=True):
                patterns = network.output.attentions
                found = None
                if patterns is not None and all(each is not None for each in patterns):
                    found = effects.prefix_matching(patterns, first, length)
                nnsight.save(found)
            if found is None:
                raise ConfregError(
                    f"{model.name} ({model.architecture}) does not return attention patterns, so "
                    "its heads cannot be scored: name them, -p heads=5.1,7.2."
                )
            total += found.sum(0)
            advance(len(inputs))
    return (total / len(sequences)).float().numpy()


def _together(plan: Plan, length: int) -> int:
    """Sequences whose patterns, of every layer, and logits fit half of the memory budget."""
    model = plan.model
    each = 4 * model.n_layers * model.n_heads * length**2 + 8 * length * model.vocab_size
    return max(1, min(TOGETHER, plan.memory // 2 // each))
