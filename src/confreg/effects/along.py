"""Measures of several predictions: what is found at each of them, added up at one token.

The loss of a whole target is the sum of its tokens' losses, each read where the token before it
stands; a contrast is such a sum less another one.
"""

import torch


class Along:
    """Which tokens' values go into the sum at which token, and how often.

    Parameters
    ----------
    owner : Tensor (T,) int64
        At which of the unit's tokens the sum is that a token's value goes into; -1: into none.
    weight : Tensor (T,)
        What the value is multiplied by.
    """

    def __init__(self, owner, weight):
        self.owner = owner
        self.weight = weight.double()

    def nothing(self, *shape):
        """Sums of nothing yet, (*shape, T) float64: 0 at owners, NaN elsewhere."""
        found = torch.full((*shape, len(self.owner)), torch.nan, dtype=torch.float64)
        found[..., self.owner[self.owner >= 0]] = 0
        return found

    def add(self, sums, tokens, values):
        """Add the values (n, T') of some tokens, a slice or their indices, to sums (n, T)."""
        owner, weight = self.owner[tokens], self.weight[tokens]
        some = (owner >= 0).nonzero()[:, 0]
        sums.index_add_(1, owner[some], values[:, some].double() * weight[some])

    def any(self, marks):
        """At which owners a token of the sum is marked, of tokens' marks (n, T) bool: the same."""
        some = (self.owner >= 0).nonzero()[:, 0]
        found = torch.zeros(marks.shape, dtype=torch.int32)
        return found.index_add_(1, self.owner[some], marks[:, some].int()) > 0

    def of(self, values):
        """The sums (T,) of all tokens' values (T,), in their type."""
        sums = self.nothing(1)
        self.add(sums, slice(None), values.cpu()[None])
        return sums[0].to(values.dtype)
