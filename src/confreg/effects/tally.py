"""Where the effects of one unit are gathered: the cube, its sums, its checks."""

import torch

SUMS = ("effect_sum", "effect_abs_sum", "effect_undefined")
BY_GROUP = ("effect_sum_by", "effect_abs_sum_by", "effect_undefined_by")
ROUTED = ("effect_sum_routed", "effect_abs_sum_routed", "effect_routed")


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
    there : Tensor (n, T) bool, optional
        At which tokens the edited neurons are there, for sums over these alone.
    """

    def __init__(
        self, n, keep, count, cube, along=None, shown=None, group=None, groups=0, there=None
    ):
        self.keep = keep.cpu()
        self.cube = torch.full((n, len(keep), count), torch.nan) if cube else None
        self.along = along or {}
        self.gathered = {column: one.nothing(n) for column, one in self.along.items()}
        self.unknown = torch.zeros(n, len(keep) if along else 0, dtype=torch.bool)
        self.shown = shown
        self.group = group
        self.there = there
        self.sums = tables(SUMS, n, count)
        self.by = {} if group is None else tables(BY_GROUP, n, count, groups)
        self.routed = {} if there is None else tables(ROUTED, n, count)
        self.pairs = 0
        self.recomputed = 0
        self.sampled = 0
        self.error_sum = torch.zeros(count, dtype=torch.float64)
        self.error_largest = torch.zeros(count, dtype=torch.float64)

    def add(self, edits, tokens, effects, unknown=None):
        """Take the effects (n', T', E) of a slice of the edits and of some tokens.

        Those are a slice, or their indices (T',). Where it is ``unknown`` (n', T') bool what an
        edit does, effects are NaN, and so are their sums.
        """
        effects = effects.float().cpu()
        self.pairs += effects.shape[0] * effects.shape[1]
        if unknown is None:
            unknown = torch.zeros(effects.shape[:2], dtype=torch.bool)
        unknown = unknown.cpu()
        effects = effects.masked_fill(unknown[..., None], torch.nan)  # a copy, to be changed below
        if self.cube is not None:
            self.cube[edits, tokens] = effects
        for column, one in self.along.items():
            one.add(self.gathered[column][edits], tokens, effects[..., column])
            effects[..., column] = torch.nan  # what stands there is a part
            self.unknown[edits, tokens] = unknown
        kept = self.keep[tokens]
        group = None if self.group is None else self.group[tokens][kept]
        there = None if self.there is None else self.there[edits, tokens][:, kept]
        self.reduce(edits, slice(None), effects[:, kept], group, unknown[:, kept], there)

    def reduce(self, edits, columns, kept, group, unknown, there):
        """Add effects (n', T', E') at kept tokens to the sums of some columns."""
        kept = kept.double()
        defined = kept.isfinite()
        kept = kept.masked_fill(~(defined | unknown[..., None]), 0.0)
        parts = kept, kept.abs(), (~defined).long()
        for name, values in zip(self.sums, parts):
            self.sums[name][edits, columns] += values.sum(1)
        for name, values in zip(self.by, parts):
            self.by[name][edits, columns].index_add_(2, group, values.transpose(1, 2))
        for name, values in zip(self.routed, (kept, kept.abs(), defined.long())):
            self.routed[name][edits, columns] += values.masked_fill(~there[..., None], 0).sum(1)

    def check(self, found, truth):
        """Compare effects (m, E) of some pairs with their recomputation in float64."""
        error = (found.double() - truth).abs().nan_to_num(nan=0.0).cpu()
        self.sampled += len(error)
        self.error_sum += error.sum(0)
        self.error_largest = torch.maximum(self.error_largest, error.amax(0))

    def result(self):
        """The gathered tensors, under the names that `Site.measure` documents."""
        found = {**self.sums, **self.by, **self.routed}
        for column, sums in self.gathered.items():
            one = self.along[column]
            for table in found.values():
                table[:, column] = 0
            group = None if self.group is None else self.group[self.keep]
            unknown = one.any(self.unknown)[:, self.keep]
            there = None if self.there is None else one.any(self.there)[:, self.keep]
            own = sums[:, self.keep, None]
            self.reduce(slice(None), slice(column, column + 1), own, group, unknown, there)
            if self.cube is not None:
                self.cube[..., column] = sums.float()
        if self.cube is not None and self.shown is not None:
            self.cube[:, ~self.shown.cpu()] = torch.nan
        if self.there is not None:
            found["routed_tokens"] = self.there[:, self.keep].sum(1)
        if self.cube is not None:
            found["effects"] = self.cube
        for name in ("pairs", "recomputed", "sampled"):
            found[name] = torch.tensor(float(getattr(self, name)), dtype=torch.float64)
        found["error_sum"], found["error_largest"] = self.error_sum, self.error_largest
        return found


def tables(names, *shape):
    """Zeros under some names: two of float64, for sums, and one of int64, for a count."""
    dtypes = torch.float64, torch.float64, torch.int64
    return {name: torch.zeros(*shape, dtype=dtype) for name, dtype in zip(names, dtypes)}
