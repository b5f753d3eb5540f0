"""The intervention of the ``forward`` engine."""

import torch

from .values import values_of


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
        for copy, members, values in zip(copies, batch.sets, batch.set_values):
            copy[..., members.to(changed.device)] = values.to(changed)
        return changed
    each = torch.arange(len(batch.neurons), device=changed.device)
    values = values_of(batch, activation).to(changed)[:, None, None]
    copies[each, :, :, batch.neurons.to(changed.device)] = values
    return changed
