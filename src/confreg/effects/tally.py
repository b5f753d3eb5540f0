"""Where the effects of one unit are gathered: the cube, its sums, its checks."""

import torch


class Tally:
    """Effects found so far.

    Parameters
    ----------
    n, keep, count : int, Tensor (T,) bool, int
        Edits, tokens that sums run over, effects.
    cube : bool
        Hold every effect (n, T, E), not only the sums.
    """

    def __init__(self, n, keep, count, cube):
        self.keep = keep.cpu()
        self.cube = torch.full((n, len(keep), count), torch.nan) if cube else None
        self.sum = torch.zeros(n, count, dtype=torch.float64)
        self.abs_sum = torch.zeros(n, count, dtype=torch.float64)
        self.undefined = torch.zeros(n, count, dtype=torch.int64)
        self.pairs = 0
        self.recomputed = 0
        self.sampled = 0
        self.error_sum = torch.zeros(count, dtype=torch.float64)
        self.error_largest = torch.zeros(count, dtype=torch.float64)

    def add(self, edits, tokens, effects):
        """Take the effects (n', T', E) of a slice of the edits and of some tokens.

        Those are a slice, or their indices (T',).
        """
        effects = effects.float().cpu()
        self.pairs += effects.shape[0] * effects.shape[1]
        if self.cube is not None:
            self.cube[edits, tokens] = effects
        kept = effects[:, self.keep[tokens]].double()
        defined = kept.isfinite()
        kept = torch.where(defined, kept, 0.0)
        self.undefined[edits] += (~defined).sum(1)
        self.sum[edits] += kept.sum(1)
        self.abs_sum[edits] += kept.abs().sum(1)

    def check(self, found, truth):
        """Compare effects (m, E) of some pairs with their recomputation in float64."""
        error = (found.double() - truth).abs().nan_to_num(nan=0.0).cpu()
        self.sampled += len(error)
        self.error_sum += error.sum(0)
        self.error_largest = torch.maximum(self.error_largest, error.amax(0))

    def result(self):
        """The gathered tensors, under the names that `Site.measure` documents."""
        out = {"effect_sum": self.sum, "effect_abs_sum": self.abs_sum}
        out["effect_undefined"] = self.undefined
        if self.cube is not None:
            out["effects"] = self.cube
        for name in ("pairs", "recomputed", "sampled"):
            out[name] = torch.tensor(float(getattr(self, name)), dtype=torch.float64)
        out["error_sum"], out["error_largest"] = self.error_sum, self.error_largest
        return out
