"""Attention heads: how far they match prefixes, and ablation to the first token.

The input of the attention's output projection holds every query head's output side by side,
o_h(t) = Σ_j A_h(t, j) v_h(j). A head whose queries all attend to position 0 has o_h(t) = v_h(0),
and a causal model's position 0 attends to nothing but itself, so v_h(0) is o_h(0): ablating a
head is copying its slice from position 0. No attention implementation takes part in it, and with
grouped-query attention a slice is still one query head's. (A model with learnt attention sinks
would be an exception: there A_h(0, 0) < 1.)
"""

import torch

from .write import take


def attend_first(outputs, batch, layer):
    """Let the heads of the j-th set attend to position 0 in the j-th copy of the sequences.

    Parameters
    ----------
    outputs : Tensor (R, L, heads · head width)
        Input of the attention's output projection in ``layer``: R = (1 + n)·B.
    batch : Batch
        With ``engine="forward"`` and ``heads``.
    layer : int

    Returns
    -------
    Tensor
        A changed copy.
    """
    changed = outputs.clone()
    split = changed.unflatten(-1, (batch.n_heads, -1))
    copies = split[batch.rows :].unflatten(0, (batch.count(), batch.rows))
    for copy, members in zip(copies, batch.heads):
        own = members[members[:, 0] == layer, 1].to(changed.device)
        copy[:, :, own] = copy[:, :1, own]
    return changed


def activation_changes(block):
    """How much the watched neurons' activations change, (n, T, m) float32.

    Parameters
    ----------
    block : Block
        Of a batch with ``engine="forward"``: n ablations, T tokens, m = ``len(block.neurons)``.
    """
    one_copy = block.batch.rows * block.batch.inputs.shape[1]
    neurons = block.neurons
    before = take(block.activation, block.positions).index_select(-1, neurons).float()
    found = torch.empty(block.batch.count(), *before.shape)
    for j, out in enumerate(found):
        there = take(block.activation, block.positions + (j + 1) * one_copy)
        out.copy_(there.index_select(-1, neurons).float() - before)
    return found


def prefix_matching(attention, first, period):
    """Each head's prefix-matching score on sequences that repeat what came ``period`` before.

    The mean, over the queries t of the repeat, of the attention to the token that followed the
    query's token when it stood there first: position t − period + 1.

    Parameters
    ----------
    attention : sequence of Tensor (B, heads, L, L)
        Attention patterns of every layer.
    first : int
        Where the repeat begins; it is to the end.
    period : int

    Returns
    -------
    Tensor (B, layers, heads) float64
        Of each sequence by itself.
    """
    queries = torch.arange(first, attention[0].shape[-1])
    scores = [
        pattern[:, :, queries, queries - period + 1].double().mean(-1) for pattern in attention
    ]
    return torch.stack([score.cpu() for score in scores], 1)
