"""The closed form over all neurons and tokens at once: moments, bands summed exactly, a bound.

For one token let p be the model's distribution, y = log p + H its centred log-probability and
f = gain·u + Σ_j c_j q_j, less its mean under p, what an ablation adds to the logits (q: the logits
themselves, for the temperature, a post-norm's μ, the token-frequency direction). With

    A = E_p[e^f],   B = E_p[y e^f],   C = E_p[f e^f]

the loss changes by log A − f(target), the entropy by log A − (B + C)/A, and D(p_freq ‖ p) by
log A − E_freq[f]. Three stages give them:

1. Up to second order in f, from joint moments of p with u and u²: a few matrix products for all
   neurons and tokens. Taylor's remainder bounds every pair's error. For neurons where it exceeds
   the tolerance often, again up to an order at which it seldom does (`confreg.effects.higher`).
2. Where the bound of second order exceeds the tolerance: what lies beyond is summed exactly over
   the token's likeliest vocabulary entries, band by band (`BANDS`); the bound counts the rest only.
3. Where it still exceeds the tolerance, or that of a higher order does: `exact`.

The derivation is in docs/effects.md.
"""

import torch

from .exact import LOG2E, exact_token, frequency_kept, others
from .higher import Alone, Higher, choose, combined
from .measures import TILTED, split, variants_of
from .moments import Joint, Side
from .parallel import hand_on
from .sums import second_order

BANDS = (-9.0, -12.7)
"""Log probabilities at which the bands of stage 2 end: some 200 and 2,000 entries in all."""
GATHERED = 2**20  # of u's numbers, at once


class Band:
    """Vocabulary entries of one token that stage 2 sums exactly."""

    def __init__(self, side, token, entries, low):
        self.entries = entries
        self.p, self.py, self.variables = side.at(token, entries)
        # No entry that is left is likelier than this.
        self.peak = side.entropy[token, 0] + low

    def add(self, sums, u, gain, coefficients, mean):
        """`Sums` (m,) of some neurons with the band's entries summed exactly; ``u`` (m, K)."""
        f = (u - mean[:, None]).mul_(gain[:, None])
        for c, q in zip(coefficients, self.variables):
            if c.any():
                f.addcmul_(c[:, None], q)
        square = f.square()
        f2, y2 = square @ self.p, square @ self.py
        beyond = torch.mul(f, LOG2E, out=square).exp2_().sub_(1).sub_(f)  # first order
        a = beyond @ self.p - f2 / 2
        b = beyond @ self.py - y2 / 2
        c = beyond.mul_(f) @ self.p
        return sums.summed(a, b, c, f2, y2, self.peak)


class Variant:
    """One variant's ablations of a block, through the stages."""

    def __init__(self, side, joint, fan, coefficients, columns):
        self.joint = joint
        self.columns = columns  # of the effects, by measure
        self.gain = coefficients.gain * side.base.readout.scale
        self.others = others(coefficients)
        self.sums = second_order(side, joint, self.gain, self.others)
        self.at = {}  # what f is, by measure, where log A is compared with it
        if "loss" in columns:
            targets = side.base.targets
            at_target = fan.u.index_select(1, targets.clamp_min(0))
            at_target = self.less_mean(at_target, side.at_target)
            self.at["loss"] = torch.where(targets < 0, torch.nan, at_target)
        if "kl_frequency" in columns:
            at_frequency = fan.at_frequency[:, None]
            self.at["kl_frequency"] = self.less_mean(at_frequency, side.at_frequency)
        # One tensor, so that pairs are picked from it at once.
        self.table = torch.stack((self.gain, joint.mean, *self.others, *self.at.values()))
        self.gain, _, self.others, self.at = self.split(self.table)

    def split(self, table):
        """Of a variant's table, or of some of its pairs: gain, mean, coefficients, f by measure."""
        gain, mean, *rest = table
        return gain, mean, rest[: len(self.others)], dict(zip(self.at, rest[len(self.others) :]))

    def less_mean(self, u, variables):
        """f (n, T) from values, or means, of u (n, T) and of the centred variables (T,)."""
        f = self.gain * (u - self.joint.mean)
        for c, q in zip(self.others, variables):
            f = f + c * q
        return f

    def judge(self, tolerance):
        """Second order's effects, and the pairs whose bound exceeds the tolerance."""
        self.values = self.read(self.sums.a.log(), self.sums.excess(), self.at)
        self.suspects = ~(self.bound(self.sums) <= tolerance)

    def read(self, log_a, excess, at):
        """The effects (..., columns) of some pairs, from log A and (B + C)/A."""
        found = [log_a - at.get(name, excess) for name in self.columns]
        return torch.stack(found, -1)

    def raise_order(self, higher, tolerance):
        """Judge some neurons again, from higher orders."""
        rows = higher.rows
        a, b, c, errors = higher.sums(self.gain, self.others[0])
        excess = (b + c) / (1 + a)
        at = {name: f[rows] for name, f in self.at.items()}
        # These are not about f's mean under p: the loss sees it, the entropy does not.
        at = {name: f + self.gain[rows] * higher.mean for name, f in at.items()}
        self.values[rows] = self.read(torch.log1p(a), excess, at)
        self.suspects[rows] = ~(combined(1 + a, excess, errors, self.columns) <= tolerance)

    def bound(self, sums):
        """Bound on the error of some pairs, the largest of their effects."""
        return sums.entropy_bound() if "entropy" in self.columns else sums.loss_bound()

    def improve(self, sums, band, u, rows, token):
        """Stage 2: the `Sums` of some neurons with one token, after one more band."""
        gain, mean, coefficients, at = self.split(self.table[:, rows, token])
        sums = band.add(sums, u, gain, coefficients, mean)
        self.values[rows, token] = self.read(sums.a.log(), sums.excess(), at)
        return sums


def bands_of(side, token):
    """The bands of one token, the likeliest entries first."""
    log_p, bands = side.log_p[token], []
    left = (log_p > BANDS[-1]).nonzero()[:, 0]
    for low in BANDS:
        inside = log_p[left] > low
        bands.append(Band(side, token, left[inside], low))
        left = left[~inside]
    return bands


def add_bands(variants, bands, fan, token, rows, tolerance):
    """Stage 2 for one token and some neurons; those that it leaves to stage 3."""
    sums = [one.sums.at(rows, token) for one in variants]
    for band in bands:
        # All variants push by the same u, and fetching it costs more than what follows.
        pushed = fan.at(rows, band.entries)
        sums = [one.improve(s, band, pushed, rows, token) for one, s in zip(variants, sums)]
        bounds = torch.stack([one.bound(s) for one, s in zip(variants, sums)])
        left = (~(bounds <= tolerance).all(0)).nonzero()[:, 0]
        rows, sums = rows[left], [s.only(left) for s in sums]
    return rows


def series(base, fan, coefficients, effects, tolerance):
    """Effects of every neuron on every token of a block.

    Parameters
    ----------
    base : Base
    fan : Fan
    coefficients : dict of str to Coefficients, each (n, T)
    effects : tuple of str
        Which `exact.tilts` admits.
    tolerance : float
        Nats.

    Returns
    -------
    effects : Tensor (n, T, E) float32
    recomputed : int
        Pairs that were left to `exact`.
    """
    side = Side(base)
    joint = Joint(side, fan)
    variants = []
    for name in variants_of(effects):
        if name == "frequency_direct":
            total, scale = coefficients["total"], base.readout.scale
            kept = frequency_kept(total, scale, fan.along[:, None], side.along)
            coefficients = {**coefficients, name: kept}
        columns = {m: i for i, (m, v) in enumerate(map(split, effects)) if v == name}
        columns = {m: columns[m] for m in TILTED if m in columns}
        variants.append(Variant(side, joint, fan, coefficients[name], columns))
    for one in variants:
        one.judge(tolerance)
    raised = raise_orders(variants, side, joint, fan, tolerance)
    suspects = torch.stack([one.suspects for one in variants]).any(0)

    def banded(token):
        rows = suspects[:, token].nonzero()[:, 0]
        parts, rows = [rows[raised[rows]]], rows[~raised[rows]]
        if len(rows):
            bands = bands_of(side, token)
            size = max(1, GATHERED // max(1, *(len(band.entries) for band in bands)))
            parts += [
                add_bands(variants, bands, fan, token, some, tolerance) for some in rows.split(size)
            ]
        return torch.cat(parts)

    def recompute(token, rows):
        if len(rows):
            pairs = {name: c.at(rows, token) for name, c in coefficients.items()}
            found = exact_token(base, fan, token, pairs, effects, rows)
            for one in variants:
                one.values[rows, token] = found[:, list(one.columns.values())]
        return len(rows)

    recomputed = sum(hand_on(banded, recompute, len(side.log_p), fan.u.device))
    out = fan.u.new_empty(*suspects.shape, len(effects))
    for one in variants:
        out[..., list(one.columns.values())] = one.values
    return out, recomputed


def raise_orders(variants, side, joint, fan, tolerance):
    """Take the neurons for which it pays to higher orders; which those are, (n,) bool."""
    suspects = torch.stack([one.suspects for one in variants]).any(0)
    raised = torch.zeros_like(suspects[:, 0])
    # What else a variant adds, its powers would have to meet u's too.
    if all(len(one.others) == 1 for one in variants):
        alone = Alone(side)
        rows, orders = choose(side, joint, fan, variants, suspects, tolerance, alone)
        if len(rows):
            higher = Higher(side, joint, fan, rows, orders, alone)
            for one in variants:
                one.raise_order(higher, tolerance)
            raised[rows] = True
    return raised
