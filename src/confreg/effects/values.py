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
        The tokens that count.
    """
    if kind == "constant":
        return torch.full((activation.shape[1],), float(value), device=activation.device)
    chosen = activation[over.to(activation.device)]
    if kind == "mean":
        return (chosen.double().sum(0) / len(chosen)).float()
    # torch.quantile refuses large inputs; a sort does not.
    ranked = chosen.float().sort(0).values
    place = value / 100 * (len(ranked) - 1)
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (place - low) * (ranked[high] - ranked[low])


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
