"""The closed form over all neurons and tokens at once: moments, bands summed exactly, a bound.

For one token let p be the model's distribution, y = log p + H its centred log-probability and
f = gain·u + Σ_j c_j q_j, less its mean under p, what an ablation adds to the logits (q: the logits
themselves, for the temperature, a post-norm's μ, the token-frequency direction). With

    A = E_p[e^f],   B = E_p[y e^f],   C = E_p[f e^f]

the loss changes by log A − f(target), the entropy by log A − (B + C)/A, and D(p_freq ‖ p) by
log A − E_freq[f]. Three stages give them:

1. Up to second order in f, for some neurons the third, from joint moments of p with u and u²: a
   few matrix products for all neurons and tokens. Taylor's remainder bounds every pair's error.
2. Where that bound exceeds the tolerance: what lies beyond is summed exactly over the token's
   likeliest vocabulary entries, band by band (`BANDS`); the bound now counts the rest only.
3. Where it still exceeds the tolerance: `exact`.

The derivation is in docs/effects.md.
"""

import torch

from .exact import LOG2E, exact_token, frequency_kept, others
from .measures import TILTED, split, variants_of
from .moments import Cubic, Joint, Side
from .sums import Sums, second_order

BANDS = (-9.0, -12.7)
"""Log probabilities at which the bands of stage 2 end: some 200 and 2,000 entries in all."""
GATHERED = 2**20  # of u's numbers, at once
CUBIC = 0.5  # suspects a token, over all variants, for which a neuron's third order pays


class Band:
    """Vocabulary entries of one token that stage 2 sums exactly."""

    def __init__(self, side, token, entries, low):
        self.entries = entries
        self.p, self.py, self.variables = side.at(token, entries)
        # No entry that is left is likelier than this.
        self.peak = side.entropy[token, 0] + low

    def gather(self, u, rows):
        """u of some neurons at the band's entries, (m, K)."""
        # Several times faster than indexing with rows and entries.
        place = (rows * u.shape[1])[:, None] + self.entries
        return u.view(-1).index_select(0, place.view(-1)).view(place.shape)

    def add(self, sums, u, gain, coefficients, mean):
        """`Sums` (m,) of some neurons with the band's entries summed exactly; ``u`` (m, K)."""
        f = (u - mean[:, None]).mul_(gain[:, None])
        for c, q in zip(coefficients, self.variables):
            if c.any():
                f.addcmul_(c[:, None], q)
        square = f.square()
        f2, y2 = square @ self.p, square @ self.py
        cube = square.mul_(f)
        f3, y3 = sums.cubic * (cube @ self.p), sums.cubic * (cube @ self.py)
        beyond = (f * LOG2E).exp2_().sub_(1).sub_(f)  # first order
        a = beyond @ self.p - f2 / 2 - f3 / 6
        b = beyond @ self.py - y2 / 2 - y3 / 6
        c = beyond.mul_(f) @ self.p - f3 / 2
        left = torch.maximum(sums.f2 - f2, 1e-6 * sums.f2)
        return Sums(
            sums.a + a, sums.b + b, sums.c + c,
            left, sums.y2 - y2, self.peak, sums.reach, sums.noise, sums.cubic,
        )  # fmt: skip


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
        # Third orders are those of u and y: see `Cubic`.
        self.plain = side.same and len(self.others) == 1

    def less_mean(self, u, variables):
        """f (n, T) from values, or means, of u (n, T) and of the centred variables (T,)."""
        f = self.gain * (u - self.joint.mean)
        for c, q in zip(self.others, variables):
            f = f + c * q
        return f

    def judge(self, tolerance):
        """Stage 1's effects, and the pairs whose bound exceeds the tolerance."""
        self.values = self.read(self.sums, self.at)
        self.suspects = ~(self.bound(self.sums) <= tolerance)

    def read(self, sums, at):
        """The effects (..., columns) of some pairs."""
        log_a = sums.a.log()
        found = [
            log_a - at[name] if name in at else log_a - (sums.b + sums.c) / sums.a
            for name in self.columns
        ]
        return torch.stack(found, -1)

    def bound(self, sums):
        """Bound on the error of some pairs, the largest of their effects."""
        return sums.entropy_bound() if "entropy" in self.columns else sums.loss_bound()

    def improve(self, sums, band, u, rows, token):
        """Stage 2: the `Sums` of some neurons with one token, after one more band."""
        coefficients = [c[rows, token] for c in self.others]
        gain, mean = self.gain[rows, token], self.joint.mean[rows, token]
        sums = band.add(sums, u, gain, coefficients, mean)
        at = {name: f[rows, token] for name, f in self.at.items()}
        self.values[rows, token] = self.read(sums, at)
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


def add_bands(variants, bands, u, token, rows, tolerance):
    """Stage 2 for one token and some neurons; those that it leaves to stage 3."""
    sums = [one.sums.at(rows, token) for one in variants]
    for band in bands:
        # All variants push by the same u, and fetching it costs more than what follows.
        pushed = band.gather(u, rows)
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
    suspects = third_order(variants, side, joint, fan, tolerance)
    out = fan.u.new_empty(*suspects.shape, len(effects))
    recomputed = 0
    for token in range(len(side.log_p)):
        rows = suspects[:, token].nonzero()[:, 0]
        if len(rows):
            bands = bands_of(side, token)
            size = max(1, GATHERED // max(1, *(len(band.entries) for band in bands)))
            parts = rows.split(size)
            parts = [add_bands(variants, bands, fan.u, token, r, tolerance) for r in parts]
            rows = torch.cat(parts)
        if len(rows):
            pairs = {name: c.at(rows, token) for name, c in coefficients.items()}
            found = exact_token(base, fan, token, pairs, effects, rows)
            for one in variants:
                one.values[rows, token] = found[:, list(one.columns.values())]
        recomputed += len(rows)
    for one in variants:
        out[..., list(one.columns.values())] = one.values
    return out, recomputed


def third_order(variants, side, joint, fan, tolerance):
    """Judge all pairs, and again with third orders where they pay; the suspects, (n, T) bool."""
    for one in variants:
        one.judge(tolerance)
    plain = [one for one in variants if one.plain]
    if plain:
        count = torch.stack([one.suspects.sum(-1) for one in plain]).sum(0)
        rows = (count > CUBIC * len(side.log_p)).nonzero()[:, 0]
        if len(rows):
            cubic = Cubic(side, fan, joint, rows)
            for one in plain:
                cubic.add(one.sums, one.gain, one.others[0])
                one.judge(tolerance)
    return torch.stack([one.suspects for one in variants]).any(0)
