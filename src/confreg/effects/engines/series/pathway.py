"""One pathway's effects of a chunk, through the stages of the series."""

import torch

from .expectations import second_order
from .orders import combined


class Pathway:
    """Effects of one pathway: total, direct, or with the token frequencies put back.

    Parameters
    ----------
    own : TokenMoments
    joint : JointMoments
    directions : Directions
    coefficients : Coefficients
    tilted : list of str
        `Measure.tilted` of its effects.
    columns : list of int
        Where they are among all effects.

    Attributes
    ----------
    gain : Tensor (n, T)
        g.
    coefficients : dict of str to Tensor (n, T)
        c_j by variable.
    at : dict of str to Tensor (n, T)
        f at the target and its mean under the unigrams, as far as effects compare log A with them.
    sums : Expectations (n, T)
    values : Tensor (n, T, columns)
        The effects, as far as the stages have come.
    suspects : Tensor (n, T) bool
        Pairs whose bound exceeds the tolerance.
    """

    def __init__(self, own, joint, directions, coefficients, tilted, columns):
        self.joint = joint
        self.tilted = tilted
        self.columns = columns
        self.entropic = "excess" in tilted
        self.gain = coefficients.gain * own.unablated.readout.scale
        self.coefficients = coefficients.by_variable()
        self.sums = second_order(own, joint, self.gain, self.coefficients)
        self.at = {}
        if "target" in tilted:
            targets = own.unablated.targets
            at_target = directions.u.index_select(1, targets.clamp_min(0))
            at_target = self.less_mean(at_target, own.at_target)
            self.at["target"] = torch.where(targets < 0, torch.nan, at_target)
        if "unigrams" in tilted:
            at_frequency = directions.at_frequency[:, None]
            self.at["unigrams"] = self.less_mean(at_frequency, own.at_frequency)
        # One tensor, so that pairs are picked from it at once.
        named = self.gain, joint.mean, *self.coefficients.values(), *self.at.values()
        self.table = torch.stack(named)
        self.gain, _, self.coefficients, self.at = self.split(self.table)

    def split(self, table):
        """Of the table, or of some of its pairs: g, E[u], c_j by variable, and `at`."""
        gain, mean, *rest = table
        count = len(self.coefficients)
        return gain, mean, dict(zip(self.coefficients, rest)), dict(zip(self.at, rest[count:]))

    def less_mean(self, u, variables):
        """f (n, T) from values, or means, of u (n, T) and of the centred variables (T,)."""
        f = self.gain * (u - self.joint.mean)
        for name, c in self.coefficients.items():
            f = f + c * variables[name]
        return f

    def judge(self, tolerance):
        """Second order's effects, and the pairs whose bound exceeds the tolerance."""
        self.values = self.read(self.sums.a.log(), self.sums.excess(), self.at)
        self.suspects = ~(self.bound(self.sums) <= tolerance)

    def read(self, log_a, excess, at):
        """The effects (..., columns) of some pairs, from log A and (B + C)/A."""
        return torch.stack([log_a - at.get(name, excess) for name in self.tilted], -1)

    def raise_order(self, higher, tolerance):
        """Judge some edits again, from higher orders."""
        rows = higher.rows
        a, b, c, errors = higher.sums(self.gain, self.coefficients["logits"])
        excess = (b + c) / (1 + a)
        at = {name: f[rows] for name, f in self.at.items()}
        # These are not about f's mean under p: the loss sees it, the entropy does not.
        at = {name: f + self.gain[rows] * higher.mean for name, f in at.items()}
        self.values[rows] = self.read(torch.log1p(a), excess, at)
        self.suspects[rows] = ~(combined(1 + a, excess, errors, self.entropic) <= tolerance)

    def bound(self, sums):
        """Bound on the error of some pairs, the largest of their effects."""
        return sums.entropy_bound() if self.entropic else sums.loss_bound()

    def improve(self, sums, band, u, rows, token):
        """Stage 2: the `Expectations` of some edits with one token, after one more band."""
        gain, mean, coefficients, at = self.split(self.table[:, rows, token])
        sums = band.add(sums, u, gain, mean, coefficients)
        self.values[rows, token] = self.read(sums.a.log(), sums.excess(), at)
        return sums
