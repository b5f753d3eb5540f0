"""Ablation values: what an activation is replaced by."""

import torch

from .readout import take


def pick(activation, positions, neurons):
    """Some neurons at some tokens: (R, L, width) -> (T, n), as they are.

    Parameters
    ----------
    positions : Tensor (T,) int64
        Indices into the flattened (rows · length).
    neurons : Tensor (n,) int64
    """
    return take(activation, positions).index_select(-1, neurons.to(activation.device))


def ablation_values(activation, kind, value, over):
    """What replaces each neuron's activation, (n,) float32.

    Parameters
    ----------
    activation : Tensor (T, n)
    kind : str
        ``"mean"``, ``"percentile"`` or ``"constant"``.
    value : float
        The percentile (0 to 100, linear between order statistics), or the constant.
    over : Tensor (T,) bool
        The tokens that count; where an activation is NaN (an expert's neuron at a token that is not
        routed to it) it does not.
    """
    if kind == "constant":
        return torch.full((activation.shape[1],), float(value), device=activation.device)
    chosen = activation[over.to(activation.device)]
    count = (~chosen.isnan()).sum(0)
    if kind == "mean":
        return (chosen.double().nansum(0) / count).float()
    # torch.quantile refuses large inputs; a sort, which puts NaN last, does not.
    ranked = chosen.float().sort(0).values
    last = (count - 1).clamp_min(0)
    place = value / 100 * last.double()
    low = place.long()
    here = ranked.gather(0, low[None])[0]
    there = ranked.gather(0, torch.minimum(low + 1, last)[None])[0]
    return here + (place - low).float() * (there - here)


def moved(replacement, activation):
    """How far an activation is from what replaces it; 0 where a neuron is not there (NaN)."""
    return (replacement - activation).masked_fill_(activation.isnan(), 0.0)


def replaced(activation, values, sides):
    """Activations (..., k) after an ablation to ``values`` (k,), which may be *clipped*.

    Parameters
    ----------
    sides : Tensor (k,) or ()
        0: replaced everywhere. 1: only where the activation is above the value, -1: only where
        it is below.
    """
    values, sides = values.to(activation), sides.to(activation.device)
    clipped = torch.where(
        sides > 0, torch.minimum(activation, values), torch.maximum(activation, values)
    )
    return torch.where(sides == 0, values, clipped)
