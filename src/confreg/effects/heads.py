"""Attention heads: how far they match prefixes."""

import torch


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
