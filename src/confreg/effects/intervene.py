"""The intervention of the ``forward`` engine."""

import torch

from .values import replaced, values_of


def ablate(activation, batch):
    """Replace neuron j's activation by its ablation value in the j-th copy of the sequences.

    Parameters
    ----------
    activation : Tensor (R, L, width), or (R·L, width) as OPT flattens it
        Input of the layer's down-projection.
    batch : Batch
        With ``engine="forward"``: R = (1 + n)·B, rows B(j+1) to B(j+2) being neuron j's.

    Returns
    -------
    Tensor
        A changed copy, or for other engines ``activation`` itself.
    """
    if batch.engine != "forward":
        return activation
    changed = activation.clone()
    rows = changed.view(len(batch.inputs), -1, changed.shape[-1])
    copies = rows[batch.rows :].unflatten(0, (batch.count(), batch.rows))
    if batch.sets is not None:
        for number, copy in enumerate(copies):
            members = batch.sets[number].to(changed.device)
            active, values = copy[..., members], batch.set_values[number]
            copy[..., members] = replaced(active, values, batch.side(number))
        return changed
    each = torch.arange(len(batch.neurons), device=changed.device)
    values = values_of(batch, activation).to(changed)[:, None, None]
    copies[each, :, :, batch.neurons.to(changed.device)] = values
    return changed
