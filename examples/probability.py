"""Probability: how much does ablating a neuron change the probability of the correct token?

Two measures of one's own, each a function of logits and targets with a name, a unit and a long
name. On the last layer their effects are found in closed form, on earlier layers by interventions.

    confreg run examples/probability.py --neurons 29:0-63 --out runs/probability.zarr
"""

import nnsight
import torch

from confreg import effects as fx
from confreg import recipe, steps


def of_correct(logits, targets):
    """The correct token's probability, (m,); NaN where there is no next token."""
    p = logits.softmax(-1).gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    return torch.where(targets >= 0, p, torch.nan)


def first_less_second(logits, targets):
    """By how much the likeliest token is likelier than the second, (m,)."""
    first, second = logits.softmax(-1).topk(2).values.unbind(-1)
    return first - second


PROBABILITY = fx.Measure("probability", "1", "probability of the correct token", of=of_correct)
MARGIN = fx.Measure("margin", "1", "likeliest less second probability", of=first_less_second)


@recipe(effects=(PROBABILITY.total, PROBABILITY.direct, MARGIN.total, MARGIN.direct))
def probability(study, *, layer: int = -1, ablation: float | str = "mean"):
    """Ablate every neuron of a layer at every token of the text."""
    tokens = study.tokens()
    neurons = study.neurons(layer)
    value = steps.ablation_value(study, neurons, tokens, ablation)
    return steps.ablation(study, ablate, neurons, tokens, effects=study.effects(), to=value)


def ablate(model, unit):
    """The text once, and, where no algebra does it, once more for every neuron."""
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        activation = site.neurons.input
        if unit.copies:
            site.neurons.input = unit.edits.apply(activation, unit.copies)
        block = site.measure(unit, activation)
        nnsight.save(block)

    return block
