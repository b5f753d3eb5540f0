"""Steps about what neurons read, from weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np

from confreg.axes import Spans, Variable
from confreg.steps.census import by_layer
from confreg.sweep.step import Item, Step

if TYPE_CHECKING:
    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis

PAIRS = (
    ("in_out", "input and output weight"),
    ("gate_out", "gate's and output weight"),
    ("gate_in", "gate's and input weight"),
)


def input_weights(study: Study, neurons: NeuronAxis) -> list[Item]:
    """What neurons read from the residual stream, the norm before the MLP folded in.

    Gives ``w_in_norm``, ``input_bias``, ``in_out_cosine`` and ``in_out_p (neuron)``, and of gated
    MLPs ``w_gate_norm``, ``gate_bias``, ``gate_out_cosine``, ``gate_in_cosine`` and their p: see
    `confreg.effects.inputs`. No step of routed experts and of families whose row does not say
    which matrices read.

    Parameters
    ----------
    study : Study
    neurons : NeuronAxis
    """
    from confreg.effects import Reading

    row, memory = study.model.about.row, study.budget.memory
    if not row.up:
        return []
    gated, n = bool(row.gate), (neurons.name,)

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Reading:
        return Reading(study.two_tokens, *by_layer(neurons, *spans.bounds[neurons.name]), memory)

    kept = {"in_out": True, "gate_out": gated, "gate_in": gated}
    return [
        Step(
            inputs_of_layers,
            over=(neurons,),
            unit=unit,
            cost=lambda spans: 0,
            name="input weights",
            gives=(
                Variable("w_in_norm", n, "norm of the input weight, the norm before it folded in"),
                Variable("input_bias", n, "bias of the input, the norm's folded in"),
                Variable("w_gate_norm", n, "norm of the gate's weight, folded", kept=gated),
                Variable("gate_bias", n, "bias of the gate, folded", kept=gated),
                *(Variable(f"{pair}_cosine", n, f"cosine of the {said}", kept=kept[pair])
                  for pair, said in PAIRS),
                *(Variable(f"{pair}_p", n, f"share of the layer's mismatched pairs whose cosine of "
                           f"{said} is as large", kept=kept[pair])
                  for pair, said in PAIRS),
            ),
        )
    ]  # fmt: skip


def inputs_of_layers(model: Any, unit: Any) -> Any:
    """How neurons of several layers read, before any layer has run."""
    inputs = [model.inputs(layer) for layer in unit.layers]
    sites = [model.site(layer) for layer in unit.layers]
    begin = sites[0].begin
    with model.trace(unit.inputs) as tracer:
        found = nnsight.save(unit.statistics(inputs, sites, begin.input))
        tracer.stop()
    return found
