"""What random controls are drawn by: the norms of a layer's output weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Spans, Variable
from confreg.steps.weights import weights
from confreg.subjects.sets import LaterSets, SetAxis
from confreg.sweep.step import Item, Step

if TYPE_CHECKING:
    from confreg.effects import Norms
    from confreg.study import Study


def control_norms(study: Study, sets: SetAxis | LaterSets) -> list[Item]:
    """``w_out_norm`` of the layer's neurons, where controls are drawn by it; else nothing.

    It comes before the step that is over ``sets``.
    """
    if not isinstance(sets, LaterSets):
        return []
    neurons, memory = sets.neurons, study.budget.memory

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Norms:
        import torch

        from confreg.effects import Norms

        start, stop = spans.bounds[neurons.name]
        index = torch.from_numpy(neurons.neurons.index[start:stop].copy())
        return Norms(study.two_tokens, int(neurons.layer[start]), index, memory)

    return [
        Step(
            weights,
            over=(neurons,),
            gives=(Variable("w_out_norm", (neurons.name,), "norm of the output weight"),),
            unit=unit,
            cost=lambda spans: 0,
            name="norms of output weights",
        )
    ]
