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
    along : dict of int to Along, optional
        By its column, what an effect on a measure of several predictions is added up by.
    shown : Tensor (T,) bool, optional
        Tokens at which the cube has effects, NaN at others; by default all.
    group : Tensor (T,) int64, optional
        Which group a kept token is in, for sums by group.
    groups : int
        How many there are.
    """

    def __init__(self, n, keep, count, cube, along=None, shown=None, group=None, groups=0):
        self.keep = keep.cpu()
        self.cube = torch.full((n, len(keep), count), torch.nan) if cube else None
        self.sum = torch.zeros(n, count, dtype=torch.float64)
        self.abs_sum = torch.zeros(n, count, dtype=torch.float64)
        self.undefined = torch.zeros(n, count, dtype=torch.int64)
        self.along = along or {}
        self.gathered = {column: one.nothing(n) for column, one in self.along.items()}
        self.shown = shown
        self.group = group
        self.by = {
            name: torch.zeros(n, count, groups, dtype=dtype)
            for name, dtype in (
                ("effect_sum_by", torch.float64),
                ("effect_abs_sum_by", torch.float64),
                ("effect_undefined_by", torch.int64),
            )
            if group is not None
        }
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
        effects = effects.clone() if self.along else effects
        for column, one in self.along.items():
            one.add(self.gathered[column][edits], tokens, effects[..., column])
            effects[..., column] = torch.nan  # what stands there is a part
        kept = self.keep[tokens]
        group = None if self.group is None else self.group[tokens][kept]
        self.reduce(edits, slice(None), effects[:, kept], group)

    def reduce(self, edits, columns, kept, group):
        """Add effects (n', T', E') at kept tokens to the sums of some columns."""
        kept = kept.double()
        defined = kept.isfinite()
        kept = torch.where(defined, kept, 0.0)
        self.undefined[edits, columns] += (~defined).sum(1)
        self.sum[edits, columns] += kept.sum(1)
        self.abs_sum[edits, columns] += kept.abs().sum(1)
        for name, values in zip(self.by, (kept, kept.abs(), (~defined).long())):
            self.by[name][edits, columns].index_add_(2, group, values.transpose(1, 2))

    def check(self, found, truth):
        """Compare effects (m, E) of some pairs with their recomputation in float64."""
        error = (found.double() - truth).abs().nan_to_num(nan=0.0).cpu()
        self.sampled += len(error)
        self.error_sum += error.sum(0)
        self.error_largest = torch.maximum(self.error_largest, error.amax(0))

    def result(self):
        """The gathered tensors, under the names that `Site.measure` documents."""
        for column, sums in self.gathered.items():
            self.undefined[:, column] = 0
            if self.by:
                self.by["effect_undefined_by"][:, column] = 0
            group = None if self.group is None else self.group[self.keep]
            self.reduce(slice(None), slice(column, column + 1), sums[:, self.keep, None], group)
            if self.cube is not None:
                self.cube[..., column] = sums.float()
        if self.cube is not None and self.shown is not None:
            self.cube[:, ~self.shown.cpu()] = torch.nan
        out = {"effect_sum": self.sum, "effect_abs_sum": self.abs_sum}
        out["effect_undefined"] = self.undefined
        out.update(self.by)
        if self.cube is not None:
            out["effects"] = self.cube
        for name in ("pairs", "recomputed", "sampled"):
            out[name] = torch.tensor(float(getattr(self, name)), dtype=torch.float64)
        out["error_sum"], out["error_largest"] = self.error_sum, self.error_largest
        return out
